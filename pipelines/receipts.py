"""The receipts of a run, read on the workers, many to a task: which regions are done, and what all of them come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from labelqa_dask.core.summary import Summary
from labelqa_dask.core.task import merge_states
from labelqa_dask.storage.record import Receipt, Version
from pipelines.layout import Regions
from pipelines.merging import MergedInOrder
from pipelines.plan import Plan
from pipelines.regions import in_flight

_AT_ONCE = 512


@dataclass(frozen=True)
class Merged:
    """What receipts come to: a state.

    Attributes
    ----------
    summary : of the regions that have a receipt
    taken_over : how many of them were scored in an earlier version
    missing : how many regions have no receipt
    first_missing : name of the first of them
    """

    summary: Summary | None = None
    taken_over: int = 0
    missing: int = 0
    first_missing: str = ""

    def merge(self, other: Merged) -> Merged:
        return Merged(
            merge_states(self.summary, other.summary),
            self.taken_over + other.taken_over,
            self.missing + other.missing,
            self.first_missing or other.first_missing,
        )

    def result(self) -> Merged:
        return self


@dataclass(frozen=True)
class _Part:
    """Regions whose receipts one worker reads."""

    number: int
    names: tuple[str, ...]
    version: Version
    basis: str

    def receipts(self) -> Iterator[Receipt | None]:
        """The receipt of each region, None where there is none that rests on the basis."""
        return self.version.receipts(self.names, self.basis)


def merge_receipts(plan: Plan, version: Version, basis: str, client: Client) -> Merged:
    """Merge the receipts that rest on a basis: those of a part in order, and parts by a tree over their numbers."""
    regions = plan.layout.regions
    merged: MergedInOrder[Merged] = MergedInOrder(-(-len(regions) // _AT_ONCE))
    every = _parts(regions, range(len(regions)), version, basis)
    for part, found in in_flight(client, _merge, every, plan.worker_bytes):
        merged.add(part.number, found)
    return merged.total or Merged()


def receipted(plan: Plan, version: Version, basis: str, client: Client) -> NDArray[np.bool_]:
    """Which regions (n,) have a receipt that rests on a basis: receipts are listed once, and those there are read."""
    regions = plan.layout.regions
    found = regions.marked(version.receipted())
    listed = np.flatnonzero(found)
    for part, marks in in_flight(client, _are_there, _parts(regions, listed, version, basis), plan.worker_bytes):
        found[listed[part.number * _AT_ONCE :][: len(marks)]] = marks
    return found


def _parts(
    regions: Regions, numbers: Sequence[int] | NDArray[np.intp], version: Version, basis: str
) -> Iterator[_Part]:
    for number, start in enumerate(range(0, len(numbers), _AT_ONCE)):
        yield _Part(number, tuple(regions[int(i)].name for i in numbers[start : start + _AT_ONCE]), version, basis)


def _merge(part: _Part) -> Merged:
    merged = Merged()
    for name, receipt in zip(part.names, part.receipts(), strict=True):
        if receipt is None:
            merged = merged.merge(Merged(missing=1, first_missing=name))
        else:
            merged = merged.merge(Merged(receipt.summary, int(receipt.origin != part.version.name)))
    return merged


def _are_there(part: _Part) -> list[bool]:
    return [receipt is not None for receipt in part.receipts()]

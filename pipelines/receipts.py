"""The receipts of a run, read on the workers, many to a task: which regions are done, and what all of them come to."""

from __future__ import annotations

from collections.abc import Iterator
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
    """Consecutive regions whose receipts one worker reads."""

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
    for part, found in in_flight(client, _merge, _parts(regions, version, basis), plan.worker_bytes):
        merged.add(part.number, found)
    return merged.total or Merged()


def receipted(plan: Plan, version: Version, basis: str, client: Client) -> NDArray[np.bool_]:
    """Which regions (n,) have a receipt that rests on a basis."""
    regions = plan.layout.regions
    found = np.zeros(len(regions), np.bool_)
    if (version.run / "done").exists():
        parts = _parts(regions, version, basis)
        for part, marks in in_flight(client, _are_there, parts, plan.worker_bytes):
            found[part.number * _AT_ONCE :][: len(marks)] = marks
    return found


def _parts(regions: Regions, version: Version, basis: str) -> Iterator[_Part]:
    for number, start in enumerate(range(0, len(regions), _AT_ONCE)):
        stop = min(start + _AT_ONCE, len(regions))
        yield _Part(number, tuple(regions[i].name for i in range(start, stop)), version, basis)


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

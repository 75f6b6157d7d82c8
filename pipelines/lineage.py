"""What the work on each region is known by, and where the version before has done it already.

A piece of work, the state of a pass over a region or its scores, is known by a key: the digest of all that it follows
from. What has the same key is the same, bit for bit, so it is taken over from the version before and not made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.errors import RunFailed
from labelqa_dask.core.task import Pass, State, get_task
from labelqa_dask.storage.digests import Digests
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import BadRegion, Json, Version, basis_of, json_digest, manifest_digest
from pipelines.layout import Region, Regions
from pipelines.statistics import statistics_digest

EXACT = "exact"


@dataclass(frozen=True)
class Former:
    """A region as it was in the version before."""

    version: Version
    region: Region


@dataclass(frozen=True)
class Lineage:
    """What a run descends from.

    Attributes
    ----------
    settings : digest of all that scores follow from, but the data
    contents : what tells of each region whether its data have changed
    examples : how many the statistics count
    frozen : whether the statistics are those of the version before
    previous, regions : the version before, and its regions
    formers : (regions,) number of each region in the version before, -1 where it has changed or is new
    """

    settings: str
    contents: Digests
    examples: int
    frozen: bool
    previous: Version | None
    regions: Regions
    formers: NDArray[np.int64]

    @classmethod
    def of(cls, version: Version, manifest: Json, contents: Digests) -> Lineage:
        """What a version in the making descends from."""
        regions, formers = Regions.of(manifest), np.full(len(contents), -1)
        previous = previous_of(version.out, manifest)
        before = previous.manifest() if previous else None
        # An annotation may be of any example, and each moves the weights by which all others are scored.
        alone = all(spec.kind != "annotations" for spec in get_task(manifest["task"]).inputs)
        if previous and before and alone and settings_of(before) == settings_of(manifest):
            kept = previous.contents(before["digest"])
            regions = Regions.of(before)
            if kept is not None and len(kept) == len(regions):
                formers = _find(contents, kept)
        frozen = manifest["statistics"] != EXACT
        return cls(settings_of(manifest), contents, counted(manifest), frozen, previous, regions, formers)

    def former(self, region: Region) -> Former | None:
        """Where a region was in the version before, unless it has changed."""
        number = int(self.formers[int(region.name)])
        return Former(self.previous, self.regions[number]) if self.previous and number >= 0 else None

    def partial_key(self, region: Region, step: Pass[Any], earlier: str) -> str:
        """Of the state of a pass over a region, given the digest of the states of the passes before."""
        told = [region.start if step.by_row else None, self.examples if step.examples else None]
        return json_digest([*self._of(region), step.name, earlier, *told])

    def score_key(self, region: Region, statistics: str, by_row: bool) -> str:
        """Of the scores of a region, given the digest of all states, and whether scores depend on row numbers."""
        return json_digest([*self._of(region), statistics, region.start if by_row else None])

    def frozen_state(self, step: Pass[Any]) -> State:
        """The state of a pass that stands for that of the data."""
        assert self.previous is not None
        state: State | None = self.previous.read_state(step.name, step.state, _basis(self.previous))
        if state is None:
            raise RunFailed(
                f"the statistics of the pass {step.name!r}, which are frozen, cannot be read",
                str(self.previous.run),
                "Run with refresh.statistics: exact.",
            )
        return state

    def bad_before(self, regions: Regions, manifest: str) -> dict[str, BadRegion]:
        """The regions that could not be scored in the version before, and have not changed since."""
        before = self.previous.manifest() if self.previous else None
        if self.previous is None or before is None or not (self.formers >= 0).any():
            return {}
        found = {}
        reasons = self.previous.bad_regions(before["digest"])
        for number in np.flatnonzero(np.isin(self.formers, [int(name) for name in reasons])).tolist():
            region, bad = regions[number], reasons[self.regions[int(self.formers[number])].name]
            if region.start == bad.start:  # the reasons name rows
                found[region.name] = BadRegion(region.name, region.start, region.stop, manifest, bad.reasons)
        return found

    def _of(self, region: Region) -> list[str]:
        return [self.settings, self.contents[int(region.name)].tobytes().hex()]


def settings_of(manifest: Json) -> str:
    """Digest of all that scores follow from, but the data and their number."""
    cut = manifest["layout"]
    told = [manifest[name] for name in ("format", "task", "params", "output", "select", "labelqa_dask")]
    return json_digest([*told, _sizes(manifest), cut["block"], cut["region_rows"]])


def counted(manifest: Json) -> int:
    """How many examples the statistics of a run count."""
    statistics = manifest["statistics"]
    examples: int = manifest["layout"]["sizes"]["example"] if statistics == EXACT else statistics["examples"]
    return examples


def previous_of(out: Location, manifest: Json) -> Version | None:
    """The version that one in the making takes from."""
    return Version(out, manifest["previous"]) if manifest["previous"] else None


def descended(planned: Json, previous: Version | None, *, freeze: bool) -> Json:
    """The manifest of a run that takes from a version: it is named, and so are the statistics, where they are frozen.

    Statistics can be those of an earlier version only where task, parameters, classes and software are the same.
    """
    before = previous.manifest() if previous else None
    statistics: str | Json = EXACT
    if previous and before and freeze and _have_same_statistics(before, planned):
        of = previous.name if before["statistics"] == EXACT else before["statistics"]["of"]
        task, params, n = planned["task"], _params(planned), counted(before)
        digest = statistics_digest(task, params, n, previous, _basis(previous), None)
        statistics = {"of": of, "examples": n, "digest": digest}
    manifest = {**planned, "previous": previous.name if previous and before else None, "statistics": statistics}
    return {**manifest, "digest": manifest_digest(manifest)}


def is_same(published: Json, planned: Json, *, freeze: bool) -> bool:
    """Whether a run would publish what has been published; frozen statistics may be any version's."""
    statistics = published["statistics"]
    digest = manifest_digest({**planned, "statistics": statistics})
    return bool(published["digest"] == digest) and (freeze or statistics == EXACT)


def _have_same_statistics(before: Json, planned: Json) -> bool:
    same = all(before[name] == planned[name] for name in ("task", "params", "labelqa_dask"))
    return same and _sizes(before) == _sizes(planned) and bool(get_task(planned["task"]).passes(_params(planned)))


def _params(manifest: Json) -> Any:
    return get_task(manifest["task"]).params(**manifest["params"])


def _sizes(manifest: Json) -> Json:
    return {dim: size for dim, size in manifest["layout"]["sizes"].items() if dim != "example"}


def _basis(published: Version) -> str:
    """What the statistics of a published version rest on."""
    manifest = published.manifest()
    assert manifest is not None
    return basis_of(manifest["digest"], published.bad_regions(manifest["digest"]))


def _find(digests: Digests, among: Digests) -> NDArray[np.int64]:
    """Where each of some digests is among others, at the same place if it is there; -1 where it is not."""
    found = np.full(len(digests), -1)
    both = min(len(digests), len(among))
    stayed = np.flatnonzero((digests[:both] == among[:both]).all(axis=1))
    found[stayed] = stayed
    left = np.flatnonzero(found < 0)
    if len(left):
        # Half of a digest finds the one that may be the same; which of several with that half, does not matter.
        wanted, known = (np.ascontiguousarray(each[:, :8]).view(np.uint64).ravel() for each in (digests[left], among))
        order = np.argsort(known, kind="stable")
        at = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
        found[left] = np.where((among[at] == digests[left]).all(axis=1), at, -1)
    return found

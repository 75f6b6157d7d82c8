"""Data that cannot be scored: where they are, why, and what becomes of a run that meets them.

A region with a single bad row is bad as a whole. By the policy `fail` the bad regions are listed and nothing is
published; by `quarantine` they are left out of every statistic, their scores are missing, and the rest is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.task import Block
from labelqa_dask.storage.record import BadRegion, Version, basis_of
from pipelines.plan import Plan

MOST_REGIONS = 20
MOST_REASONS = 5


class BadRegions:
    """The bad regions of a run, as far as they are known.

    They are written down where the run goes on without them, so that a run that is resumed leaves out the same ones.
    """

    def __init__(self, plan: Plan, version: Version, manifest: str) -> None:
        self._version = version
        self._manifest = manifest
        self._total = len(plan.layout.regions)
        self._quarantine = plan.config.on_error == "quarantine"
        self._found = version.bad_regions(manifest)
        if plan.lineage:
            before = plan.lineage.bad_before(plan.layout.regions, manifest)
            self.add(bad for name, bad in before.items() if name not in self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Any:
        return iter(sorted(self._found.values(), key=lambda bad: bad.region))

    @property
    def basis(self) -> str:
        """Digest of what statistics rest on that leave these regions out."""
        return basis_of(self._manifest, self._found)

    @property
    def are_enough(self) -> bool:
        """Whether so many were found that it is not worth looking for more."""
        return not self._quarantine and len(self) >= MOST_REGIONS

    def add(self, found: Iterable[BadRegion]) -> None:
        for bad in found:
            if self._quarantine:
                self._version.write_bad_region(bad)
            self._found[bad.region] = bad

    def refuse(self) -> None:
        """End the run where it is not to go on without them, or where nothing else is left.

        Raises
        ------
        InvalidInput
            Listing the bad regions.
        """
        if not self._found or (self._quarantine and len(self) < self._total):
            return
        listed = list(self)[:MOST_REGIONS]
        count = f"{len(self):,} region{'s hold' if len(self) > 1 else ' holds'} data that cannot be scored"
        more = " (and perhaps more: the run stopped looking)" if self.are_enough else ""
        rest = "Set on_error: quarantine to publish the rest, or mend" if len(self) < self._total else "Mend"
        raise InvalidInput(
            f"{count}{more}. Nothing was published. {rest} the input, then run again with --fresh."
            + "".join(f"\n  region {bad.region}: {_shown(bad)}" for bad in listed)
        )


def _shown(bad: BadRegion) -> str:
    return "\n    ".join(bad.reasons)


def first_reasons(block: Block, check: Callable[[Block], Any], most: int) -> list[str]:
    """Why the first bad examples of a block, at most so many, cannot be scored: halved until each stands alone."""
    try:
        check(block)
    except InvalidInput as error:
        n = len(next(iter(block.arrays.values())))
        if n == 1:
            return [str(error)]
        reasons: list[str] = []
        start = block.origin.get("example", 0)
        for part in ((start, start + n // 2), (start + n // 2, start + n)):
            if len(reasons) < most:
                reasons += first_reasons(block.examples(*part), check, most - len(reasons))
        return reasons or [str(error)]
    return []

"""How the rows are cut: regions, which are the unit of work and of resuming, and blocks, which bound the memory."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.task import Task
from labelqa_dask.storage.record import Json
from labelqa_dask.storage.sources import Bounds, Source

BLOCK_BYTES = 16 << 20
GATHERED_BYTES = 256 << 20
REGION_BYTES = 512 << 20
SMALL_REGION_BYTES = 128 << 20
REGION_ROWS = 1 << 22
FEWEST_REGIONS = 16
MOST_REGIONS = 1 << 18


@dataclass(frozen=True)
class Region:
    """A range of rows; its name sorts in row order and names its receipt and its Parquet part."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Regions:
    """All regions of a run: every `step` rows, or, where input files are cut irregularly, between `bounds`."""

    rows: int
    step: int
    bounds: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.bounds) - 1 if self.bounds else -(-self.rows // self.step)

    def __getitem__(self, i: int) -> Region:
        if not 0 <= i < len(self):
            raise IndexError(i)
        name = f"{i:0{max(5, len(str(len(self) - 1)))}d}"
        if self.bounds:
            return Region(name, self.bounds[i], self.bounds[i + 1])
        return Region(name, i * self.step, min((i + 1) * self.step, self.rows))

    def __iter__(self) -> Iterator[Region]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def of(cls, manifest: Json) -> Self:
        """The regions of a run that was planned before."""
        cut = manifest["layout"]
        bounds = cut["region_bounds"]
        return cls(cut["sizes"]["example"], cut["region_rows"], tuple(bounds) if bounds else None)

    @property
    def starts(self) -> Bounds:
        """First row of each region, and the end of the last."""
        if self.bounds:
            return np.array(self.bounds, np.int64)
        return np.append(np.arange(0, self.rows, self.step, dtype=np.int64), self.rows)

    def touching(self, rows: range) -> range:
        """Numbers of the regions that hold some of these rows."""
        if not rows:
            return range(0)
        if self.bounds:
            first, last = bisect_right(self.bounds, rows.start) - 1, bisect_left(self.bounds, rows.stop)
        else:
            first, last = rows.start // self.step, -(-rows.stop // self.step)
        return range(first, min(last, len(self)))

    def marked(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Which regions (n,) are among some names; others' names are left out."""
        found = np.zeros(len(self), np.bool_)
        for name in names:
            number = int(name) if name.isascii() and name.isdecimal() else -1
            if 0 <= number < len(self) and self[number].name == name:
                found[number] = True
        return found


@dataclass(frozen=True)
class Layout:
    """The cut of a run's data.

    Attributes
    ----------
    sizes : size of each dimension.
    regions : the ranges of rows.
    block : extent of a block along each dimension; `class` is always whole.
    """

    sizes: Mapping[str, int]
    regions: Regions
    block: Mapping[str, int]

    def of_one(self, region: Region, examples: int) -> Layout:
        """The cut of one region, which is small however many there are; so many examples count as the whole data."""
        regions = Regions(examples, self.regions.step, (region.start, region.stop))
        return replace(self, sizes={**self.sizes, "example": examples}, regions=regions)

    def tiles(self) -> Iterator[dict[str, slice]]:
        """Slices that cut an example into blocks; one that takes all of it where it is not cut."""
        dims = [dim for dim in self.sizes if dim not in ("example", "class")]
        cuts = [range(0, self.sizes[dim], self.block[dim]) for dim in dims]
        for starts in product(*cuts):
            yield {
                dim: slice(start, min(start + self.block[dim], self.sizes[dim]))
                for dim, start in zip(dims, starts, strict=True)
            }


def choose_layout(
    task: Task[Any],
    sources: Mapping[str, Source],
    sizes: Mapping[str, int],
    multiples: Mapping[str, int],
    *,
    regular: bool,
    region_rows: int | None,
    gathered_bytes: int = 0,
) -> Layout:
    """Cut the rows along the chunks of the largest input, and examples into blocks of whole cells (`multiples`).

    `regular` asks for regions of one length, as Zarr output needs; otherwise they follow the row groups of the files.
    `gathered_bytes` is the memory of what is kept of each example until its region is written.
    The cut depends on the input and the settings alone, never on the cluster, and moves little where the input grows:
    lengths are rounded, so that they change only now and then, and regions begin anew at `seams` of the input.
    """
    leader = task.inputs[-1]
    source = sources[leader.name]
    n = sizes["example"]
    stored = {dim: c for dim, c in zip(leader.dims, source.chunks, strict=True) if c is not None}
    chunk = {dim: math.lcm(c, multiples.get(dim, 1)) for dim, c in stored.items()}
    irregular = "example" not in chunk
    granule = _rounded_up(int(np.diff(source.row_bounds()).max())) if irregular else min(chunk["example"], n)
    tile = _choose_tile(task, sources, sizes, {**chunk, "example": granule})
    row_bytes = block_bytes(task, sources, {**sizes, **tile, "example": 1})
    most_rows = granule * max(1, BLOCK_BYTES // max(1, row_bytes * granule))
    example_bytes = block_bytes(task, sources, {**sizes, "example": 1})
    # Each region costs the scheduler a task and the store a receipt and a chunk of scores, however small it is; larger
    # ones take a worker longer, not more memory, as long as little is gathered of each example.
    many = max(REGION_BYTES // max(1, example_bytes), 2 * -(-n // MOST_REGIONS) - 1)
    most = min(many, GATHERED_BYTES // max(1, gathered_bytes), REGION_ROWS)
    # Each takes milliseconds, whatever it holds: of small ones some dozen are enough; large ones occupy more cores.
    fewest = FEWEST_REGIONS * (2 if n * example_bytes > 2 * FEWEST_REGIONS * SMALL_REGION_BYTES else 1)
    wanted = region_rows or _power_of_two(min(n // fewest, most))
    blocks = -(-wanted // most_rows)
    block_rows = -(-wanted // (blocks * granule)) * granule
    bounds = _region_bounds(source, wanted) if irregular and not regular else None
    block = {**sizes, **tile, "example": block_rows}
    return Layout(dict(sizes), Regions(n, blocks * block_rows, bounds), block)


def _region_bounds(source: Source, most: int) -> tuple[int, ...]:
    """Parts of at most so many rows, where one part is not already longer; each run between seams by itself."""
    rows = source.row_bounds()
    ends = np.unique([0, *np.searchsorted(rows, source.seams(most)), len(rows) - 1])
    runs = (group_bounds(rows[start : stop + 1], most) for start, stop in pairwise(ends))
    return (*(bound for run in runs for bound in run[:-1]), int(rows[-1]))


def _power_of_two(rows: int) -> int:
    """The largest that is no more than some rows; at least 1."""
    return 1 << max(rows, 1).bit_length() - 1


def _rounded_up(rows: int) -> int:
    """To three bits: by a quarter at most."""
    step = 1 << max(0, rows.bit_length() - 3)
    return -(-rows // step) * step


def block_bytes(task: Task[Any], sources: Mapping[str, Source], block: Mapping[str, int]) -> int:
    """Bytes of the inputs of one block, decoded."""
    return sum(sources[spec.name].nbytes([block[dim] for dim in spec.dims]) for spec in task.inputs)


def by_rows(dims: Sequence[str]) -> bool:
    """Whether an output with these dimensions is written for whole regions: it has no values within an example."""
    return set(dims) <= {"example", "class"}


def group_bounds(bounds: NDArray[np.int64], most: int) -> list[int]:
    """Leave out bounds so that parts grow to at most `most` rows, where one part is not already longer."""
    kept = [int(bounds[0])]
    for previous, bound in pairwise(bounds.tolist()):
        if bound - kept[-1] > most and previous > kept[-1]:
            kept.append(previous)
    if bounds[-1] > kept[-1]:
        kept.append(int(bounds[-1]))
    return kept


def _choose_tile(
    task: Task[Any], sources: Mapping[str, Source], sizes: Mapping[str, int], chunk: Mapping[str, int]
) -> dict[str, int]:
    """Extent of a block along the dimensions after `example` and `class`: all of it, unless an example is too large."""
    tile = {dim: size for dim, size in sizes.items() if dim not in ("example", "class")}
    for dim in tile:
        block = {**sizes, **tile, "example": chunk["example"]}
        excess = block_bytes(task, sources, block) / BLOCK_BYTES
        if excess > 1:
            step = min(chunk[dim], tile[dim])
            tile[dim] = step * max(1, int(tile[dim] / excess) // step)
    return tile

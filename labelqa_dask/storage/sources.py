"""What every source is: a stored array that is read by rows; what tells that it has changed; identifiers.

A source is opened once, where the run is planned, from metadata only. What a region needs of it (`rows`) is small
enough to send to a worker, and is opened there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.digests import Digests, digest_of_sum, hash_of, stacked

Index = tuple[slice, ...]
Bounds = NDArray[np.int64]
"""First row of each of some ranges in turn, and the end of the last."""
NO_BOUNDS: Bounds = np.empty(0, np.int64)


@dataclass(frozen=True)
class Fingerprint:
    """What tells whether stored data have changed: the objects they consist of, by name, size and version.

    `regions` tells as much of some ranges of rows: digests of the objects that hold them, and of how they are read.
    """

    objects: int
    bytes: int
    digest: str
    regions: Digests = field(default_factory=lambda: stacked([]), compare=False)

    @classmethod
    def of(cls, entries: Iterable[tuple[str, int, str | None]]) -> Self:
        """Of objects in any order: hashes are added up, so however many there are, none is held."""
        count = nbytes = total = 0
        for entry in entries:
            count, nbytes, total = count + 1, nbytes + entry[1], total + hash_of(entry)
        return cls(count, nbytes, digest_of_sum(total))


class Source(Protocol):
    """A stored array whose first dimension are the examples.

    Attributes
    ----------
    place : where it is, for people.
    shape, dtype : of the whole array as it is read, after decoding.
    chunks : elements that are read together, along each dimension; None along rows where they are irregular.
    resolution : step of quantised values, else 0.
    """

    @property
    def place(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def chunks(self) -> tuple[int | None, ...]: ...
    @property
    def resolution(self) -> float: ...

    def rows(self, start: int, stop: int) -> Self:
        """The part of the source that some rows need; indices stay those of the whole."""
        ...

    def row_bounds(self) -> NDArray[np.int64]:
        """Where the rows of this part can be cut so that nothing is read twice, both ends included."""
        ...

    def read(self, index: Index) -> Array:
        """Values at a slice along each dimension."""
        ...

    def seams(self, rows: int) -> NDArray[np.int64]:
        """Rows at which ranges of about so many rows begin wherever the ones before end.

        They follow from what is stored there, so that data which come or go elsewhere do not move them.
        """
        ...

    def fingerprint(self, bounds: Bounds = NO_BOUNDS) -> Fingerprint:
        """What tells whether the data have changed: all of them, and those of the rows between bounds."""
        ...

    def nbytes(self, block: Sequence[int]) -> int:
        """Memory of a block of some shape, once it is read."""
        ...

    def decode_bytes(self, block: Sequence[int]) -> int:
        """Memory that reading a block of some shape takes at its peak, the result included."""
        ...

    def rechunked(self, chunks: Sequence[int | None]) -> Self:
        """The source as it would be in other chunks (None: as they are), to plan with and not to read from."""
        ...


def as_ids(values: Array) -> Array:
    """Identifiers as int64 or uint64, or as an object array of str; times in ISO 8601."""
    if values.dtype.kind in "iu":
        return values.astype(f"{values.dtype.kind}8")
    if values.dtype.kind == "M":
        values = np.datetime_as_string(values)
    return np.array([_as_text(value) for value in values.tolist()], dtype=object)


def _as_text(value: object) -> str:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()

"""The classes that apply to each example, kept as a list per example: what 0 and 1 for every class would say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import Array, kernel


@dataclass(frozen=True)
class LabelSets:
    """An (n, k) array of 0 and 1 by its ones; rows are cut out of it like those of an array.

    Attributes
    ----------
    starts : (n + 1,) int64
        Where the classes of each example start, and the last ones end, in `classes`.
    classes : (m,) int32
        Class ids in 0..k-1, none of them twice for one example.
    k : int
    """

    starts: NDArray[np.int64]
    classes: NDArray[np.int32]
    k: int

    dtype: ClassVar = np.dtype(np.uint8)
    ndim: ClassVar = 2

    @classmethod
    def of_rows(cls, starts: Array, classes: Array, k: int, first_row: int = 0, place: str = "labels") -> Self:
        """Rows of class ids one after the other, checked; `first_row` and `place` name what is wrong."""
        if classes.dtype.kind not in "iu" and len(classes):
            raise InvalidInput(f"class ids must be integers, got {classes.dtype}", place, "Map names to class ids.")
        ids, starts = classes.astype(np.int64), starts.astype(np.int64)
        bad = _first_invalid(starts, ids, np.full(max(k, 1), -1))
        if bad >= 0:
            row = int(np.searchsorted(starts, bad, side="right")) - 1
            where = f"{place}, example {first_row + row:,}"
            if not 0 <= ids[bad] < k:
                raise InvalidInput(
                    f"class {ids[bad]} is outside 0..{k - 1}",
                    where,
                    f"pred_probs has {k} classes: map the labels to its columns.",
                )
            raise InvalidInput(
                f"class {ids[bad]} is listed twice",
                where,
                "Lists hold the ids of the classes that apply; 0 and 1 for each class belong in an array "
                "(in Parquet: lists of fixed size, or one column per class).",
            )
        return cls(starts, ids.astype(np.int32), k)

    @classmethod
    def of_lists(cls, lists: Sequence[Iterable[int]], k: int, first_row: int = 0, place: str = "labels") -> Self:
        """A list of class ids per example."""
        try:
            rows = [list(row) for row in lists]
        except TypeError:
            raise InvalidInput(
                "must be a list of class ids per example, such as [[0, 2], [1]], or an array of 0 and 1", place
            ) from None
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        return cls.of_rows(starts, np.array(list(chain.from_iterable(rows))), k, first_row, place)

    @classmethod
    def of_sparse(cls, matrix: Any) -> Self:
        """A scipy.sparse matrix or array (n, k) of ones."""
        rows = matrix.tocsr()
        if not rows.has_canonical_format or (rows.data != 1).any():
            rows = rows.copy()
            rows.sum_duplicates()
            rows.eliminate_zeros()
        if (rows.data != 1).any():
            bad = int(np.flatnonzero(rows.data != 1)[0])
            row = int(np.searchsorted(rows.indptr, bad, side="right")) - 1
            raise InvalidInput(
                f"value {rows.data[bad]} is neither 0 nor 1", f"labels, example {row:,}, class {rows.indices[bad]:,}"
            )
        return cls(rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.shape[1])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Parts below one another."""
        classes = [part.classes[part.starts[0] : part.starts[-1]] for part in parts]
        ends = np.cumsum([len(ids) for ids in classes])
        starts = [part.starts[1:] - part.starts[-1] + end for part, end in zip(parts, ends, strict=True)]
        return cls(np.concatenate([[0], *starts]), np.concatenate(classes), parts[0].k)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.k

    @property
    def nbytes(self) -> int:
        return int(self.starts.nbytes + (self.starts[-1] - self.starts[0]) * self.classes.itemsize)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: slice | tuple[slice, ...]) -> LabelSets:
        """Some consecutive rows, as a view; all classes of them."""
        rows, *others = index if isinstance(index, tuple) else (index,)
        if any(other.indices(self.k) != (0, self.k, 1) for other in others):
            raise IndexError("label sets are cut by rows alone")
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise IndexError("label sets are cut into consecutive rows alone")
        return LabelSets(self.starts[start : max(start, stop) + 1], self.classes, self.k)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """As 0 and 1, (n, k)."""
        dense = np.zeros(self.shape, np.uint8 if dtype is None else dtype)
        rows = np.repeat(np.arange(len(self)), np.diff(self.starts))
        dense[rows, self.classes[self.starts[0] : self.starts[-1]]] = 1
        return dense


@kernel
def _first_invalid(starts: Any, classes: Any, last_row: Any) -> int:
    """Index of the first class that is not in 0..k-1 or that its row has already; -1 where all are right."""
    for i in range(len(starts) - 1):
        for e in range(starts[i], starts[i + 1]):
            c = classes[e]
            if c < 0 or c >= len(last_row) or last_row[c] == i:
                return e
            last_row[c] = i
    return -1

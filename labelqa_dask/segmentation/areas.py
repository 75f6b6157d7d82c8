"""The worst area of an image: connected pixels of one given and one other predicted class, for a reviewer to go to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import Array, inlined, kernel


@dataclass(frozen=True)
class WorstAreas:
    """The worst area of each of m images: a mergeable state over the parts that images are cut into.

    An area is a set of pixels of one given class and one other predicted class that are connected by their sides; the
    worst one has the largest sum of `1 - s`. Areas end where the parts of an image do.

    Attributes
    ----------
    weight : (m,) float64, that sum; 0 where every pixel is predicted as labelled
    area : (m, 7) int64: top, left, bottom, right (the last two excluded), pixels, given class, predicted class
    """

    weight: NDArray[np.float64]
    area: NDArray[np.int64]

    @classmethod
    def of(cls, labels: Array, predicted: Array, scores: Array, top: int, left: int) -> Self:
        """State of (m, h, w) parts of images that begin at (top, left); pixels whose score is NaN are left out."""
        weight, area = np.zeros(len(labels)), np.full((len(labels), 7), -1)
        for i in range(len(labels)):
            weight[i] = _worst_area(labels[i], predicted[i], scores[i], area[i])
        area[weight > 0, :4] += [top, left, top, left]
        return cls(weight, area)

    def merge(self, other: Self) -> Self:
        worse = other.weight > self.weight
        return type(self)(np.where(worse, other.weight, self.weight), np.where(worse[:, None], other.area, self.area))

    def result(self) -> dict[str, NDArray[np.int64]]:
        """Columns for the list of the worst, -1 where there is no area."""
        names = ("box_top", "box_left", "box_bottom", "box_right", "box_pixels", "given_label", "suggested_label")
        columns = dict(zip(names, self.area.T, strict=True))
        return {name: columns[name] for name in (*names[-2:], *names[:-2])}


# Floor: labels, predicted classes and scores read once; each pixel is compared with the one above and the one before.
# Areas are numbered as they begin and united where they meet; their sums follow the numbers, so that no more than the
# numbers of one row of pixels are kept.


@kernel
def _worst_area(labels: Any, predicted: Any, scores: Any, found: Any) -> float:
    h, w = labels.shape
    above, here = np.full(w, -1), np.full(w, -1)
    parent = np.empty(1024, np.int64)
    weight = np.empty(1024)
    area = np.empty((1024, 7), np.int64)
    used = 0
    for y in range(h):
        for x in range(w):
            given, suggested, score = np.int64(labels[y, x]), np.int64(predicted[y, x]), np.float64(scores[y, x])
            here[x] = -1
            if given == suggested or score != score:
                continue
            for other in (here[x - 1] if x else -1, above[x]):
                if other < 0:
                    continue
                root = _root(parent, other)
                if area[root, 5] != given or area[root, 6] != suggested:
                    continue
                if here[x] < 0:
                    here[x] = root
                elif here[x] != root:
                    _unite(parent, weight, area, min(here[x], root), max(here[x], root))
                    here[x] = min(here[x], root)
            if here[x] < 0:
                if used == len(parent):
                    parent = np.concatenate((parent, np.empty_like(parent)))
                    weight = np.concatenate((weight, np.empty_like(weight)))
                    area = np.concatenate((area, np.empty_like(area)))
                parent[used], weight[used] = used, 0.0
                area[used, 0], area[used, 1], area[used, 2], area[used, 3] = y, x, y + 1, x + 1
                area[used, 4], area[used, 5], area[used, 6] = 0, given, suggested
                here[x] = used
                used += 1
            root = here[x]
            weight[root] += 1 - score
            area[root, 1] = min(area[root, 1], x)
            area[root, 2] = y + 1
            area[root, 3] = max(area[root, 3], x + 1)
            area[root, 4] += 1
        above, here = here, above
    worst = -1
    for i in range(used):
        if parent[i] == i and (worst < 0 or weight[i] > weight[worst]):
            worst = i
    if worst < 0:
        return 0.0
    found[:] = area[worst]
    return max(weight[worst], 1e-300)


@inlined
def _root(parent: Any, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@inlined
def _unite(parent: Any, weight: Any, area: Any, kept: int, other: int) -> None:
    parent[other] = kept
    weight[kept] += weight[other]
    area[kept, 0] = min(area[kept, 0], area[other, 0])
    area[kept, 1] = min(area[kept, 1], area[other, 1])
    area[kept, 2] = max(area[kept, 2], area[other, 2])
    area[kept, 3] = max(area[kept, 3], area[other, 3])
    area[kept, 4] += area[other, 4]

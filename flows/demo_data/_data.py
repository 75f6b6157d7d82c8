"""What every demonstration's data consist of, and what making them reproducible takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Floats: TypeAlias = NDArray[np.float32]
Folds: TypeAlias = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]
Say: TypeAlias = Callable[[str], None]

FOLD_COUNT = 5


@dataclass(frozen=True)
class DemoData:
    """Labels as a careless annotator left them, out-of-sample predictions, and the truth about the labels.

    Attributes
    ----------
    task : str
        Name of the task, such as "multiclass".
    labels : ndarray of int
        Given labels: (n,) for multiclass and regression (there of float), (n, k) of 0 and 1 for multilabel, (n, h, w)
        for segmentation.
    predictions : ndarray of float32
        Out of sample: class probabilities (n, k), or (n, k, h, w) for segmentation; for regression values (n,).
    ids : ndarray of str
        Name of each example, (n,).
    corrupted : ndarray of bool
        True where the example's label was really changed, (n,).
    class_names : tuple of str
        Name of each of the k classes; empty where labels are numbers.
    story : str
        What the data are, what the model is and what was corrupted, in plain words.
    """

    task: str
    labels: NDArray[np.integer | np.floating]
    predictions: Floats
    ids: NDArray[np.str_]
    corrupted: NDArray[np.bool_]
    class_names: tuple[str, ...]
    story: str


class Maker(Protocol):
    """A function that makes the data of one demonstration."""

    def __call__(self, seed: int, *, say: Say = ...) -> DemoData:
        """Make the data.

        Parameters
        ----------
        seed : int
            Seed of everything random; the same seed gives the same arrays.
        say : callable, optional
            Called with a short line at each step.
        """


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Give each purpose random numbers of its own, so that one step never shifts those of another."""
    return np.random.default_rng([seed, *purpose.encode()])


def folds_of(count: int, seed: int) -> Folds:
    """Training and held-out rows of each fold: every row is held out once."""
    from sklearn.model_selection import KFold

    return list(KFold(FOLD_COUNT, shuffle=True, random_state=seed).split(np.empty(count)))


def one_thread() -> AbstractContextManager[Any]:
    """Keep linear algebra to one thread: bits free of the number of cores, and quicker on arrays so small."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limits

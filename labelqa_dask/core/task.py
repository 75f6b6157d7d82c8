"""What a method is: the arrays it reads, the statistics it needs, and how a block of them is scored.

A method states these as a `Task`; engines (`blocks` for NumPy, `graph` for Dask, the pipelines for stored data)
run any task without knowing its mathematics.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from labelqa_dask.core.charts import Chart
from labelqa_dask.core.class_scores import ClassPairs, ClassScores
from labelqa_dask.core.errors import InvalidConfig, nearest
from labelqa_dask.core.kernels import Array, precision_of
from labelqa_dask.core.settings import explain

Stats = Mapping[str, Any]


class Params(BaseModel):
    """Base of the methods' parameter models: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ParamsT = TypeVar("ParamsT", bound=Params)


@runtime_checkable
class State(Protocol):
    """A statistic that merges: raw sums inside, dividing and clipping only in `result`.

    States are frozen dataclasses whose fields are arrays or numbers; `merge` is associative, so blocks may be
    grouped in any way.
    """

    def merge(self, other: Self) -> Self:
        """The state of both parts together."""
        ...

    def result(self) -> Any:
        """The statistic that the raw sums stand for."""
        ...


StateT = TypeVar("StateT", bound=State)


@dataclass(frozen=True)
class ArraySpec:
    """An array that a task reads or writes, by name, named dimensions and the kind of its values.

    Labels are class ids; indicators are labels that say 0 or 1 for each class, and may be `LabelSets` in memory; values
    are numbers of any kind, labels and predictions alike. `annotations` are
    `Annotations`: any number of labels per example.
    """

    name: str
    dims: tuple[str, ...]
    kind: Literal["labels", "indicators", "probabilities", "values", "scores", "issues", "annotations", "counts"]
    accumulated: bool = False

    def score_dtype(self, predictions: np.dtype[Any]) -> np.dtype[Any]:
        """Type of this output: what is accumulated over a dimension is float64, other scores follow the predictions."""
        if self.kind == "issues":
            return np.dtype(np.bool_)
        if self.kind in ("labels", "counts"):
            return np.dtype(np.int64)
        return np.dtype(np.float64) if self.accumulated else precision_of(predictions)


@dataclass(frozen=True)
class Block:
    """A piece of a task's input arrays, and where in the whole it starts.

    Attributes
    ----------
    arrays : mapping of str to ndarray
        One array per input of the task, equal in extent along shared dimensions.
    origin : mapping of str to int
        Index in the whole data of the block's first element along each dimension.
    chunk : mapping of str to int
        Number of the block along dimensions where its origin is not known.
    resolution : float
        Step of quantised probabilities (0 where they were stored as floats); widens the check of row sums.
    sizes : mapping of str to int
        Extent of the whole data along each dimension where it is known.
    kept : dict, optional
        What earlier walks over this block have left for later ones, where memory is there for it.
    """

    arrays: Mapping[str, Array]
    origin: Mapping[str, int] = field(default_factory=dict)
    resolution: float = 0.0
    chunk: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    kept: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def where(self, name: str, **index: int) -> str:
        """Name an element of the whole data by its index in this block."""
        places = (
            f"{dim} {i:,} of chunk {self.chunk[dim]:,}"
            if dim in self.chunk
            else f"{dim} {i + self.origin.get(dim, 0):,}"
            for dim, i in index.items()
        )
        return ", ".join([name, *places])

    def examples(self, start: int, stop: int) -> Block:
        """The part of this block that holds the examples from `start` to `stop` of the whole data."""
        first = self.origin.get("example", 0)
        start, stop = max(start, first), max(start, stop)
        if start == first and stop >= first + len(next(iter(self.arrays.values()))):
            return self
        arrays = {name: array[start - first : stop - first] for name, array in self.arrays.items()}
        return replace(self, arrays=arrays, origin={**self.origin, "example": start}, kept=None)


@dataclass(frozen=True)
class Pass(Generic[ParamsT]):
    """One walk over the input that reduces it to a state.

    `of(block, params, stats)` makes the `state` of one block; `stats` holds the results of the passes before, None for
    those that were not needed. `examples(params, stats, n)` tells which of all n examples are to be read: a range, or
    None where the passes before have settled everything. Without it all are read. `by_row` tells that the state, and
    the scores that rest on it, depend on the numbers of the rows in the whole data, not on what they hold alone.
    `settle(state, params, stats)` makes of the state of all blocks what scores rest on; without it, that is its result.
    """

    name: str
    state: type[State]
    of: Callable[[Block, ParamsT, Stats], State]
    examples: Callable[[ParamsT, Stats, int], range | None] | None = None
    by_row: bool = False
    settle: Callable[[Any, ParamsT, Stats], Any] | None = None

    def needed(self, params: ParamsT, stats: Stats, n: int) -> range | None:
        """The examples to read of all n; None where the pass is not needed."""
        return range(n) if self.examples is None else self.examples(params, stats, n)

    def reduce(self, block: Block, params: ParamsT, stats: Stats) -> State | None:
        """The state of what is needed of a block; None where that is nothing."""
        if self.examples is None:
            return self.of(block, params, stats)
        n = len(next(iter(block.arrays.values())))
        start = block.origin.get("example", 0)
        needed = self.examples(params, stats, block.sizes.get("example", start + n))
        if needed is None or needed.stop <= start or start + n <= needed.start:
            return None
        return self.of(block.examples(needed.start, needed.stop), params, stats)

    def result(self, state: State | None, params: ParamsT, stats: Stats) -> Any:
        """What scores rest on, from the state of all blocks; None where the pass was not needed."""
        if state is None:
            return None
        return state.result() if self.settle is None else self.settle(state, params, stats)


def merge_states(left: StateT | None, right: StateT | None) -> StateT | None:
    """Both parts together, where there are two."""
    if left is None or right is None:
        return right if left is None else left
    return left.merge(right)


@dataclass(frozen=True)
class ExampleImages:
    """One example of image data, as it was labelled, predicted and scored.

    Attributes
    ----------
    given, predicted : (h, w) int
        Class ids as labelled and as the model sees them; negative where ignored.
    pixel_scores : (h, w) float
        Label quality per pixel, NaN where not scored.
    """

    given: NDArray[np.integer[Any]]
    predicted: NDArray[np.integer[Any]]
    pixel_scores: NDArray[np.floating[Any]]


class Task(ABC, Generic[ParamsT]):
    """A method: one instance per module, named `TASK`, found by the module's name.

    Class attributes
    ----------------
    params_model : the method's parameters, each name and default in this one place.
    inputs : the arrays read. The first one holds the labels; the last one has every dimension. The first dimension
        is always `example`; `class` is never split; further ones are split where an example is too large.
    outputs : the arrays that are always written, dimensions in input order.
    ranked_by : the output by which examples are ranked, one score per example.
    class_unit : what `class_scores` counts ("examples", "pixels").
    fewest_classes : the number of classes below which the method has no meaning.
    told_where : what is told only where a parameter has some value, `issues` and `annotators`: its name and the value.
    """

    params_model: ClassVar[type[Params]]
    inputs: ClassVar[tuple[ArraySpec, ...]]
    outputs: ClassVar[tuple[ArraySpec, ...]]
    ranked_by: ClassVar[str]
    class_unit: ClassVar[str] = "examples"
    fewest_classes: ClassVar[int] = 2
    told_where: ClassVar[Mapping[str, tuple[str, Any]]] = {}

    @property
    def name(self) -> str:
        return type(self).__module__.split(".")[1]

    @property
    def dims(self) -> tuple[str, ...]:
        """Every dimension of the input, in the order of the array that has them all."""
        return self.inputs[-1].dims

    def input(self, kind: str) -> ArraySpec:
        """The input of a kind, such as the one that holds the probabilities."""
        return next(spec for spec in self.inputs if spec.kind == kind)

    def params(self, **settings: Any) -> ParamsT:
        """Validated parameters; unknown or impossible ones are refused by name."""
        try:
            return self.params_model(**settings)  # type: ignore[return-value]
        except ValidationError as error:
            raise explain(error, self.params_model, f"{self.name} params") from None

    def passes(self, params: ParamsT) -> tuple[Pass[ParamsT], ...]:
        """The global statistics that scoring needs, in order."""
        return ()

    def scores_unseen(self, params: ParamsT) -> bool:
        """Whether the global statistics can score examples that they do not count."""
        return True

    def written(self, params: ParamsT) -> tuple[ArraySpec, ...]:
        """The arrays written with these parameters."""
        return self.outputs

    def held_bytes(self, params: ParamsT, n: int) -> int:
        """Memory in a worker of what is there for all blocks: statistics that grow with n examples, large libraries."""
        return 0

    def multiples(self, params: ParamsT) -> Mapping[str, int]:
        """Dimensions along which data come in cells, and how long these are: sizes and blocks hold whole ones."""
        return {}

    @abstractmethod
    def score(self, block: Block, params: ParamsT, stats: Stats) -> dict[str, Any]:
        """Score one block.

        Returns one entry per array written: an array, or, where the array lacks a dimension along which blocks are
        cut, a state that merges across those blocks and whose result is the array. Further entries are for
        `class_scores` and `class_pairs`.
        """

    def statistics(self, params: ParamsT, stats: Stats) -> dict[str, Any]:
        """What readers are told of the global statistics: numbers, and lists of numbers, by name."""
        return {name: np.asarray(result).tolist() for name, result in stats.items()}

    def remarks(self, params: ParamsT, stats: Stats) -> tuple[str, ...]:
        """Sentences that a reader of the scores must not miss, such as that a tolerance was not met."""
        return ()

    def charts(self, params: ParamsT, stats: Stats) -> tuple[Chart, ...]:
        """What the report shows of the whole data, from the global statistics."""
        return ()

    @abstractmethod
    def class_scores(self, block: Block, scores: Mapping[str, Any]) -> ClassScores | None:
        """Counts and scores per class as labelled, from a block and its outputs; None where labels are not classes."""

    def class_pairs(self, scores: Mapping[str, Any]) -> ClassPairs | None:
        """Label issues per given and suggested class, from a block's outputs; None where none were looked for."""
        return None

    def details(self, block: Block, scores: Mapping[str, Any]) -> Mapping[str, Mapping[str, Array]]:
        """Tables with rows of their own, by name: columns of equal length, among them the `row` of the example."""
        return {}

    def tables(self, params: ParamsT, stats: Stats, first: Callable[[], Block]) -> Mapping[str, Mapping[str, Array]]:
        """Tables that follow from the global statistics, by name; `first` reads the block of the first example."""
        return {}

    def crowd(self, stats: Stats) -> dict[str, Any]:
        """What readers are told of how annotators agree, where there are several: numbers and lists by name."""
        return {}

    def describe(
        self, block: Block, scores: Mapping[str, Any], examples: NDArray[np.intp]
    ) -> Mapping[str, Array] | State:
        """Further columns of the list of the worst, for some examples of a block.

        Where examples are cut into blocks, a state whose result are the columns. In whole numbers, -1 stands for none.
        """
        return {}

    def preview(self, block: Block, params: ParamsT) -> ExampleImages | None:
        """Images of a block's only example; None where examples are not images."""
        return None


@cache
def task_names() -> tuple[str, ...]:
    """Every method of the package: its public modules are the registry."""
    modules = pkgutil.iter_modules([str(Path(__file__).parents[1])])
    return tuple(sorted(module.name for module in modules if module.name not in ("core", "storage")))


def get_task(name: str) -> Task[Any]:
    """The task of a method by its name, such as ``segmentation``."""
    if name not in task_names():
        raise InvalidConfig(f"unknown task {name!r}", "task", nearest(name, task_names()))
    module = importlib.import_module(f"labelqa_dask.{name}")
    task: Task[Any] = module.TASK
    return task

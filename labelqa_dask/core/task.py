"""What a method is: the arrays it reads, the statistics it needs, and how a block of them is scored.

A method states these as a `Task`; engines (`blocks` for NumPy, `graph` for Dask, the pipelines for stored data)
run any task without knowing its mathematics.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from labelqa_dask.core.class_scores import ClassScores
from labelqa_dask.core.errors import InvalidConfig, nearest
from labelqa_dask.core.kernels import Array
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


@dataclass(frozen=True)
class ArraySpec:
    """An array that a task reads or writes, by name, named dimensions and the kind of its values.

    `annotations` are `Annotations`: any number of labels per example.
    """

    name: str
    dims: tuple[str, ...]
    kind: Literal["labels", "probabilities", "scores", "annotations", "counts"]
    accumulated: bool = False

    def score_dtype(self, predictions: np.dtype[Any]) -> np.dtype[Any]:
        """Type of an output: what is accumulated over a dimension is float64, other scores follow the predictions."""
        if self.kind in ("labels", "counts"):
            return np.dtype(np.int64)
        return np.dtype(np.float64 if self.accumulated or predictions.itemsize >= 8 else np.float32)


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
    """

    arrays: Mapping[str, Array]
    origin: Mapping[str, int] = field(default_factory=dict)
    resolution: float = 0.0
    chunk: Mapping[str, int] = field(default_factory=dict)

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


@dataclass(frozen=True)
class Pass(Generic[ParamsT]):
    """One walk over the input that reduces it to a state.

    `of(block, params, stats)` makes the `state` of one block; `stats` holds the results of the passes before.
    """

    name: str
    state: type[State]
    of: Callable[[Block, ParamsT, Stats], State]


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
    outputs : the arrays written with the default parameters, dimensions in input order.
    ranked_by : the output by which examples are ranked, one score per example.
    class_unit : what `class_scores` counts ("examples", "pixels").
    """

    params_model: ClassVar[type[Params]]
    inputs: ClassVar[tuple[ArraySpec, ...]]
    outputs: ClassVar[tuple[ArraySpec, ...]]
    ranked_by: ClassVar[str]
    class_unit: ClassVar[str] = "examples"

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

    def outputs_of(self, params: ParamsT) -> tuple[ArraySpec, ...]:
        """The arrays written with some parameters."""
        return self.outputs

    def params(self, **settings: Any) -> ParamsT:
        """Validated parameters; unknown or impossible ones are refused by name."""
        try:
            return self.params_model(**settings)  # type: ignore[return-value]
        except ValidationError as error:
            raise explain(error, self.params_model, f"{self.name} params") from None

    def passes(self, params: ParamsT) -> tuple[Pass[ParamsT], ...]:
        """The global statistics that scoring needs, in order."""
        return ()

    @abstractmethod
    def score(self, block: Block, params: ParamsT, stats: Stats) -> dict[str, Array | State]:
        """Score one block.

        Returns one entry per output: an array, or, where the output lacks a dimension along which blocks are cut,
        a state that merges across those blocks and whose result is the array.
        """

    @abstractmethod
    def class_scores(self, block: Block, scores: Mapping[str, Any]) -> ClassScores | None:
        """Counts and scores per class as labelled, from a block and its outputs; None where labels are not classes."""

    def describe(self, block: Block, examples: NDArray[np.intp]) -> dict[str, Array]:
        """Further columns of the list of the worst, for some examples of a block."""
        return {}

    def preview(self, block: Block) -> ExampleImages | None:
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

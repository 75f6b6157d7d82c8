"""Checks on shapes and types, before any value is read: the same for arrays in memory, lazy ones and stored ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.task import ArraySpec, Task


@dataclass(frozen=True)
class ArrayInfo:
    """What is known of an array without reading it; `place` names it in errors (a location, or just its name)."""

    shape: tuple[float, ...]
    dtype: np.dtype[Any]
    place: str


def check_layout(task: Task[Any], infos: Mapping[str, ArrayInfo]) -> dict[str, int]:
    """Check the inputs of a task against its specs and each other.

    Returns
    -------
    dict of str to int
        The size of each dimension. A size that is not known (a lazy array of unknown length) is left out.

    Raises
    ------
    InvalidInput
        Naming the array, its shape or type, and the mend.
    """
    for spec in task.inputs:
        info = infos[spec.name]
        _check_type(spec, info)
        if len(info.shape) != len(spec.dims):
            raise InvalidInput(
                f"{spec.name} must have {len(spec.dims)} dimensions ({', '.join(spec.dims)}), got shape {info.shape}",
                info.place,
            )
        if 0 in info.shape:
            raise InvalidInput(f"{spec.name} is empty: its shape is {info.shape}", info.place)
    sizes = common_sizes(task, infos)
    if sizes.get("class", task.fewest_classes) < task.fewest_classes:
        place = infos[task.input("probabilities").name].place
        raise InvalidInput(
            "there is only one class",
            place,
            "For a binary model that stores one probability p, stack 1 - p and p along the class axis.",
        )
    return sizes


def common_sizes(task: Task[Any], infos: Mapping[str, ArrayInfo]) -> dict[str, int]:
    """The size of each dimension, unknown ones left out; refused where the inputs differ."""
    sizes: dict[str, int] = {}
    first: dict[str, str] = {}
    for spec in task.inputs:
        info = infos[spec.name]
        for dim, size in zip(spec.dims, info.shape, strict=True):
            if math.isnan(size):
                continue
            if sizes.setdefault(dim, int(size)) != size:
                raise InvalidInput(
                    f"{spec.name} has {int(size):,} along {dim!r} but {first[dim]} has {sizes[dim]:,}",
                    info.place,
                    "Both must describe the same examples, in the same order.",
                )
            first.setdefault(dim, spec.name)
    return sizes


def check_multiples(multiples: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """Check that sizes are multiples of what a task asks for."""
    for dim, multiple in multiples.items():
        if sizes.get(dim, 0) % multiple:
            raise InvalidInput(
                f"{sizes[dim]:,} along {dim!r} is not divisible by {multiple}",
                "downsample",
                "Choose a factor that divides height and width, or 1.",
            )


def _check_type(spec: ArraySpec, info: ArrayInfo) -> None:
    kind = info.dtype.kind
    if spec.kind == "labels" and kind not in "iu":
        raise InvalidInput(
            f"{spec.name} must be integers 0..k-1, got {info.dtype}",
            info.place,
            "Convert them, for example with labels.astype(int)." if kind in "fb" else "Map each name to its class id.",
        )
    if spec.kind == "indicators" and kind not in "biu":
        raise InvalidInput(
            f"{spec.name} must be 0 or 1 for each class, got {info.dtype}",
            info.place,
            "Convert them, for example with labels.astype(bool).",
        )
    if spec.kind == "values" and kind not in "iuf":
        raise InvalidInput(f"{spec.name} must be numbers, got {info.dtype}", info.place, "Convert them to floats.")
    if spec.kind == "probabilities" and kind != "f":
        raise InvalidInput(
            f"{spec.name} must be floating point, got {info.dtype}",
            info.place,
            "Quantised values need their scale: the CF attribute scale_factor in storage, or (for example) "
            "values / 255 in memory."
            if kind in "iu"
            else "",
        )

"""The forms in which annotations come, wide and long, made into one: `Annotations`.

Axes: n = examples, m = annotators, A = annotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labelqa_dask.core import blocks
from labelqa_dask.core.errors import InvalidInput, nearest
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.ragged import Annotations
from labelqa_dask.core.task import Block
from labelqa_dask.multiannotator import kernels

LONG_COLUMNS = ("task", "annotator", "label")
NAME = "labels_multiannotator"


# Values of a wide form that are turned and compressed at a time: they stay in a core's cache.
_WIDE_BLOCK = 1 << 17


@dataclass(frozen=True, eq=False)
class Crowd:
    """Annotations in memory, and what their examples and annotators are called.

    Attributes
    ----------
    annotations : Annotations
    examples : index of the n examples
    annotators : index of the m annotators
    order : (A,) row of the long form that each annotation came from; None for the wide form
    """

    annotations: Annotations
    examples: pd.Index[Any]
    annotators: pd.Index[Any]
    order: NDArray[np.int64] | None = None


def read(labels: Any, columns: Sequence[str] | None, examples: pd.Index[Any] | None = None) -> Crowd:
    """Annotations of a wide array or frame, or, where `columns` are given, of a long frame.

    Raises
    ------
    InvalidInput
        Labels that are no class numbers, an annotator twice on one example, what is missing in a long form.
    """
    if isinstance(labels, pd.DataFrame) and columns is not None:
        return read_long(labels, columns, examples)
    if columns is not None:
        raise InvalidInput(
            f"columns are given, but it is a {type(labels).__name__}",
            NAME,
            "Columns name those of a long DataFrame; leave them out for the wide form.",
        )
    if isinstance(labels, pd.DataFrame):
        return read_wide(_wide_values(labels), labels.index, labels.columns)
    if isinstance(labels, np.ndarray):
        return read_wide(labels)
    raise InvalidInput(
        f"must be an array or a DataFrame, got {type(labels).__name__}",
        NAME,
        "Wide: a row per example, a column per annotator. Long: a DataFrame, with columns=(example, annotator, label).",
    )


def read_wide(
    values: Array,
    examples: pd.Index[Any] | None = None,
    annotators: pd.Index[Any] | None = None,
) -> Crowd:
    """Annotations of (n, m) labels, NaN where an annotator did not label an example."""
    if values.ndim != 2:
        raise InvalidInput(
            f"must have 2 dimensions (examples, annotators), got shape {values.shape}",
            NAME,
            "A long DataFrame needs columns=(example, annotator, label).",
        )
    if values.dtype.kind not in "fiu":
        raise InvalidInput(
            f"labels must be class numbers 0..k-1, or NaN where there is none, got {values.dtype}",
            NAME,
            "Map each class name to its number.",
        )
    n, m = values.shape
    if 0 in values.shape:
        raise InvalidInput(f"is empty: its shape is {values.shape}", NAME)
    examples = pd.RangeIndex(n) if examples is None else examples
    annotators = pd.RangeIndex(m) if annotators is None else annotators
    whole = blocks.Whole({"wide": values}, {"example": n}, rows=max(1, _WIDE_BLOCK // m))
    parts = list(whole.map_blocks(_compress, range(n)))
    for start, bad, *_ in parts:
        if bad >= 0:
            row = values[start + bad].astype(np.float64)
            j = int(np.flatnonzero(~np.isnan(row) & ((row < 0) | (row != np.floor(row)) | (row >= 2**31 - 1)))[0])
            raise _not_a_class(row[j], examples[start + bad], annotators[j])
    counts, annotator, label = (np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[2:])
    starts = np.concatenate([[0], counts.cumsum()])
    return Crowd(Annotations(starts, annotator, label, np.asarray(annotators)), examples, annotators)


def _compress(block: Block) -> tuple[int, int, Array, Array, Array]:
    """First row, first row of the block that holds no class number or -1, and labels per row, annotators and labels."""
    wide = np.ascontiguousarray(block["wide"], np.float32 if block["wide"].dtype == np.float32 else np.float64)
    counts = np.zeros(len(wide), np.int64)
    annotator, label = np.empty(wide.size, np.int32), np.empty(wide.size, np.int32)
    size = kernels.compress_wide(wide, counts, annotator, label)
    bad, size = (-1, size) if size >= 0 else (-1 - size, 0)
    return block.origin["example"], bad, counts, annotator[:size].copy(), label[:size].copy()


def read_long(
    frame: pd.DataFrame,
    columns: Sequence[str],
    examples: pd.Index[Any] | None = None,
    annotators: pd.Index[Any] | None = None,
) -> Crowd:
    """Annotations of rows (example, annotator, label) in any order.

    Without `examples` and `annotators`, they are those that occur, in ascending order.
    """
    example_column, annotator_column, label_column = check_columns(frame.columns, columns)
    for name in columns:
        if frame[name].isna().any():
            row = frame.index[int(np.flatnonzero(frame[name].isna())[0])]
            raise InvalidInput(f"{name} is missing", f"{NAME}, row {row}", "Leave out rows without a label.")
    label = as_class_numbers(frame[label_column], frame[example_column], frame[annotator_column])
    if examples is None:
        example, found = pd.factorize(frame[example_column], sort=True)
        examples = pd.Index(found)
    else:
        example = examples.get_indexer(pd.Index(frame[example_column]))
        if (example < 0).any():
            unknown = frame[example_column].to_numpy()[example < 0]
            raise InvalidInput(
                f"{len(unknown):,} annotations are of examples that pred_probs has not, the first of "
                f"{name_of(unknown[0])}",
                NAME,
                "Leave them out, or give pred_probs of these examples.",
            )
    if annotators is None:
        annotator, found = pd.factorize(frame[annotator_column], sort=True)
        annotators = pd.Index(found)
    else:
        annotator = annotators.get_indexer(pd.Index(frame[annotator_column]))
    annotations, order = Annotations.group(example, annotator, label, len(examples), np.asarray(annotators))
    check_no_duplicates(annotations, examples)
    return Crowd(annotations, examples, annotators, order)


def check_columns(present: pd.Index[Any], columns: Sequence[str]) -> tuple[str, str, str]:
    """The columns of a long form: example, annotator and label."""
    if len(columns) != 3:
        raise InvalidInput(f"columns must name three, got {tuple(columns)!r}", NAME, "(example, annotator, label).")
    for name in columns:
        if name not in present:
            raise InvalidInput(f"has no column {name!r}", NAME, nearest(str(name), map(str, present)))
    example, annotator, label = columns
    return example, annotator, label


def as_class_numbers(label: pd.Series[Any], example: pd.Series[Any], annotator: pd.Series[Any]) -> NDArray[np.int64]:
    """Labels of any number type, checked to be whole and not negative."""
    if not pd.api.types.is_numeric_dtype(label.dtype) or pd.api.types.is_bool_dtype(label.dtype):
        raise InvalidInput(
            f"labels must be class numbers 0..k-1, got {label.dtype}", NAME, "Map each class name to its number."
        )
    values = label.to_numpy(np.float64) if label.dtype.kind == "f" else label.to_numpy(np.int64)
    bad = np.flatnonzero(~((values >= 0) & (values < 2**31 - 1) & (values == np.floor(values))))
    if len(bad):
        raise _not_a_class(values[bad[0]], example.iloc[bad[0]], annotator.iloc[bad[0]])
    return values.astype(np.int64)


def check_no_duplicates(annotations: Annotations, examples: pd.Index[Any]) -> None:
    """Refuse an annotator who labelled one example twice."""
    same = (np.diff(annotations.annotator) == 0) & (np.diff(annotations.example) == 0)
    if same.any():
        first = int(np.flatnonzero(same)[0])
        raise InvalidInput(
            f"{int(same.sum()):,} labels are by an annotator who labelled the same example already, the first by "
            f"{name_of(annotations.ids[annotations.annotator[first]])} of "
            f"{name_of(examples[annotations.example[first]])}",
            NAME,
            "Keep one label of each annotator and example, for example with drop_duplicates.",
        )


def models_first(values: Any, ensemble: bool, name: str) -> Any:
    """Predictions of a model or an ensemble, of NumPy or Dask, as (n, p, k)."""
    wanted = "(models, examples, classes)" if ensemble else "(examples, classes)"
    if values.ndim != (3 if ensemble else 2):
        mend = {2: "This one is for ensembles of models.", 3: "There is another function for ensembles of models."}
        raise InvalidInput(
            f"must have the dimensions {wanted}, got shape {values.shape}", name, mend.get(values.ndim, "")
        )
    if values.dtype.kind != "f":
        raise InvalidInput(f"must be floating point, got {values.dtype}", name)
    return values.transpose(1, 0, 2) if ensemble else values[:, None, :]


def check_labels(crowd: Crowd, k: int) -> None:
    """Refuse labels outside 0..k-1 and examples without any."""
    annotations = crowd.annotations
    bad = kernels.first_invalid(annotations.starts, annotations.annotator, annotations.label, k)
    if bad >= 0:
        i = int(np.searchsorted(annotations.starts, bad, side="right")) - 1
        highest = int(annotations.label.max())
        raise InvalidInput(
            f"label {annotations.label[bad]} is outside 0..{k - 1}",
            f"{NAME}, example {name_of(crowd.examples[i])}, "
            f"annotator {name_of(crowd.annotators[annotations.annotator[bad]])}",
            f"pred_probs needs at least {highest + 1} columns: classes may have been lost in the consensus labels that "
            "the model was trained on.",
        )
    empty = np.flatnonzero(np.diff(annotations.starts) == 0)
    if len(empty):
        raise InvalidInput(
            f"{len(empty):,} examples have no label, the first is {name_of(crowd.examples[empty[0]])}",
            NAME,
            "Leave them out, here and in pred_probs.",
        )


def check_crowd(given: NDArray[np.int64], sizes: NDArray[np.int64], annotators: pd.Index[Any]) -> None:
    """Refuse annotators without a label, a crowd of one, and one in which no two labelled the same example.

    `given` (m,) are annotations per annotator; `sizes` examples by their number of annotations.
    """
    silent = np.flatnonzero(given == 0)
    if len(silent):
        raise InvalidInput(
            f"{len(silent):,} annotators labelled no example, the first is {name_of(annotators[silent[0]])}",
            NAME,
            "Leave them out.",
        )
    if len(annotators) <= 1 or not sizes[2:].any():
        what = "there is only one annotator" if len(annotators) <= 1 else "every example has one annotation only"
        raise InvalidInput(
            f"{what}, so annotators cannot be compared", NAME, "Score the labels with labelqa_dask.multiclass instead."
        )


def spread(annotations: Annotations, values: Array, examples: pd.Index[Any], annotators: Any = None) -> pd.DataFrame:
    """Values of annotations (A,) as a wide frame (n, m), NaN where there is no annotation."""
    wide = np.full((len(annotations), len(annotations.ids)), np.nan)
    wide[annotations.example, annotations.annotator] = values
    names = [f"quality_annotator_{annotator}" for annotator in (annotations.ids if annotators is None else annotators)]
    return pd.DataFrame(wide, index=examples, columns=names, copy=False)


def name_of(identifier: Any) -> str:
    """An identifier as it is written in code, whatever library its type is of."""
    return repr(identifier.item() if isinstance(identifier, np.generic) else identifier)


def to_wide(frame: pd.DataFrame, columns: Sequence[str] = LONG_COLUMNS) -> pd.DataFrame:
    """The wide form of a long one: a row per example, a column per annotator, both ascending, NaN between."""
    example, annotator, label = check_columns(frame.columns, columns)
    repeated = frame.duplicated([example, annotator])
    if repeated.any():
        first = frame.loc[repeated].iloc[0]
        raise InvalidInput(
            f"{int(repeated.sum()):,} labels are by an annotator who labelled the same example already, the first by "
            f"{name_of(first[annotator])} of {name_of(first[example])}",
            NAME,
            "Keep one label of each annotator and example, for example with drop_duplicates.",
        )
    return frame.pivot(index=example, columns=annotator, values=label).rename_axis(index=None, columns=None)


def _wide_values(frame: pd.DataFrame) -> Array:
    if all(isinstance(dtype, np.dtype) and dtype.kind in "fiu" for dtype in frame.dtypes):
        return frame.to_numpy()
    try:
        return frame.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"labels must be class numbers 0..k-1, or missing ({error})",
            NAME,
            "Map each class name to its number; a long DataFrame needs columns=(example, annotator, label).",
        ) from None


def _not_a_class(value: float, example: Any, annotator: Any) -> InvalidInput:
    return InvalidInput(
        f"label {value:g} is no class number",
        f"{NAME}, example {name_of(example)}, annotator {name_of(annotator)}",
        "Labels are whole numbers 0..k-1, and NaN where there is none.",
    )

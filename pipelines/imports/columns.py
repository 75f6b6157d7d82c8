"""Which columns of a table are the label, the probabilities, the prediction and the identifier, and what classes are
called. Pure: decided from the names that were asked for, and from the first rows as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidConfig, nearest

_LABELS = ("label", "labels", "given_label", "y_true", "true_label", "target", "class", "y")
_PREDICTIONS = ("prediction", "predictions", "predicted", "y_pred", "pred", "predicted_value")
_IDS = ("id", "ids", "key", "uuid", "example_id", "image_id", "filename", "file_name", "file", "path", "image", "name")
_PREFIXES = re.compile(
    r"(p|prob|probs|proba|probability|pred_prob|pred_probs|pred_proba|pred|score|softmax)(?=[\W_\d])", re.IGNORECASE
)
_SEPARATORS = "_.-: /"
_SUM_TOLERANCE = 0.01


@dataclass(frozen=True)
class Asked:
    """Columns by name, where the user gave them; `probabilities` is a list, or one prefix."""

    label: str | None = None
    probabilities: tuple[str, ...] = ()
    prediction: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Columns:
    """Columns of a table by what they are.

    Attributes
    ----------
    probabilities : in class order; empty for regression.
    prediction : of regression, else None.
    classes : what the classes are called in the label column, in class order; empty for regression.
    by_name : whether labels are these names, rather than the classes' numbers.
    integer_ids : whether identifiers are whole numbers, rather than text.
    """

    label: str
    probabilities: tuple[str, ...]
    prediction: str | None
    id: str | None
    classes: tuple[str, ...]
    by_name: bool
    integer_ids: bool

    @property
    def kept(self) -> tuple[str, ...]:
        """All columns, in the order they are written."""
        given = (self.id, self.label, *self.probabilities, self.prediction)
        return tuple(name for name in given if name is not None)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Columns of floats."""
        return self.probabilities or (self.label, self.prediction or "")

    def class_ids(self) -> dict[str, int]:
        """Class id of each text that a label may be; whole numbers may be written as floats."""
        ids = {name: i for i, name in enumerate(self.classes)}
        return {f"{name}.0": i for name, i in ids.items() if _is_integer(name)} | ids


def choose_columns(sample: pa.Table, asked: Asked) -> Columns:
    """Decide from the first rows of a table, all of them text.

    Raises
    ------
    InvalidConfig
        For a column that is not there, and where it cannot be told what is what.
    """
    names = sample.column_names
    for name in (asked.label, asked.prediction, asked.id):
        if name is not None and name not in names:
            raise InvalidConfig(f"there is no column {name!r}", "columns", nearest(name, names))
    label = asked.label or _first_named(names, _LABELS)
    if label is None:
        raise InvalidConfig(f"none of {', '.join(names)} is named as a label is", "columns", "Give --label NAME.")
    identifier = asked.id or _first_named([name for name in names if name != label], _IDS)
    integer_ids = identifier is not None and whole_numbers(sample[identifier]) is not None
    probabilities = _asked_probabilities(names, asked.probabilities)
    candidates = [name for name in names if name not in (label, asked.id, asked.prediction)]
    if not probabilities and asked.prediction is None:
        probabilities = _find_probabilities(sample, candidates)
    if probabilities:
        identifier = None if identifier in probabilities else identifier
        classes, by_name = _name_classes(sample[label], label, probabilities)
        return Columns(label, probabilities, None, identifier, classes, by_name, integer_ids)
    prediction = asked.prediction or _first_named(candidates, _PREDICTIONS)
    if prediction is None or (asked.prediction is None and _as_floats(sample[prediction]) is None):
        raise InvalidConfig(
            f"no columns of {', '.join(names)} hold probabilities that sum to 1, and none is named as a prediction is",
            "columns",
            "Give --probabilities with their names (p0,p1,…) or their common prefix; for regression, --prediction.",
        )
    return Columns(label, (), prediction, identifier, (), False, integer_ids)


def whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Text as int64, where each is a whole number just as it would be printed; else None."""
    try:
        values = pc.cast(column, pa.int64())
    except pa.ArrowInvalid:
        return None
    return values if pc.all(pc.equal(pc.cast(values, pa.string()), column)).as_py() is not False else None


def _first_named(names: Sequence[str], known: Sequence[str]) -> str | None:
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    return next((by_lower[word] for word in known if word in by_lower), None)


def _asked_probabilities(names: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    if len(asked) == 1 and asked[0] not in names:
        prefix = asked[0].removesuffix("*")
        found = tuple(name for name in names if name.startswith(prefix))
        if len(found) < 2:
            what = f"{len(found)} columns begin with {prefix!r}"
            raise InvalidConfig(what, "--probabilities", nearest(prefix, names))
        return found
    for name in asked:
        if name not in names:
            raise InvalidConfig(f"there is no column {name!r}", "--probabilities", nearest(name, names))
    if len(set(asked)) < len(asked) or len(asked) == 1:
        raise InvalidConfig("needs two columns or more, each once", "--probabilities")
    return tuple(asked)


def _find_probabilities(sample: pa.Table, names: Sequence[str]) -> tuple[str, ...]:
    """Columns that sum to 1 in every row: those with a prefix of probabilities, else all that lie in [0, 1]."""
    shares = {}
    for name in names:
        values = _as_floats(sample[name])
        if values is not None and len(values) and (np.abs(values - 0.5) <= 0.5 + _SUM_TOLERANCE).all():
            shares[name] = values
    groups: dict[str, list[str]] = {}
    for name in shares:
        found = _PREFIXES.match(name)
        if found:
            groups.setdefault(found[0].lower(), []).append(name)
    for group in [*groups.values(), list(shares)]:
        if len(group) > 1 and np.abs(np.sum([shares[name] for name in group], axis=0) - 1).max() <= _SUM_TOLERANCE:
            return tuple(group)
    return ()


def _as_floats(column: pa.ChunkedArray) -> NDArray[np.float64] | None:
    try:
        values = pc.cast(column, pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return values if np.isfinite(values).all() else None


def _name_classes(labels: pa.ChunkedArray, label: str, probabilities: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """What classes are called in the label column: after the columns, where that fits, else by number."""
    seen = {value.strip().removesuffix(".0") for value in pc.unique(labels).to_pylist() if value}
    numbers = tuple(str(i) for i in range(len(probabilities)))
    for names in (*_possible_names(probabilities), numbers):
        if len(set(names)) == len(names) and seen <= set(names):
            return names, names != numbers
    strange = sorted(seen - set(next(iter(_possible_names(probabilities)))))
    raise InvalidConfig(
        f"labels such as {', '.join(strange[:3])} are neither the names of the probability columns "
        f"({', '.join(probabilities[:5])}{', …' if len(probabilities) > 5 else ''}) nor numbers 0..{len(numbers) - 1}",
        f"column {label!r}",
        "Name the columns after the labels (p_cat for cat), or write the numbers of the classes as labels.",
    )


def _possible_names(columns: Sequence[str]) -> Mapping[tuple[str, ...], None]:
    """Names that columns may stand for: without their common beginning or end, and whole; likely ones first."""
    start, end = _common_start(columns), _common_start([name[::-1] for name in columns])[::-1]
    cuts = [
        (max(start.rfind(c) for c in _SEPARATORS) + 1, 0),
        (len(start.rstrip("0123456789")), 0),
        (0, len(end) - min((end.find(c) for c in _SEPARATORS if c in end), default=len(end))),
        (0, 0),
        (len(start), 0),
    ]
    named = (tuple(name[first : len(name) - last] for name in columns) for first, last in cuts)
    return dict.fromkeys(names for names in named if all(names))


def _common_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"-?\d+", text) is not None

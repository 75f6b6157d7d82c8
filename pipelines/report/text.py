"""Numbers and values as a reader wants to see them."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

MISSING = "–"


def integer(value: Any) -> str:
    """A whole number with thousands separators."""
    return f"{int(value):,}"


def compact(value: int) -> str:
    """A whole number short enough for an axis.

    >>> compact(50_000), compact(20_000_000)
    ('50,000', '20 M')
    """
    return f"{value / 1e6:,g} M" if value >= 1_000_000 else f"{value:,}"


def significant(value: float | None) -> str:
    """Four significant digits; a dash where there is no number.

    >>> significant(0.93), significant(1234.5), significant(0.0000321), significant(None)
    ('0.9300', '1,234', '3.210e-05', '–')
    """
    if value is None or math.isnan(value):
        return MISSING
    if abs(value) >= 1000 and math.isfinite(value):
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".")


def brief(score: float | None) -> str:
    """A score in running text.

    >>> brief(0.93), brief(0.0000321), brief(None)
    ('0.93', '<0.0001', '–')
    """
    if score is None or math.isnan(score):
        return MISSING
    return "<0.0001" if 0 < score < 0.0001 else f"{score:.4g}"


def percent(share: float) -> str:
    """A share as a percentage; never rounded to nothing or to all.

    >>> percent(0.25), percent(0.0001), percent(0.0), percent(1.0)
    ('25.0%', '<0.1%', '0%', '100%')
    """
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.001:
        return "<0.1%"
    return ">99.9%" if share > 0.999 else f"{share:.1%}"


def heading(name: object) -> str:
    """A column or setting name as words.

    >>> heading("given_label")
    'Given label'
    """
    words = str(name).replace("_", " ").strip()
    return words.upper() if words in ("id", "uri") else words[:1].upper() + words[1:]


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, NA or NaT."""
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def is_number(value: object) -> bool:
    """Whether a value is a number; truth values are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def cell(value: Any) -> str:
    """A value of a table, whatever its type."""
    if is_missing(value):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return integer(value)
    if isinstance(value, numbers.Real):
        return significant(float(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {cell(item)}" for key, item in value.items()) or MISSING
    if isinstance(value, np.ndarray | list | tuple):
        return ", ".join(cell(item) for item in value) or "none"
    return str(value)


def setting(value: object) -> str:
    """A setting exactly as it was given."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def shape(value: Any) -> str:
    """An array's shape.

    >>> shape([1200, 512, 512])
    '1,200 × 512 × 512'
    """
    return " × ".join(integer(extent) for extent in value) if isinstance(value, list | tuple) else cell(value)


def summarised(values: list[Any], limit: int = 12) -> str:
    """A list of values, nested or not; a long list of numbers as its range."""
    single = list(leaves(values))
    if len(single) <= limit:
        return cell(values)
    finite = [float(value) for value in single if is_number(value) and math.isfinite(value)]
    if not finite:
        return f"{len(single):,} values"
    return f"{len(single):,} values from {significant(min(finite))} to {significant(max(finite))}"


def leaves(values: Iterable[Any]) -> Iterator[Any]:
    """The single values of nested lists.

    >>> list(leaves([1, [2, [3]]]))
    [1, 2, 3]
    """
    for value in values:
        if isinstance(value, list | tuple | np.ndarray):
            yield from leaves(value)
        else:
            yield value


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings with their dotted paths.

    >>> list(flattened({"a": {"b": 1, "c": [2]}}))
    [('a.b', 1), ('a.c', [2])]
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

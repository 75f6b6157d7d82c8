"""Settings: what all sections share, and what could not be validated explained in the user's terms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from labelqa_dask.core.errors import InvalidConfig, nearest


class Settings(BaseModel):
    """A section of a configuration: immutable, and unknown settings are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def explain(error: ValidationError, model: type[BaseModel], where: str) -> InvalidConfig:
    """One error for all that pydantic found, each with its place and the nearest known name."""
    problems = []
    for found in error.errors():
        place, known = _locate(model, found["loc"])
        if found["type"] == "extra_forbidden":
            problems.append(f"unknown setting {place!r} ({nearest(place.rpartition('.')[2], known)})")
        elif found["type"] == "missing":
            problems.append(f"missing setting {place!r}")
        else:
            message = found["msg"].removeprefix("Value error, ")
            silent = found["type"] == "secret" or isinstance(found["input"], dict)
            given = "" if silent else f" (got {_short(found['input'])})"
            problems.append(f"{place}: {message}{given}" if place else message)
    return InvalidConfig("; ".join(problems), where)


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """The dotted name of a setting as the user writes it, and the names known in its place."""
    names: list[str] = []
    models = [model]
    known: list[str] = []
    for part in loc:
        fields = {name: field for candidate in models for name, field in candidate.model_fields.items()}
        tagged = [candidate for candidate in models if part in _tags(candidate)] if len(models) > 1 else []
        if tagged:
            models = tagged
        elif part == "[key]":  # of a dictionary: the part before is its name
            continue
        elif part in fields:
            names.append(str(part))
            models = list(_models_in(fields[str(part)].annotation))
        else:
            names.append(str(part))
            known = list(fields)
    return ".".join(names), known


def _tags(model: type[BaseModel]) -> list[Any]:
    """Values of a model's literal fields, by which pydantic tells the members of a union apart."""
    annotations = (field.annotation for field in model.model_fields.values())
    return [tag for annotation in annotations if get_origin(annotation) is Literal for tag in get_args(annotation)]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"

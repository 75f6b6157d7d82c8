"""Configuration files: YAML, with single settings overridden from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from labelqa_dask.core.errors import InvalidConfig
from pipelines.config import AuditConfig, parse_config


def load_config(path: Path, overrides: Sequence[str] = ()) -> AuditConfig:
    """Read and validate a configuration file.

    Raises
    ------
    InvalidConfig
        Naming the file and, for a syntax error, its line.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InvalidConfig(error.strerror or "cannot be read", str(path)) from None
    except UnicodeDecodeError:
        raise InvalidConfig("is not text", str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise InvalidConfig(f"is not valid YAML: {getattr(error, 'problem', None) or error}", place) from None
    if not isinstance(settings, dict):
        raise InvalidConfig("is not a mapping of settings", str(path), "It should begin with 'task: …'.")
    for override in overrides:
        _apply(settings, override)
    return parse_config(settings, str(path))


def overridden(overrides: Sequence[str]) -> dict[str, Any]:
    """Nested settings from `a.b=value` alone, where there is no file."""
    settings: dict[str, Any] = {}
    for override in overrides:
        _apply(settings, override)
    return settings


def _apply(settings: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in nested settings; the value is read as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InvalidConfig(f"{override!r} is not of the form name=value", "--set", "Such as params.temperature=0.2.")
    *parents, last = key.split(".")
    inner = settings
    for parent in parents:
        inner = inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InvalidConfig(f"{key!r} is below {parent!r}, which is a single value", "--set")
    try:
        inner[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InvalidConfig(f"the value of {key!r} is not valid YAML: {text!r}", "--set") from None

"""Packages that not everybody needs: imported where they are used, and named with what installs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from labelqa_dask.core.errors import InvalidConfig


def import_extra(module: str, extra: str, where: str) -> Any:
    """A module of a package that an extra installs; what needs it is told where it is missing.

    Raises
    ------
    InvalidConfig
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise not_installed(module, extra, where) from error


def not_installed(module: str, extra: str, where: str) -> InvalidConfig:
    """That a module's package, or something that it needs itself, is missing."""
    package = module.partition(".")[0]
    return InvalidConfig(
        f"needs {package}, which cannot be imported", where, f"Install it: pip install 'labelqa-dask[{extra}]'."
    )

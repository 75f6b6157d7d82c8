"""Errors that say what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabelQAError(Exception):
    """Base of every error this package raises on purpose.

    Parameters
    ----------
    what : str
        What is wrong, as a sentence without its full stop.
    where : str
        The array, file, row or setting it was found in; may be empty.
    mend : str
        What the user can do about it; may be empty.
    """

    def __init__(self, what: str, where: str = "", mend: str = "") -> None:
        super().__init__(what, where, mend)
        self.what = what
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f" {self.mend}" if self.mend else ""
        return f"{place}{self.what.rstrip('.')}.{remedy}"


class InvalidInput(LabelQAError, ValueError):
    """Labels, predictions or arguments that cannot be scored as they are."""


class InvalidConfig(LabelQAError, ValueError):
    """A configuration that cannot be run: unknown keys, impossible settings, a plan that does not fit."""


class RunConflict(LabelQAError):
    """Another run at the same output: at work there now, or unfinished and begun with other settings or inputs."""


class OutdatedRun(RunConflict):
    """An unfinished run whose inputs have been rewritten since, so that it can never be finished."""


class OutputInUse(RunConflict):
    """An output that somebody else is working on."""


class StorageError(LabelQAError, OSError):
    """An object that could not be read or written."""

    __str__ = LabelQAError.__str__


class RunFailed(LabelQAError):
    """A run that stopped before publishing; what was finished stays and is resumed."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word nearest to a misspelt one, or lists them all."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known are: {', '.join(names)}."

"""Errors say what, where and how to mend it, on this machine and on the one that asked."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from labelqa_dask.core import errors
from labelqa_dask.core.errors import InvalidConfig, InvalidInput, LabelQAError, StorageError, nearest

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LabelQAError)]


@pytest.mark.parametrize(
    "words", [("no label",), ("no label", "labels, example 3"), ("no label", "labels", "Add one.")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling(kind: Any, words: tuple[str, ...]) -> None:
    error = kind(*words)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.what, again.where, again.mend) == (error.what, error.where, error.mend)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("no label",), "no label."),
        (("no label.", "labels"), "labels: no label."),
        (("no label", "labels", "Add one."), "labels: no label. Add one."),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_one_sentence_with_its_place_and_its_mend(kind: Any, words: tuple[str, ...], text: str) -> None:
    assert str(kind(*words)) == text


def test_errors_can_be_caught_as_pythons_own() -> None:
    assert issubclass(InvalidInput, ValueError)
    assert issubclass(InvalidConfig, ValueError)
    assert issubclass(StorageError, OSError)


def test_a_misspelt_word_is_answered_with_the_nearest_known_one_or_all() -> None:
    assert nearest("temprature", ["temperature", "method"]) == "Did you mean 'temperature'?"
    assert nearest("xyz", ["temperature", "method"]) == "Known are: method, temperature."

"""The demonstration touches nothing that is not its own."""

from __future__ import annotations

import pytest

from flows.demo import make_data, prepare_folder
from labelqa_dask.core.errors import InvalidConfig


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path):
    thesis = tmp_path / "project" / "data" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    with pytest.raises(InvalidConfig, match="is not the folder of an earlier demonstration"):
        prepare_folder(tmp_path / "project")
    with pytest.raises(InvalidConfig, match=r"thesis\.txt: exists"):
        prepare_folder(thesis)
    assert thesis.read_text() == "years of work"


def test_the_folder_of_an_earlier_demonstration_is_emptied(tmp_path):
    folder = tmp_path / "demo"
    prepare_folder(folder)
    (folder / "data").mkdir()
    prepare_folder(folder)
    assert not (folder / "data").exists()


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(InvalidConfig, match="there is no demonstration of 'nonsense'"):
        make_data("nonsense", 0, print)

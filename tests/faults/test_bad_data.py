"""Bad data, whatever the task: all of them are listed, or left out while the rest is published."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError
from labelqa_dask.core.task import task_names
from labelqa_dask.storage.record import latest
from pipelines.config import parse_config
from pipelines.plan import make_plan
from tests.faults.tasks import (
    CASES,
    FORMATS,
    IN_PARQUET,
    ROWS,
    TASKS,
    Example,
    audit_of,
    scores_of,
    store_parquet,
)
from tests.pipelines.audits import RESOURCES, Audit, Interrupted, interrupt, is_idle, on_disk, wait_until
from tests.stores import Place

BAD_ROWS = (7, 8, 31)
BAD = np.concatenate([np.arange(5, 10), np.arange(30, 35)])

each_task = pytest.mark.parametrize("name", TASKS)
each_format = pytest.mark.parametrize(("name", "kind"), FORMATS)
each_in_parquet = pytest.mark.parametrize("name", IN_PARQUET)


def test_every_task_takes_part() -> None:
    assert {example.task for example in TASKS.values()} == set(task_names()), "add an entry to tests/faults/tasks.py"


def is_missing(values: Any) -> Any:
    return {"b": lambda: ~values, "i": lambda: values == -1}.get(values.dtype.kind, lambda: np.isnan(values))()


def assert_published_without(audit: Audit, example: Example, bad: Any) -> None:
    """The scores of all but some rows are what the library makes of the others alone; the rest is marked."""
    good = np.setdiff1d(np.arange(ROWS), bad)
    found, expected = scores_of(audit), example.scores(good)
    assert found["id"].tolist() == example.ids.tolist(), "identifiers are kept"
    for output, values in expected.items():
        np.testing.assert_allclose(found[output][good], values, rtol=0, atol=1e-12)
        assert is_missing(found[output][bad]).all()
    run = audit.run().run
    assert not set(run.worst["row"]) & set(bad)
    assert run.summary["examples"] == ROWS
    assert run.summary["quarantined"]["examples"] == len(bad)
    assert sum(run.summary["score"]["histogram"]["counts"]) == len(good)


# -- values


@on_disk
@pytest.mark.parametrize(("name", "case"), CASES)
def test_bad_values_are_all_listed_and_the_rest_is_published_where_asked(
    name: str, case: str, place: Place, client: Client
) -> None:
    example, bad = TASKS[name].copy(), TASKS[name].bad_values[case]
    for row in BAD_ROWS:
        bad.put(example.arrays, row)
    audit = audit_of(place, client, example)

    with pytest.raises(InvalidInput) as caught:
        audit.run()
    listed = str(caught.value)
    assert latest(audit.location) is None
    assert "2 regions hold data that cannot be scored. Nothing was published. Set on_error: quarantine" in listed
    assert "\n  region 00001: " in listed
    assert "\n  region 00006: " in listed
    assert listed.count(bad.reason) == len(BAD_ROWS), "each bad row, not only the first one of a region"
    for row in BAD_ROWS:
        assert f"{bad.array}, example {row}" in listed

    lenient = audit.changed(on_error="quarantine")
    audited = lenient.run()
    assert audited.resumed, "what was scored before is not discarded"
    assert_published_without(lenient, example, BAD)
    told = audited.run.summary["quarantined"]
    assert [(region["region"], region["rows"]) for region in told["listed"]] == [
        ("00001", [5, 10]),
        ("00006", [30, 35]),
    ]
    assert [len(region["reasons"]) for region in told["listed"]] == [2, 1]
    report = audited.run.version.location.read("report.html").decode()
    assert "The data of 2 regions with 10 " in report
    assert lenient.run().unchanged
    with pytest.raises(InvalidInput, match="was published without 2 regions whose data cannot be scored"):
        audit.run()


@on_disk
@each_task
def test_a_run_whose_regions_are_all_bad_publishes_nothing(name: str, place: Place, client: Client) -> None:
    example = TASKS[name].copy()
    bad = next(iter(example.bad_values.values()))
    for row in range(ROWS):
        bad.put(example.arrays, row)
    audit = audit_of(place, client, example, on_error="quarantine")
    with pytest.raises(InvalidInput, match=r"9 regions hold data .* Nothing was published. Mend the input"):
        audit.run()
    assert latest(audit.location) is None


@pytest.mark.parametrize("stop", [("estimate confident_thresholds", 9), ("score", 0), ("score", 4), ("score", 9)])
@on_disk
def test_a_run_without_its_bad_regions_is_resumed_to_the_same_bytes(
    stop: tuple[str, int], place: Place, client: Client
) -> None:
    example = TASKS["multiclass"].copy()
    for row in BAD_ROWS:
        example.bad_values["not a number"].put(example.arrays, row)
    audit = audit_of(place, client, example, "parquet", on_error="quarantine")
    with pytest.raises(Interrupted):
        audit.run(interrupt(*stop))
    wait_until(lambda: is_idle(client))
    assert audit.run().resumed
    other = audit.changed(out="undisturbed")
    other.run()
    assert audit.published() == other.published()


# -- what is stored


def damage(content: bytes) -> bytes:
    return content[: len(content) // 2]


CHUNKS = [(name, array) for name, example in TASKS.items() for array in example.columns]


@pytest.mark.parametrize(("name", "array"), CHUNKS)
@pytest.mark.parametrize("place", ["file", "s3"], indirect=True)
def test_a_chunk_that_cannot_be_decoded_is_named_and_left_out(
    name: str, array: str, place: Place, client: Client
) -> None:
    example = TASKS[name]
    audit = audit_of(place, client, example)
    chunk = "/".join(["6", *("0" for _ in example.columns[array].shape[1:])])
    data = place(f"data.zarr/{array}")
    data.write(f"c/{chunk}", damage(data.read(f"c/{chunk}")))
    # Annotations are found by the identifiers of their examples: without these, none of them.
    of_all = array == "ids" and example.annotations is not None
    where = "annotations cannot be read. Nothing was published; mend the input" if of_all else "region 00006: "
    with pytest.raises(InvalidInput, match=rf"(?s){where}.*data\.zarr/{array}: chunk c/{chunk} cannot be decoded"):
        audit.run()
    if of_all:
        return
    lenient = audit.changed(on_error="quarantine")
    if array != "ids":
        assert_published_without(lenient, example, np.arange(30, 35))
        return
    scores = scores_of(lenient)
    assert scores["id"][:30].tolist() == example.ids[:30].tolist()
    good = np.setdiff1d(np.arange(ROWS), np.arange(30, 35))
    ranked = example.ranked_by
    np.testing.assert_allclose(scores[ranked][good], example.scores(good)[ranked], rtol=0, atol=1e-12)


@each_task
@pytest.mark.parametrize("place", ["file", "s3"], indirect=True)
def test_predictions_that_were_never_written_are_named_and_left_out(name: str, place: Place, client: Client) -> None:
    example = TASKS[name]
    audit = audit_of(place, client, example)
    chunk = "/".join(["1", *("0" for _ in example.arrays[example.predictions].shape[1:])])
    place(f"data.zarr/{example.predictions}").delete_object(f"c/{chunk}")
    with pytest.raises(
        InvalidInput, match=rf"chunk c/{chunk} \(examples 5 to 9\) was never written.*as the fill value"
    ):
        audit.run()
    assert_published_without(audit.changed(on_error="quarantine"), example, np.arange(5, 10))


@on_disk
@each_in_parquet
def test_a_row_group_that_cannot_be_decoded_is_named_and_left_out(name: str, place: Place, client: Client) -> None:
    example = TASKS[name]
    audit = audit_of(place, client, example, "parquet")
    data = place("data")
    content = bytearray(data.read("part-1.parquet"))
    content[4:40] = b"\xff" * 36
    data.write("part-1.parquet", bytes(content))
    with pytest.raises(InvalidInput, match=r"part-1\.parquet: row group 0 \(rows 12 to 16\) cannot be decoded"):
        audit.run()
    run = audit.changed(on_error="quarantine").run().run
    (bad,) = run.summary["quarantined"]["listed"]
    frame = run.scores.compute()  # type: ignore[union-attr]
    assert bad["rows"] == [12, 17]
    assert frame[example.ranked_by].isna().to_numpy().nonzero()[0].tolist() == list(range(12, 17))
    assert len(frame) == ROWS


# -- what does not fit together: refused from metadata alone


def spoiled(case: str, example: Example) -> Example:
    """Data that no task can score, whatever its values."""
    arrays, annotations, ids = dict(example.arrays), example.annotations, example.ids
    if case == "no data":
        arrays, ids = {name: values[:0] for name, values in arrays.items()}, ids[:0]
        annotations = None if annotations is None else annotations[:0]
    elif case == "labels in words" and annotations is not None:
        annotations = annotations.assign(label="cat")
    else:
        name = example.predictions if case == "predictions in words" else "labels"
        arrays[name] = arrays[name].astype("U8").astype(object)
    return replace(example, arrays=arrays, annotations=annotations, ids=ids)


@on_disk
@each_task
def test_arrays_of_unequal_length_are_refused_by_the_plan(name: str, place: Place) -> None:
    example = TASKS[name]
    shorter = {label: values[:-1] for label, values in example.arrays.items() if label != example.predictions}
    ids = example.ids if shorter else example.ids[:-1]
    changed = replace(example, arrays={**example.arrays, **shorter}, ids=ids)
    audit = audit_of(place, None, changed)  # type: ignore[arg-type]
    told = "data.zarr/.* has 42 along 'example' but labels has 41" if shorter else "ids have shape .41,., but .* 42"
    with pytest.raises(InvalidInput, match=told):
        make_plan(audit.config, RESOURCES)


@on_disk
@each_format
@pytest.mark.parametrize("case", ["no data", "predictions in words", "labels in words"])
def test_impossible_shapes_and_types_are_refused_by_the_plan(case: str, kind: str, name: str, place: Place) -> None:
    example = spoiled(case, TASKS[name])
    audit = audit_of(place, None, example, kind)  # type: ignore[arg-type]
    with pytest.raises((InvalidInput, InvalidConfig)) as caught:
        make_plan(audit.config, RESOURCES)
    assert place.root in str(caught.value), "the input is named"


@on_disk
@each_format
def test_what_is_not_there_is_refused_by_the_plan(kind: str, name: str, place: Place) -> None:
    example = TASKS[name]
    audit = audit_of(place, None, example, kind)  # type: ignore[arg-type]
    inputs = audit.settings["input"]
    for name_ in example.arrays:
        one = {**inputs[name_], "array" if kind == "zarr" else "column": f"{name_}x"}
        with pytest.raises(InvalidConfig, match=f"no (array|column) '{name_}x'.*Did you mean '{name_}'"):
            make_plan(audit.changed(input={name_: one}).config, RESOURCES)
        with pytest.raises(StorageError, match=r"does not exist|no Parquet files there"):
            make_plan(audit.changed(input={name_: {**inputs[name_], "uri": place.url("nowhere")}}).config, RESOURCES)
        settings = {**audit.settings, "input": {k: v for k, v in inputs.items() if k != name_}}
        with pytest.raises(InvalidConfig, match=f"input lacks {name_}"):
            parse_config({**settings, "task": example.task, "output": {"uri": place.url("out")}})


BAD_ANNOTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "class too high": ({"label": 9}, "1 annotations of classes that are not there, such as .* 9"),
    "class negative": ({"label": -1}, "1 annotations of classes that are not there, such as .* -1"),
    "unknown example": ({"task": "nowhere"}, "1 annotations of examples that are not there, such as .*nowhere"),
    "not a number": ({"label": np.nan}, "label is missing"),
    "infinite": ({"label": np.inf}, "labels must be class numbers"),
    "between classes": ({"label": 0.5}, "labels must be class numbers"),
}


@on_disk
@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_annotations_that_cannot_be_scored_are_refused_or_left_out(case: str, place: Place, client: Client) -> None:
    example = TASKS["multiannotator"]
    assert example.annotations is not None
    change, told = BAD_ANNOTATIONS[case]
    added = pd.DataFrame([{**example.annotations.iloc[0], **change}])
    rows = pd.concat([example.annotations, added], ignore_index=True)
    audit = audit_of(place, client, replace(example, annotations=rows), "parquet")
    with pytest.raises(InvalidInput, match=rf"(?s){told}"):
        audit.run()
    assert latest(audit.location) is None
    if "annotations of" in told:
        lenient = audit.changed(input={"annotations": {**audit.settings["input"]["annotations"], "bad_rows": "drop"}})
        lenient.run(fresh=True)
        found = scores_of(lenient)
        for output, values in example.scores(np.arange(ROWS)).items():
            np.testing.assert_allclose(found[output], values, rtol=0, atol=1e-12)
        (count,) = lenient.run().run.summary["crowd"]["bad"].values()
        assert count == 1


@on_disk
@pytest.mark.parametrize("damaged", [lambda content: content[:4] + b"\xff" * 40 + content[44:], lambda content: b""])
def test_annotations_that_cannot_be_read_are_named(damaged: Any, place: Place, client: Client) -> None:
    audit = audit_of(place, client, TASKS["multiannotator"])
    folder = place("annotations")
    folder.write("part-1.parquet", damaged(folder.read("part-1.parquet")))
    with pytest.raises((InvalidInput, StorageError), match=r"annotations/part-1\.parquet"):
        audit.run()
    assert latest(audit.location) is None


@on_disk
@each_in_parquet
def test_a_part_with_another_schema_is_refused_by_the_plan(name: str, place: Place) -> None:
    example = TASKS[name]
    audit = audit_of(place, None, example, "parquet")  # type: ignore[arg-type]
    arrays = {key: values.astype(np.float32) for key, values in example.arrays.items()}
    store_parquet(place("other"), replace(example, arrays=arrays))
    place("data").write("part-1.parquet", place("other").read("part-1.parquet"))
    with pytest.raises(InvalidInput, match=r"part-1\.parquet: column .* but in part-0\.parquet .*one schema"):
        make_plan(audit.config, RESOURCES)

"""Planning: from metadata alone, everything that cannot work is refused, with what, where and how to mend it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from dask.utils import parse_bytes
from numpy.typing import NDArray
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, LabelQAError, StorageError
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import manifest_digest
from pipelines import layout
from pipelines.config import AuditConfig, parse_config
from pipelines.plan import ID_BYTES, WRITTEN_TIMES, Plan, Resources, make_plan
from tests.stores import Place

PLENTY = Resources(2, 1, 64 << 30)
Spec = tuple[tuple[int, ...], str, tuple[int, ...]]


def describe_arrays(location: Location, **specs: Spec) -> None:
    """Arrays of a group that have a shape, a type and chunks, but no chunk yet."""
    location.create()
    group = zarr.open_group(ZarrObjectStore(location.store), mode="a")
    for name, (shape, dtype, chunks) in specs.items():
        group.create_array(name, shape=shape, dtype=dtype, chunks=chunks, overwrite=True)


def zarr_config(data: Location, out: str, task: str = "multiclass", ids: bool = False, **more: Any) -> AuditConfig:
    names = ["labels", "pred_probs", *(["ids"] if ids else [])]
    settings = {"task": task, "input": {name: {"uri": data.url, "array": name} for name in names}, **more}
    settings["output"] = {"uri": out, **settings.get("output", {})}
    return parse_config({**settings, "storage": data.options.model_dump(exclude_defaults=True)})


def plan_arrays(folder: Path, resources: Resources = PLENTY, **settings: Any) -> Plan:
    specs = {name: settings.pop(name) for name in ("labels", "pred_probs", "ids") if name in settings}
    data = Location.parse(folder / "data.zarr")
    describe_arrays(data, **specs)
    return make_plan(zarr_config(data, str(folder / "out"), ids="ids" in specs, **settings), resources)


def write_table(path: Path, rows_per_group: int = 10, n: int = 25, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pred_probs = np.random.default_rng(0).dirichlet(np.ones(3), n)
    table = {"label": np.arange(n) % 3, "probs": pa.array(list(pred_probs)), "key": np.arange(n), **columns}
    pq.write_table(pa.table(table), path, row_group_size=rows_per_group)


def parquet_config(uri: str, out: str, **more: Any) -> AuditConfig:
    columns = {"labels": "label", "pred_probs": "probs", "ids": "key"}
    inputs = {name: {"uri": uri, "column": column} for name, column in columns.items()}
    settings = {"task": "multiclass", "input": inputs, **more}
    return parse_config({**settings, "output": {"uri": out, "format": "parquet", **settings.get("output", {})}})


LABELS: Spec = ((100,), "int64", (10,))
PRED_PROBS: Spec = ((100, 3), "float32", (10, 3))
IDS: Spec = ((100,), "int32", (10,))
IMAGE_LABELS: Spec = ((6, 8, 9), "uint8", (1, 8, 9))
IMAGES: Spec = ((6, 4, 8, 9), "float16", (1, 4, 8, 9))


# -- metadata only


def test_planning_reads_no_chunk_of_zarr(place: Place) -> None:
    data = place("data.zarr")
    describe_arrays(data, labels=LABELS, pred_probs=PRED_PROBS, ids=IDS)
    group = zarr.open_group(ZarrObjectStore(data.store))
    for name in ("labels", "pred_probs", "ids"):
        group[name][...] = 1
    chunks = [entry.path for entry in data.entries() if "/c/" in entry.path]
    assert len(chunks) == 30
    for path in chunks:
        data.write(path, b"neither compressed nor a number")
    plan = make_plan(zarr_config(data, place.url("out"), ids=True), PLENTY)
    assert plan.layout.sizes == {"example": 100, "class": 3}
    assert plan.manifest(plan.look_up()[0])["inputs"]["pred_probs"]["objects"] == 11
    assert plan.describe()
    assert not place("out").exists()


def test_planning_reads_no_data_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "data" / "a.parquet"
    write_table(path, n=5000, rows_per_group=500)
    content = bytearray(path.read_bytes())
    footer = int.from_bytes(content[-8:-4], "little") + 8
    content[4:-footer] = bytes(len(content) - 4 - footer)
    path.write_bytes(content)
    plan = make_plan(parquet_config(str(path.parent), str(tmp_path / "out")), PLENTY)
    assert plan.layout.sizes == {"example": 5000, "class": 3}
    assert plan.manifest(plan.look_up()[0])["inputs"]["labels"]["bytes"] == len(content)
    assert len(plan.layout.regions) == 10


def test_what_is_gathered_of_the_rows_of_a_region_is_bounded(tmp_path: Path) -> None:
    n = 10**9
    arrays: dict[str, Spec] = {"labels": ((n,), "uint8", (1024,)), "pred_probs": ((n, 10), "float16", (1024, 10))}
    plain = plan_arrays(tmp_path / "plain", **arrays).layout.regions.step
    named = plan_arrays(tmp_path / "named", **arrays, ids=((n,), "str", (1024,))).layout.regions.step
    assert layout.REGION_ROWS <= plain < layout.REGION_ROWS + 10**5
    row_bytes = 8 * WRITTEN_TIMES + ID_BYTES
    assert named * row_bytes <= layout.GATHERED_BYTES < 2.1 * named * row_bytes


def test_the_size_of_the_data_costs_nothing(tmp_path: Path) -> None:
    n = 10**12
    plan = plan_arrays(tmp_path, labels=((n,), "uint8", (10**6,)), pred_probs=((n, 10), "float16", (10**6, 10)))
    assert plan.input_bytes == 21 * n
    assert plan.worker_bytes < 4 << 30


# -- what a plan says


def test_a_plan_is_described_for_people(tmp_path: Path) -> None:
    plan = plan_arrays(
        tmp_path, labels=LABELS, pred_probs=PRED_PROBS, ids=IDS, params={"adjust_pred_probs": True}, select={"worst": 5}
    )
    described = dict(plan.describe())
    assert described["task"] == "multiclass: method self_confidence, adjust_pred_probs True"
    assert described["labels"] == f"{tmp_path}/data.zarr/labels\n100, int64"
    assert described["pred_probs"] == f"{tmp_path}/data.zarr/pred_probs\n100 × 3, float32"
    assert described["ids"] == f"{tmp_path}/data.zarr/ids"
    assert described["output"] == f"{tmp_path}/out (zarr)"
    assert described["reads"] == "1.95 kiB in 2 passes"
    assert described["regions"] == "10 of up to 10 examples"
    assert described["blocks"] == "10 example × 3 class (200 B)"
    assert described["workers"] == "2 × 1 thread, 64.00 GiB each"
    assert re.fullmatch(r"45\d\.\d\d MiB per worker", described["peak memory"])


def test_a_manifest_is_plain_json_and_says_what_is_computed_from_what(tmp_path: Path) -> None:
    plan = plan_arrays(tmp_path, labels=LABELS, pred_probs=PRED_PROBS, ids=IDS, select={"worst": 5})
    manifest = plan.manifest(plan.look_up()[0])
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["task"] == "multiclass"
    assert manifest["params"] == {
        "method": "self_confidence",
        "adjust_pred_probs": False,
        "find_label_issues": False,
        "estimation_method": "off_diagonal",
    }
    assert manifest["inputs"]["ids"]["array"] == "ids"
    assert manifest["inputs"]["pred_probs"]["shape"] == [100, 3]
    assert manifest["inputs"]["pred_probs"]["dtype"] == "float32"
    assert manifest["select"] == {"worst": 5}


def test_a_manifest_changes_with_what_is_computed_and_with_nothing_else(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"labels": LABELS, "pred_probs": PRED_PROBS}
    data = Location.parse(tmp_path / "data.zarr")
    describe_arrays(data, **arrays)

    def digest(resources: Resources = PLENTY, out: str = "out", **settings: Any) -> str:
        plan = make_plan(zarr_config(data, str(tmp_path / out), **settings), resources)
        return manifest_digest(plan.manifest(plan.look_up()[0]))

    first = digest()
    assert digest(Resources(7, 3, 8 << 30)) == first
    assert digest(out="elsewhere") == first
    assert digest(cluster={"workers": 5}) == first
    for settings in (
        {"params": {"method": "normalized_margin"}},
        {"select": {"worst": 7}},
        {"output": {"format": "parquet"}},
        {"output": {"region_rows": 50}},
    ):
        assert digest(**settings) != first, settings
    zarr.open_group(tmp_path / "data.zarr")["labels"][3] = 1
    assert digest() != first


# -- what cannot work


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"labels": ((100, 2), "int64", (10, 2))},
            r"data\.zarr/labels: labels must have 1 dimensions \(example\), got shape",
        ),
        (
            {"pred_probs": ((100,), "float32", (10,))},
            r"pred_probs must have 2 dimensions \(example, class\), got shape",
        ),
        ({"labels": ((), "int64", ())}, r"labels must have 1 dimensions \(example\), got shape \(\)"),
        (
            {"labels": ((99,), "int64", (10,))},
            "pred_probs has 100 along 'example' but labels has 99. Both must describe",
        ),
        ({"pred_probs": ((100, 1), "float32", (10, 1))}, r"there is only one class\. For a binary model"),
        ({"pred_probs": ((100, 0), "float32", (10, 1))}, r"pred_probs is empty: its shape is \(100, 0\)"),
        ({"labels": ((0,), "int64", (10,))}, r"labels is empty: its shape is \(0,\)"),
        ({"labels": ((100,), "float64", (10,))}, r"labels must be integers 0\.\.k-1, got float64\. Convert them"),
        ({"labels": ((100,), "bool", (10,))}, r"labels must be integers 0\.\.k-1, got bool\."),
        ({"labels": ((100,), "str", (10,))}, r"labels must be integers.*Map each name to its class id"),
        (
            {"pred_probs": ((100, 3), "uint8", (10, 3))},
            r"pred_probs must be floating point, got uint8\. .*scale_factor",
        ),
        ({"pred_probs": ((100, 3), "complex64", (10, 3))}, r"pred_probs must be floating point, got complex64"),
        (
            {"ids": ((99,), "int64", (10,))},
            r"data\.zarr/ids: ids have shape \(99,\), but there are 100 examples\. Give one",
        ),
        ({"ids": ((100, 1), "int64", (10, 1))}, r"ids have shape \(100, 1\), but there are 100 examples"),
    ],
)
def test_arrays_that_do_not_fit_the_task_or_each_other_are_refused(
    tmp_path: Path, arrays: dict[str, Spec], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        plan_arrays(tmp_path, **{"labels": LABELS, "pred_probs": PRED_PROBS, **arrays})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": ((6, 8, 10), "uint8", (1, 8, 9))}, r"pred_probs has 9 along 'x' but labels has 10\."),
        ({"labels": ((6, 9, 8), "uint8", (1, 8, 9))}, r"pred_probs has 8 along 'y' but labels has 9\."),
        ({"pred_probs": ((6, 8, 9, 4), "float32", (1, 8, 9, 4))}, r"pred_probs has 9 along 'y' but labels has 8\."),
        ({"labels": LABELS}, r"labels must have 3 dimensions \(example, y, x\), got shape \(100,\)"),
    ],
)
def test_images_that_do_not_fit_each_other_are_refused(tmp_path: Path, arrays: dict[str, Spec], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        plan_arrays(tmp_path, task="segmentation", **{"labels": IMAGE_LABELS, "pred_probs": IMAGES, **arrays})


def test_quantised_probabilities_are_welcome_with_their_scale(tmp_path: Path) -> None:
    describe_arrays(Location.parse(tmp_path), labels=LABELS, pred_probs=((100, 3), "uint8", (10, 3)))
    zarr.open_group(tmp_path)["pred_probs"].attrs["scale_factor"] = 1 / 255
    plan = make_plan(zarr_config(Location.parse(tmp_path), str(tmp_path / "out")), PLENTY)
    assert plan.resolution == pytest.approx(1 / 255)
    assert plan.outputs[0].dtype == np.float32


@pytest.mark.parametrize(
    ("columns", "settings", "error", "message"),
    [
        ({"label": ["cat"] * 25}, {}, InvalidInput, r"a\.parquet \[label\]: labels must be integers.*got object"),
        ({"label": np.arange(25.0)}, {}, InvalidInput, r"labels must be integers 0\.\.k-1, got float64"),
        (
            {"probs": pa.array([[1, 0, 0]] * 25)},
            {},
            InvalidInput,
            r"\[probs\]: pred_probs must be floating point, got int64",
        ),
        ({"probs": pa.array([[0.5]] * 25)}, {}, InvalidInput, "there is only one class"),
        ({"probs": pa.array([[]] * 25, pa.list_(pa.float64()))}, {}, InvalidInput, "there is only one class"),
        ({"probs": np.ones(25)}, {}, InvalidInput, "there is only one class"),
        ({}, {"labels": {"columns": ["label", "key"]}}, InvalidConfig, "2 columns where one is needed"),
        ({}, {"ids": {"columns": ["label", "key"]}}, InvalidConfig, "2 columns where one is needed"),
        ({}, {"ids": {"column": "keys"}}, InvalidConfig, r"has no column 'keys'\. Did you mean 'key'\?"),
        ({}, {"labels": {"array": "label"}}, StorageError, "is not a Zarr group or array"),
    ],
)
def test_columns_that_do_not_fit_the_task_are_refused(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], error: type[LabelQAError], message: str
) -> None:
    write_table(tmp_path / "a.parquet", **columns)
    inputs = {name: {"uri": str(tmp_path / "a.parquet")} for name in settings}
    config = parquet_config(str(tmp_path / "a.parquet"), "out").model_dump()
    config["input"] = {**config["input"], **{name: {**inputs[name], **settings[name]} for name in settings}}
    with pytest.raises(error, match=message):
        make_plan(parse_config(config), PLENTY)


def test_empty_tables_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", n=0)
    with pytest.raises(InvalidInput, match=r"a\.parquet \[label\]: labels is empty|labels is empty"):
        make_plan(parquet_config(str(tmp_path / "a.parquet"), "out"), PLENTY)


def test_scores_per_pixel_are_refused_for_parquet(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig) as caught:
        plan_arrays(tmp_path, task="segmentation", labels=IMAGE_LABELS, pred_probs=IMAGES, output={"format": "parquet"})
    assert str(caught.value) == (
        "output.format: segmentation writes pixel_scores, a value per pixel, which Parquet cannot hold. "
        "Use format: zarr."
    )


@pytest.mark.parametrize(
    ("inside", "out"),
    [
        ("data/*.parquet", "data/a.parquet"),
        ("data", "data/audit"),
        ("data", "data"),
        ("data/0.parquet", "data/0.parquet/audit"),
        ("data/part*", "data/part-audit"),
    ],
)
def test_an_output_inside_an_input_is_refused(place: Place, inside: str, out: str) -> None:
    config = parquet_config(place.url(inside), place.url(out), storage=place.settings)
    with pytest.raises(InvalidConfig, match=rf"{re.escape(str(place(out)))}: lies inside the input labels"):
        make_plan(config, PLENTY)


def test_an_output_inside_an_array_is_refused(place: Place) -> None:
    config = zarr_config(place("data.zarr"), place.url("data.zarr/pred_probs/out"), storage=place.settings)
    with pytest.raises(InvalidConfig, match="lies inside the input pred_probs"):
        make_plan(config, PLENTY)


def test_an_output_beside_the_files_of_a_pattern_is_welcome(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "0.parquet")
    config = parquet_config(f"{tmp_path}/data/*.parquet", f"{tmp_path}/data/audit")
    assert make_plan(config, PLENTY).layout.sizes["example"] == 25


@pytest.mark.parametrize("below", ["", "/audit", "/audits/today"])
def test_an_output_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    write_table(tmp_path / "0.parquet")
    with pytest.raises(
        InvalidConfig, match=r"file: is a file, but the output is a folder\. Choose another output\.uri"
    ):
        make_plan(parquet_config(f"{tmp_path}/0.parquet", f"{tmp_path}/file{below}"), PLENTY)


@pytest.mark.parametrize("missing", ["labels", "pred_probs"])
def test_a_missing_array_is_named(place: Place, missing: str) -> None:
    data = place("data.zarr")
    describe_arrays(
        data, **{name: spec for name, spec in (("labels", LABELS), ("pred_probs", PRED_PROBS)) if name != missing}
    )
    with pytest.raises(InvalidConfig, match=f"has no array '{missing}'"):
        make_plan(zarr_config(data, place.url("out")), PLENTY)


# -- what does not fit into memory

BIG_IMAGES: dict[str, Any] = {
    "task": "segmentation",
    "labels": ((1000, 1024, 1024), "uint8", (8, 1024, 1024)),
    "pred_probs": ((1000, 21, 1024, 1024), "float32", (8, 21, 1024, 1024)),
}
HUGE_IMAGE: dict[str, Any] = {
    "task": "segmentation",
    "labels": ((20, 8192, 8000), "uint8", (1, 8192, 8000)),
    "pred_probs": ((20, 50, 8192, 8000), "float32", (1, 50, 8192, 8000)),
}
LONG_CHUNKS: dict[str, Any] = {
    "labels": ((10**9,), "int64", (10**8,)),
    "pred_probs": ((10**9, 10), "float64", (5 * 10**7, 10)),
}
LABELS_IN_ONE_CHUNK: dict[str, Any] = {
    "labels": ((10**9,), "int64", (10**9,)),
    "pred_probs": ((10**9, 10), "float32", (10**5, 10)),
}
LONG_REGIONS: dict[str, Any] = {
    "labels": ((10**9,), "uint8", (10**6,)),
    "pred_probs": ((10**9, 2), "float16", (10**6, 2)),
    "ids": ((10**9,), "str", (10**6,)),
    "output": {"region_rows": 10**8},
}
CASES = [
    (BIG_IMAGES, Resources(2, 2, 2 << 30)),
    (BIG_IMAGES, Resources(1, 4, 4 << 30)),
    (HUGE_IMAGE, Resources(2, 1, 8 << 30)),
    (HUGE_IMAGE, Resources(2, 4, 3 << 30)),
    (LONG_CHUNKS, Resources(3, 2, 6 << 30)),
    (LABELS_IN_ONE_CHUNK, Resources(2, 1, 4 << 30)),
    (LONG_REGIONS, Resources(2, 1, 4 << 30)),
]


def rechunked(spec: Spec, chunk: Sequence[int]) -> Spec:
    shape, dtype, chunks = spec
    inner = chunk[1:] if len(shape) == len(chunk) else (chunks[1], *chunk[1:])
    return shape, dtype, (chunk[0], *inner) if len(shape) > 1 else (chunk[0],)


@pytest.mark.parametrize(("case", "resources"), CASES)
def test_what_does_not_fit_is_refused_with_the_numbers(
    tmp_path: Path, case: dict[str, Any], resources: Resources
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        plan_arrays(tmp_path, resources, **case)
    message = str(caught.value)
    found = re.match(
        r"memory: does not fit: a worker would need ([\d.]+ \w+) \(([\d.]+ \w+) for each of (\d+) threads\), "
        r"but has ([\d.]+ \w+), of which 85% can be planned with\. It would fit with a memory_limit of ",
        message,
    )
    assert found
    needed, each, threads, limit = found.groups()
    assert parse_bytes(limit) == resources.memory_limit
    assert int(threads) == resources.threads_per_worker
    assert parse_bytes(needed) > 0.85 * resources.memory_limit
    assert parse_bytes(needed) == pytest.approx((360 << 20) + int(threads) * parse_bytes(each), rel=0.02)


@pytest.mark.parametrize(("case", "resources"), CASES)
def test_every_remedy_that_is_named_makes_it_fit(tmp_path: Path, case: dict[str, Any], resources: Resources) -> None:
    with pytest.raises(InvalidConfig) as caught:
        plan_arrays(tmp_path, resources, **case)
    remedies = caught.value.mend.removeprefix("It would fit with ").removesuffix(".").split(", or ")
    kinds = set()
    for remedy in remedies:
        numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", remedy)]
        settings, given = dict(case), resources
        if "memory_limit" in remedy:
            given = Resources(resources.workers, resources.threads_per_worker, parse_bytes(f"{numbers[0]} MiB"))
        elif "threads_per_worker" in remedy:
            given = Resources(numbers[0], numbers[1], resources.memory_limit)
        elif "region_rows" in remedy:
            settings["output"] = {"region_rows": numbers[0]}
        else:
            assert "rewritten in chunks" in remedy
            settings |= {name: rechunked(case[name], numbers) for name in ("labels", "pred_probs")}
        kinds.add(re.sub(r"\d[\d,]*", "N", remedy))
        plan = plan_arrays(tmp_path, given, **settings)
        assert plan.worker_bytes <= 0.85 * given.memory_limit
    assert len(kinds) == len(remedies) >= 2


def test_the_memory_limit_that_is_named_is_not_much_more_than_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig) as caught:
        plan_arrays(tmp_path, Resources(2, 1, 1 << 30), **BIG_IMAGES)
    found = re.search(r"memory_limit of (\d+) MiB", caught.value.mend)
    assert found
    with pytest.raises(InvalidConfig, match="does not fit"):
        plan_arrays(tmp_path, Resources(2, 1, (int(found[1]) - 10) << 20), **BIG_IMAGES)


def test_a_long_row_group_is_refused_and_shorter_ones_fit(tmp_path: Path) -> None:
    n = 2_000_000
    uri, tight = tmp_path / "a.parquet", Resources(2, 1, 600 << 20)
    columns: dict[str, NDArray[np.float32]] = {f"p{j}": np.full(n, 1 / 20, np.float32) for j in range(20)}
    inputs = {"labels": {"uri": str(uri), "column": "label"}, "pred_probs": {"uri": str(uri), "columns": [*columns]}}
    settings = {"task": "multiclass", "input": inputs, "output": {"uri": "out", "format": "parquet"}}

    def write(rows: int) -> None:
        pq.write_table(pa.table({"label": np.zeros(n, np.int8), **columns}), uri, row_group_size=rows)

    write(n)
    with pytest.raises(InvalidConfig, match="does not fit") as caught:
        make_plan(parse_config(settings), tight)
    found = re.search(r"chunks \(Parquet: row groups\) of ([\d,]+) examples", caught.value.mend)
    assert found
    write(int(found[1].replace(",", "")))
    assert make_plan(parse_config(settings), tight).worker_bytes <= 0.85 * tight.memory_limit


def test_labels_in_a_long_row_group_count_with_what_they_take_once_read(tmp_path: Path) -> None:
    n = 3_000_000
    pq.write_table(pa.table({"label": np.zeros(n, np.int64)}), tmp_path / "labels.parquet", row_group_size=n)
    pq.write_table(
        pa.table({f"p{j}": np.full(n, 0.5, np.float16) for j in range(2)}), tmp_path / "p.parquet", row_group_size=10**5
    )
    inputs = {
        "labels": {"uri": str(tmp_path / "labels.parquet"), "column": "label"},
        "pred_probs": {"uri": str(tmp_path / "p.parquet"), "columns": ["p0", "p1"]},
    }
    config = {
        "task": "multiclass",
        "input": inputs,
        "output": {"uri": "out", "format": "parquet", "region_rows": 10**5},
    }
    plan = make_plan(parse_config(config), PLENTY)
    assert 10**5 <= plan.layout.block["example"] <= 1.25 * 10**5
    assert (tmp_path / "labels.parquet").stat().st_size < 10**5
    assert plan.region_bytes > n * 8


@pytest.mark.parametrize("limit", [0, 1 << 20, 400 << 20])
def test_a_worker_that_holds_only_the_libraries_is_told_what_it_needs(tmp_path: Path, limit: int) -> None:
    with pytest.raises(InvalidConfig, match=r"but has .*It would fit with a memory_limit of \d+ MiB\.$") as caught:
        plan_arrays(tmp_path, Resources(1, 1, limit), labels=LABELS, pred_probs=PRED_PROBS)
    shutil.rmtree(tmp_path / "data.zarr")
    found = re.search(r"memory_limit of (\d+)", caught.value.mend)
    assert found
    assert plan_arrays(tmp_path, Resources(1, 1, int(found[1]) << 20), labels=LABELS, pred_probs=PRED_PROBS).fits


def test_a_billion_rows_with_identifiers_fit_an_ordinary_worker(tmp_path: Path) -> None:
    case = {name: LONG_REGIONS[name] for name in ("labels", "pred_probs", "ids")}
    assert plan_arrays(tmp_path, Resources(2, 1, 2 << 30), **case).layout.regions.step <= 2**20 + 10**6

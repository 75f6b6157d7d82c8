"""How rows are cut: every row once, in order, and every output chunk by one writer, whatever the input's layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from labelqa_dask.storage.record import Version
from pipelines import layout
from pipelines.config import parse_config
from pipelines.layout import Regions, block_bytes, group_bounds
from pipelines.plan import Plan, Resources, make_plan
from pipelines.regions import RegionJob, make_job
from tests.strategies import cuts, seeded

RESOURCES = Resources(2, 1, 64 << 30)


@pytest.fixture
def limits() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def config_of(folder: str, task: str, **output: Any) -> dict[str, Any]:
    names = ("labels", "pred_probs")
    return {
        "task": task,
        "input": {name: {"uri": f"{folder}/data.zarr", "array": name} for name in names},
        "output": {"uri": f"{folder}/out", **output},
    }


def plan_zarr(
    folder: str, shapes: dict[str, tuple[int, ...]], chunks: dict[str, tuple[int, ...]], **output: Any
) -> Plan:
    """Plan for arrays that have metadata and no chunk yet."""
    group = zarr.open_group(f"{folder}/data.zarr", mode="w")
    for name, dtype in (("labels", np.uint8), ("pred_probs", np.float32)):
        group.create_array(name, shape=shapes[name], chunks=chunks[name], dtype=dtype)
    task = "segmentation" if len(shapes["labels"]) > 1 else "multiclass"
    return make_plan(parse_config(config_of(folder, task, **output)), RESOURCES)


def plan_parquet(folder: str, groups: tuple[int, ...], label_groups: tuple[int, ...], **output: Any) -> Plan:
    settings = config_of(folder, "multiclass", **output)
    for name, sizes, column in (("labels", label_groups, "label"), ("pred_probs", groups, "probs")):
        values = {"label": pa.array([0]), "probs": pa.array([[0.5, 0.5]])}[column]
        with pq.ParquetWriter(f"{folder}/{name}.parquet", pa.schema([(column, values.type)])) as writer:
            for size in sizes:
                writer.write_table(pa.table({column: pa.concat_arrays([values] * size)}))
        settings["input"][name] = {"uri": f"{folder}/{name}.parquet", "column": column}
    return make_plan(parse_config(settings), RESOURCES)


def jobs_of(plan: Plan) -> list[RegionJob]:
    version = Version(plan.sources["labels"].location / "out", "v000001")  # type: ignore[attr-defined]
    return [make_job(plan, version, "digest", "digest", region) for region in plan.layout.regions]


def check_regions(plan: Plan) -> None:
    """Regions cover all rows once and in order, and their names sort."""
    regions = list(plan.layout.regions)
    assert len(regions) == len(plan.layout.regions)
    assert [regions[0].start, regions[-1].stop] == [0, plan.layout.sizes["example"]]
    assert all(before.stop == after.start for before, after in pairwise(regions))
    assert all(region.start < region.stop for region in regions)
    names = [region.name for region in regions]
    assert names == sorted(set(names))
    assert len({len(name) for name in names}) == 1


def check_blocks(plan: Plan) -> None:
    """Blocks cover each region once, and none is larger than was planned."""
    for job in jobs_of(plan):
        rows = job.row_blocks()
        assert [rows[0].start, rows[-1].stop] == [job.region.start, job.region.stop]
        assert all(before.stop == after.start for before, after in pairwise(rows))
        assert all(0 < part.stop - part.start <= plan.layout.block["example"] for part in rows)
        inner = [size for dim, size in plan.layout.sizes.items() if dim not in ("example", "class")]
        covered = np.zeros(inner, int)
        for tile in job.layout.tiles():
            covered[tuple(tile.values())] += 1
            assert all(part.stop - part.start <= plan.layout.block[dim] for dim, part in tile.items())
        assert (covered == 1).all()


def check_writers(plan: Plan) -> None:
    """Every chunk of every output is written by exactly one region, and of what has tiles by exactly one block."""
    for output in plan.outputs:
        writers: dict[tuple[int, ...], set[Any]] = {}
        for job in jobs_of(plan):
            if len(output.dims) == 1:
                parts: Any = [[slice(job.region.start, job.region.stop)]]
            else:
                parts = [[rows, *tile.values()] for rows, tile in product(job.row_blocks(), job.layout.tiles())]
            for part in parts:
                touched = [range(s.start // c, -(-s.stop // c)) for s, c in zip(part, output.chunks, strict=True)]
                for chunk in product(*touched):
                    writers.setdefault(chunk, set()).add(str(part))
        assert all(len(found) == 1 for found in writers.values())
        assert len(writers) == math.prod(-(-n // c) for n, c in zip(output.shape, output.chunks, strict=True))


def check_input_chunks(plan: Plan, chunk: int) -> None:
    """No block begins or ends within a chunk of the input along the rows."""
    n = plan.layout.sizes["example"]
    for job in jobs_of(plan):
        assert all(rows.stop % chunk == 0 or rows.stop == n for rows in job.row_blocks())


sizes = st.integers(1, 60)
chunk_sizes = st.integers(1, 80)
region_rows = st.none() | st.integers(1, 70)
budgets = st.tuples(st.integers(1, 4000), st.integers(1, 20000))


@seeded
@given(n=sizes, k=st.integers(2, 5), chunk=chunk_sizes, label_chunk=chunk_sizes, rows=region_rows, budget=budgets)
@pytest.mark.parametrize("output_format", ["zarr", "parquet"])
def test_numbers_from_zarr(
    output_format: str, n: int, k: int, chunk: int, label_chunk: int, rows: int | None, budget: tuple[int, int]
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BLOCK_BYTES", budget[0])
        patch.setattr(layout, "REGION_BYTES", budget[1])
        shapes: dict[str, tuple[int, ...]] = {"labels": (n,), "pred_probs": (n, k)}
        chunks: dict[str, tuple[int, ...]] = {"labels": (label_chunk,), "pred_probs": (chunk, 2)}
        plan = plan_zarr(folder, shapes, chunks, format=output_format, region_rows=rows)
        check_regions(plan)
        check_blocks(plan)
        check_writers(plan)
        check_input_chunks(plan, chunk)
        assert plan.layout.block["class"] == k
        if rows:
            assert rows <= plan.layout.regions.step < rows + max(plan.layout.block["example"], min(chunk, n))


@seeded
@given(data=st.data(), n=st.integers(1, 12), k=st.integers(2, 4), rows=st.none() | st.integers(1, 12), budget=budgets)
def test_images_from_zarr(data: st.DataObject, n: int, k: int, rows: int | None, budget: tuple[int, int]) -> None:
    h, w = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    chunk = data.draw(st.tuples(st.integers(1, 5), st.integers(1, k), st.integers(1, 25), st.integers(1, 25)))
    label_chunk = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 25), st.integers(1, 25)))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BLOCK_BYTES", budget[0])
        patch.setattr(layout, "REGION_BYTES", budget[1])
        shapes: dict[str, tuple[int, ...]] = {"labels": (n, h, w), "pred_probs": (n, k, h, w)}
        plan = plan_zarr(folder, shapes, {"labels": label_chunk, "pred_probs": chunk}, region_rows=rows)
        check_regions(plan)
        check_blocks(plan)
        check_writers(plan)
        check_input_chunks(plan, chunk[0])
        for dim, c, size in (("y", chunk[2], h), ("x", chunk[3], w)):
            assert plan.layout.block[dim] % min(c, size) == 0 or plan.layout.block[dim] == size
        if block_bytes(plan.task, plan.sources, plan.layout.block) > budget[0]:
            smallest = {"example": min(chunk[0], n), "y": min(chunk[2], h), "x": min(chunk[3], w)}
            assert {dim: plan.layout.block[dim] for dim in smallest} == smallest, "it could have been cut further"


@seeded
@given(data=st.data(), n=sizes, rows=region_rows, budget=budgets)
@pytest.mark.parametrize("output_format", ["zarr", "parquet"])
def test_numbers_from_parquet(
    output_format: str, data: st.DataObject, n: int, rows: int | None, budget: tuple[int, int]
) -> None:
    groups, label_groups = data.draw(cuts(n)), data.draw(cuts(n))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BLOCK_BYTES", budget[0])
        patch.setattr(layout, "REGION_BYTES", budget[1])
        plan = plan_parquet(folder, groups, label_groups, format=output_format, region_rows=rows)
        check_regions(plan)
        check_blocks(plan)
        edges = {0, *np.cumsum(groups).tolist()}
        if output_format == "zarr":
            check_writers(plan)
        else:
            assert {region.stop for region in plan.layout.regions} <= edges, "a row group would be read twice"
        longest = max(region.stop - region.start for region in plan.layout.regions)
        assert longest <= plan.layout.regions.step, "the memory is planned for the longest region"


@pytest.mark.parametrize("n", [1, 2, 31, 33])
def test_few_rows_in_a_chunk_that_is_larger_make_one_region(tmp_path: Path, n: int) -> None:
    plan = plan_zarr(str(tmp_path), {"labels": (n,), "pred_probs": (n, 3)}, {"labels": (50,), "pred_probs": (1000, 3)})
    assert [(region.start, region.stop) for region in plan.layout.regions] == [(0, n)]
    assert {output.chunks for output in plan.outputs} == {(n,)}


def test_regions_are_some_dozen_where_the_data_are_small(tmp_path: Path) -> None:
    plan = plan_zarr(str(tmp_path), {"labels": (640,), "pred_probs": (640, 3)}, {"labels": (5,), "pred_probs": (5, 3)})
    assert layout.FEWEST_REGIONS <= len(plan.layout.regions) <= 2 * layout.FEWEST_REGIONS


def test_regions_are_bounded_where_the_data_are_large(tmp_path: Path) -> None:
    n = 10**9
    plan = plan_zarr(str(tmp_path), {"labels": (n,), "pred_probs": (n, 2)}, {"labels": (n,), "pred_probs": (10**5, 2)})
    assert plan.layout.regions.step <= layout.REGION_ROWS + 10**5
    images = {"labels": (10**6, 1000, 1000), "pred_probs": (10**6, 20, 1000, 1000)}
    plan = plan_zarr(str(tmp_path), images, {"labels": (1, 1000, 1000), "pred_probs": (1, 20, 1000, 1000)})
    assert plan.layout.regions.step * 81_000_000 <= layout.REGION_BYTES + layout.BLOCK_BYTES + 81_000_000


def test_regions_are_no_more_than_a_scheduler_takes_where_the_data_are_huge(tmp_path: Path) -> None:
    """Images are read in the same blocks then; rows of a table, which are gathered, are not."""
    plans = []
    for n in (10**6, 10**8):
        images = {"labels": (n, 1024, 2048), "pred_probs": (n, 19, 1024, 2048)}
        chunks = {"labels": (1, 1024, 2048), "pred_probs": (1, 19, 1024, 2048)}
        plans.append(plan_zarr(str(tmp_path), images, chunks))
    small, huge = plans
    assert (small.layout.regions.step, len(small.layout.regions)) == (4, 250_000)
    assert (huge.layout.regions.step, len(huge.layout.regions)) == (512, 195_313)
    assert huge.layout.block == {**small.layout.block, "example": 1}
    assert huge.worker_bytes < small.worker_bytes + (1 << 20)
    n = 10**12
    rows = {"labels": (n,), "pred_probs": (n, 2)}
    plan = plan_zarr(str(tmp_path), rows, {"labels": (10**5,), "pred_probs": (10**5, 2)})
    assert plan.layout.regions.step <= layout.REGION_ROWS + 10**5


def test_a_length_that_is_asked_for_is_kept_however_many_regions_that_makes(tmp_path: Path) -> None:
    shapes = {"labels": (10**7, 64, 64), "pred_probs": (10**7, 3, 64, 64)}
    plan = plan_zarr(str(tmp_path), shapes, {"labels": (1, 64, 64), "pred_probs": (1, 3, 64, 64)}, region_rows=1)
    assert (plan.layout.regions.step, len(plan.layout.regions)) == (1, 10**7)


@seeded
@given(rows=st.integers(1, 50), step=st.integers(1, 60), data=st.data())
def test_regions_that_hold_some_rows_are_found_without_looking_at_each(
    rows: int, step: int, data: st.DataObject
) -> None:
    cut = tuple(np.cumsum([0, *data.draw(cuts(rows))]).tolist())
    start = data.draw(st.integers(0, rows - 1))
    asked = range(start, data.draw(st.integers(start, rows + 9)))
    for regions in (Regions(rows, step), Regions(rows, step, cut)):
        expected = [i for i, r in enumerate(regions) if asked and r.start < asked.stop and r.stop > asked.start]
        assert list(regions.touching(asked)) == expected
        assert regions.starts.tolist() == [*(region.start for region in regions), rows]


def test_regions_are_marked_by_name_and_what_is_none_is_left_out() -> None:
    regions = Regions(25, 10)
    assert regions.marked(["00002", "00000", "00003", "2", "x", "", "00002"]).tolist() == [True, False, True]


def test_an_image_that_is_larger_than_a_block_is_cut_into_tiles(tmp_path: Path, limits: pytest.MonkeyPatch) -> None:
    shapes = {"labels": (3, 100, 90), "pred_probs": (3, 4, 100, 90)}
    chunks = {"labels": (1, 100, 90), "pred_probs": (1, 4, 20, 30)}
    assert len(list(plan_zarr(str(tmp_path), shapes, chunks).layout.tiles())) == 1
    limits.setattr(layout, "BLOCK_BYTES", 2 * 20 * 30 * 17)
    plan = plan_zarr(str(tmp_path), shapes, chunks)
    assert plan.layout.block == {"example": 1, "class": 4, "y": 20, "x": 60}
    assert len(list(plan.layout.tiles())) == 10
    check_writers(plan)


def test_the_layout_does_not_depend_on_the_cluster(tmp_path: Path) -> None:
    shapes = {"labels": (500, 60, 60), "pred_probs": (500, 4, 60, 60)}
    chunks = {"labels": (3, 60, 60), "pred_probs": (2, 4, 60, 60)}
    plan = plan_zarr(str(tmp_path), shapes, chunks)
    for resources in (Resources(1, 1, 1 << 40), Resources(64, 8, 16 << 30)):
        other = make_plan(plan.config, resources)
        assert other.layout == plan.layout
        assert other.manifest(other.look_up()[0]) == plan.manifest(plan.look_up()[0])


def test_names_of_regions_sort_however_many_there_are() -> None:
    few, many = Regions(99_999, 1), Regions(10**9, 100)
    assert [few[0].name, few[99_998].name] == ["00000", "99998"]
    numbers = [0, 9, 10, 99_999, 100_000, 9_999_999]
    assert [many[i].name for i in numbers] == sorted(many[i].name for i in numbers)
    assert (many[9_999_999].start, many[9_999_999].stop) == (999_999_900, 10**9)
    for i in (-1, 10_000_000):
        with pytest.raises(IndexError):
            many[i]


@seeded
@given(gaps=st.lists(st.integers(0, 9), max_size=30), first=st.integers(0, 5), most=st.integers(1, 40))
def test_bounds_are_grouped_as_far_as_they_may(gaps: list[int], first: int, most: int) -> None:
    bounds = np.cumsum([first, *gaps])
    kept = group_bounds(bounds, most)
    assert set(kept) <= set(bounds.tolist())
    assert (kept[0], kept[-1]) == (bounds[0], bounds[-1])
    assert all(a < b for a, b in pairwise(kept))
    inside = [[b for b in bounds if start < b < stop] for start, stop in pairwise(kept)]
    assert all(stop - start <= most or not cut for (start, stop), cut in zip(pairwise(kept), inside, strict=True))
    following = bounds.tolist()
    for start, stop in pairwise(kept[:-1]):
        after = next(b for b in following if b > stop)
        assert after - start > most, "one more would have fitted"

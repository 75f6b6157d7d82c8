"""What plans of few and of many regions take, measured in a process without threads that allocate beside it.

`python many.py FOLDER` prints JSON: of each step, for few and for many regions, the most bytes that came to be held,
the bytes that its result holds, and how many functions were called.
"""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr

from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import Version
from pipelines.bad_data import BadRegions
from pipelines.config import parse_config
from pipelines.estimate import regions_of
from pipelines.lineage import Lineage, descended
from pipelines.plan import Plan, Resources, make_plan
from pipelines.regions import make_job

FEW, MANY = 30_000, 300_000
WALKED = 100, 2_000


def images(folder: Path, n: int) -> dict[str, Any]:
    """Settings of an audit of n images, each a region; of the arrays only metadata exist."""
    group = zarr.open_group(str(folder / f"{n}.zarr"), mode="w")
    group.create_array("labels", shape=(n, 64, 64), chunks=(1, 64, 64), dtype="u1")
    group.create_array("pred_probs", shape=(n, 3, 64, 64), chunks=(1, 3, 64, 64), dtype="f4")
    return {
        "task": "segmentation",
        "params": {"method": "num_pixel_issues"},
        "input": {name: {"uri": f"{folder}/{n}.zarr", "array": name} for name in ("labels", "pred_probs")},
        "output": {"uri": f"{folder}/out-{n}", "region_rows": 1},
    }


def planned(settings: dict[str, Any]) -> Plan:
    return make_plan(parse_config(settings), Resources(2, 1, 4 << 30))


def begin(plan: Plan) -> tuple[Plan, list[Version]]:
    """Write down two versions as a run begins them, and find in the first what the second may take from it."""
    inputs, contents = plan.look_up()
    out = Location.parse(plan.config.output.uri)
    versions = [Version(out, "v000001"), Version(out, "v000002")]
    previous: Version | None = None
    for version in versions:
        manifest = descended(plan.manifest(inputs), previous, freeze=False)
        version.write_contents(contents, manifest["digest"])
        version.write_manifest(manifest)
        previous = version
    return replace(plan, lineage=Lineage.of(versions[1], manifest, contents)), versions


def walk(plan: Plan, version: Version) -> int:
    """Make the job of every region of each pass and of the scores, as they are sent, and forget it."""
    bad = BadRegions(plan, version, "digest")
    steps = plan.task.passes(plan.params)
    regions = plan.layout.regions
    numbers = [*(regions_of(step, range(regions.rows), regions) for step in steps), range(len(regions))]
    kept = regions.marked(version.partials("none"))
    count = 0
    for number in (i for each in numbers for i in each):
        region = regions[number]
        key, former = plan.descent.score_key(region, "", False), plan.descent.former(region)
        make_job(plan, version, "digest", bad.basis, region, key, former, bool(kept[number]))
        count += 1
    return count


def traced(function: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that a call held at most, and that its result holds, beyond what was held before."""
    tracemalloc.start()
    try:
        result = function()
        held, peak = tracemalloc.get_traced_memory()
        del result
        return peak, held
    finally:
        tracemalloc.stop()


def calls_of(function: Callable[[], Any]) -> int:
    """How many functions a call calls, written in Python or C."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def main(folder: Path) -> None:
    """Measure, each step once before in vain: what is imported and cached by the first call is not counted."""
    found: dict[str, list[tuple[int, int, int]]] = {"plan": [], "begin": [], "walk": []}

    def measure(step: str, function: Callable[[], Any]) -> None:
        function()
        found[step].append((*traced(function), calls_of(function)))

    for n in (FEW, MANY):
        settings = images(folder, n)
        plan = planned(settings)
        assert len(plan.layout.regions) == n
        measure("plan", lambda settings=settings: planned(settings))
        measure("begin", lambda plan=plan: begin(plan))
    for n in WALKED:
        plan, (_, version) = begin(planned(images(folder, n)))
        measure("walk", lambda plan=plan, version=version: walk(plan, version))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

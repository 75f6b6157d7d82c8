"""What stands at an output: its versions, and how far an unfinished one is."""

from __future__ import annotations

import json

from labelqa_dask.storage.lease import holder_of
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import Json, Version, latest, version_names
from pipelines.layout import Regions


def versions(out: Location) -> list[tuple[str, str, str, str, str, str]]:
    """For each version, newest first: name, state, task, examples, when it was begun, how long it took."""
    newest = latest(out)
    rows = []
    for name in reversed(version_names(out)):
        version = Version(out, name)
        manifest = version.manifest()
        if manifest is None:
            rows.append((name, "no manifest", "", "", "", ""))
            continue
        published = newest is not None and name <= newest.name
        state = (
            ("latest" if newest and name == newest.name else "published") if published else _how_far(version, manifest)
        )
        examples = f"{manifest['layout']['sizes']['example']:,}"
        rows.append((name, state, manifest["task"], examples, manifest["created"], _took(version) if published else ""))
    return rows


def _how_far(version: Version, manifest: Json) -> str:
    total = len(Regions.of(manifest))
    done = sum(1 for _ in (version.run / "done").entries())
    passes = sum(1 for _ in (version.run / "stats").entries())
    estimated = f", {passes} statistics passes finished" if passes else ""
    holder = holder_of(version.out)
    active = f", process {holder.pid} on {holder.host} is at work" if holder else ""
    return f"unfinished: {done:,} of {total:,} regions scored{estimated}{active}"


def _took(version: Version) -> str:
    content = version.run.read_if_exists("timings.json")
    if content is None:
        return ""
    timings = json.loads(content)
    seconds = sum(timings["seconds"].values())
    return f"{seconds:.1f} s{' (last session)' if timings['resumed'] else ''}"

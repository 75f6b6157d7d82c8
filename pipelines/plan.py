"""Stage 1, plan: from metadata alone, check that the inputs fit together and the run fits into memory."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from dask.utils import format_bytes

from labelqa_dask.core.errors import InvalidConfig, InvalidInput
from labelqa_dask.core.layout import ArrayInfo, check_layout, check_multiples
from labelqa_dask.core.task import ArraySpec, Params, Task
from labelqa_dask.storage.annotations import AnnotationFiles, AnnotationsSource
from labelqa_dask.storage.digests import Digests, digests_of_rows
from labelqa_dask.storage.icechunk_store import Snapshot
from labelqa_dask.storage.label_sets import LabelSetSource
from labelqa_dask.storage.location import Location, StorageOptions
from labelqa_dask.storage.parquet_source import ParquetFiles, ParquetSource, holds_lists_of_any_length
from labelqa_dask.storage.record import FORMAT, Json
from labelqa_dask.storage.sinks import OutputArray, ParquetSink, Sink, ZarrSink
from labelqa_dask.storage.sources import Source, as_ids
from labelqa_dask.storage.zarr_source import ZarrSource
from pipelines.config import AuditConfig, InputConfig
from pipelines.layout import Layout, block_bytes, by_rows, choose_layout
from pipelines.lineage import Lineage
from pipelines.versioned import AtVersion, Versions, open_versioned, refuse_other_output

# Measured: a worker process with every library imported. A fifth of it is what compiling the kernels takes, which
# happens in the first run on a machine.
WORKER_BYTES = 450 << 20
# Dask's nanny ends a worker at 95 % of its limit; some of the rest is left to the allocator.
USABLE_SHARE = 0.85
# Measured: Icechunk, once a repository is open.
ICECHUNK_BYTES = 24 << 20
# Of an identifier's key and row, while they are sorted; of an annotation while a piece of the input is cut by region.
INDEX_BYTES = 40
PIECE_ROW_BYTES = 320
# Of an identifier, which may be text, where it is read, kept and written. Measured: of the scores of a region, by how
# much more they take where they are written than as they are.
ID_BYTES = 360
WRITTEN_TIMES = 5
# Of an annotator on each worker, measured with a million of them: what it is called, its statistics and its weights.
ANNOTATOR_BYTES = 400
# What a version is called.
_VERSION: dict[str | None, str] = {"delta": "version", "iceberg": "snapshot", "icechunk": "snapshot"}
_SOFTWARE = ("labelqa-dask", "dask", "distributed", "numba", "numpy", "obstore", "pyarrow", "xarray", "zarr")


@dataclass(frozen=True)
class Resources:
    """What a worker has: threads, each with a region in hand, and memory in bytes."""

    workers: int
    threads_per_worker: int
    memory_limit: int


@dataclass(frozen=True)
class Plan:
    """A run before it starts: what is read, how it is cut, what is written, and what that takes.

    `versions` are those that inputs are read at which have versions, whatever is committed meanwhile.
    """

    config: AuditConfig
    task: Task[Any]
    params: Any
    sources: Mapping[str, Source]
    ids: Source | None
    layout: Layout
    outputs: tuple[OutputArray, ...]
    resources: Resources
    versions: Versions = field(default_factory=dict)
    lineage: Lineage | None = None

    @property
    def descent(self) -> Lineage:
        """What the run descends from, once it has begun."""
        assert self.lineage is not None
        return self.lineage

    @property
    def counted(self) -> int:
        """How many examples the statistics count."""
        return self.lineage.examples if self.lineage else self.layout.sizes["example"]

    @property
    def resolution(self) -> float:
        return max(source.resolution for source in self.sources.values())

    @property
    def input_bytes(self) -> int:
        """Bytes of the inputs, decoded."""
        return block_bytes(self.task, self.sources, self.layout.sizes)

    @property
    def passes(self) -> str:
        """How often the inputs are read, for people."""
        steps = self.task.passes(self.params)
        always = sum(step.examples is None for step in steps) + 1
        return f"{always} pass{'es' if always > 1 else ''}" + (
            "" if always > len(steps) else f", {len(steps) + 1} at most"
        )

    @property
    def region_bytes(self) -> int:
        """Peak memory of one region in hand: a block being read and decoded, its scores, and the region's rows."""
        block = self.layout.block
        reading = sum(
            self.sources[spec.name].decode_bytes([block[dim] for dim in spec.dims]) for spec in self.task.inputs
        )
        reading += sum(_converted_bytes(self.sources[spec.name], spec, block) for spec in self.task.inputs)
        if self.ids:
            reading += self.ids.decode_bytes([self.layout.regions.step])
        scores = sum(
            2 * output.dtype.itemsize * math.prod([block[dim] for dim in output.dims])
            for output in self.outputs
            if output.dtype != object
        )
        gathered = _gathered_bytes(self.task, self.params, self.sources, self.ids, self.layout.sizes)
        rows = self.layout.regions.step * gathered
        return reading + block_bytes(self.task, self.sources, block) // 4 + scores + rows

    @property
    def worker_bytes(self) -> int:
        """Peak memory of a worker."""
        threads = self.resources.threads_per_worker
        grouped = [source for source in self.sources.values() if isinstance(source, AnnotationsSource)]
        if not grouped:
            held = self.task.held_bytes(self.params, self.layout.sizes["example"])
            return WORKER_BYTES + held + self._repository_bytes + threads * self.region_bytes
        index = INDEX_BYTES * self.layout.sizes["example"] if self.ids else 0
        piece = grouped[0].files.piece_rows * PIECE_ROW_BYTES
        return WORKER_BYTES + index + self._repository_bytes + threads * max(self.region_bytes, piece)

    @property
    def _repository_bytes(self) -> int:
        """Memory of Icechunk, and of where the chunks of its arrays are."""
        stored = [source for source in self._stored.values() if isinstance(source, ZarrSource) and source.is_snapshot]
        return (ICECHUNK_BYTES if stored else 0) + sum(source.reference_bytes for source in stored)

    @property
    def _stored(self) -> dict[str, Source]:
        """Every source, the identifiers included."""
        return {**self.sources, **({"ids": self.ids} if self.ids else {})}

    @property
    def _of_annotators(self) -> str:
        """What cannot be planned: how many annotators there are is known once their labels have been read."""
        grouped = any(isinstance(source, AnnotationsSource) for source in self.sources.values())
        return f", and {ANNOTATOR_BYTES} bytes for each annotator" if grouped else ""

    @property
    def fits(self) -> bool:
        """Whether a worker has the memory for it."""
        return self.worker_bytes <= USABLE_SHARE * self.resources.memory_limit

    def sink(self, location: Location) -> Sink:
        if self.config.output.format == "zarr":
            return ZarrSink(location, {output.name: output.group for output in self.outputs})
        return ParquetSink(location / "scores")

    def look_up(self) -> tuple[dict[str, Json], Digests]:
        """What each input is, and what tells of each region whether its data have changed, by the objects there now."""
        sources, bounds = self._stored, self.layout.regions.starts
        found = {name: source.fingerprint(bounds) for name, source in sources.items()}
        described = {
            name: {
                **self.config.input[name].model_dump(mode="json", exclude_none=True),
                "shape": list(source.shape),
                "dtype": str(source.dtype),
                "objects": found[name].objects,
                "bytes": found[name].bytes,
                "digest": found[name].digest,
            }
            for name, source in sources.items()
        }
        return described, digests_of_rows([fingerprint.regions for fingerprint in found.values()], [*found])

    def manifest(self, inputs: Mapping[str, Json]) -> Json:
        """What is to be computed, from what, and how it is cut; two runs with equal manifests give equal bytes."""
        regions = self.layout.regions
        return {
            "format": FORMAT,
            "task": self.task.name,
            "params": self.params.model_dump(mode="json"),
            "inputs": dict(inputs),
            "output": {"format": self.config.output.format},
            "select": self.config.select.model_dump(mode="json"),
            "layout": {
                "sizes": dict(self.layout.sizes),
                "block": dict(self.layout.block),
                "region_rows": regions.step,
                "region_bounds": list(regions.bounds) if regions.bounds else None,
            },
            "labelqa_dask": version("labelqa-dask"),
        }

    def describe(self) -> list[tuple[str, str]]:
        """The plan for people: pairs of a name and what it is."""
        sizes, block, regions = self.layout.sizes, self.layout.block, self.layout.regions
        rows = [("task", f"{self.task.name}: {_settings(self.params)}")]
        for name, source in self.sources.items():
            shape = " × ".join(f"{size:,}" for size in source.shape)
            found = (
                f"{source.files.rows:,} rows" if isinstance(source, AnnotationsSource) else f"{shape}, {source.dtype}"
            )
            rows.append((name, f"{source.place}{self._at(name)}\n{found}"))
        if self.ids:
            rows.append(("ids", f"{self.ids.place}{self._at('ids')}"))
        extent = " × ".join(f"{block[dim]:,} {dim}" for dim in sizes)
        lengths = np.diff(regions.bounds).max() if regions.bounds else regions.step
        return [
            *rows,
            ("output", f"{self.config.output.uri} ({self.config.output.format})"),
            ("reads", f"{format_bytes(self.input_bytes)} in {self.passes}"),
            ("regions", f"{len(regions):,} of up to {lengths:,} examples"),
            ("blocks", f"{extent} ({format_bytes(block_bytes(self.task, self.sources, block))})"),
            (
                "workers",
                f"{self.resources.workers} × {self.resources.threads_per_worker} thread"
                f"{'s' if self.resources.threads_per_worker > 1 else ''}, "
                f"{format_bytes(self.resources.memory_limit)} each",
            ),
            ("peak memory", f"{format_bytes(self.worker_bytes)} per worker{self._of_annotators}"),
        ]

    def _at(self, name: str) -> str:
        """Which version of an input is read, where it has versions."""
        if name not in self.versions:
            return ""
        settings = self.config.input[name]
        branch = f"{settings.version}, " if isinstance(settings.version, str) else ""
        return f" ({branch}{_VERSION[settings.format]} {self.versions[name]})"


def make_plan(config: AuditConfig, resources: Resources, versions: Versions = {}) -> Plan:
    """Plan a run; inputs that have versions are read at those that are given, or else as the configuration asks.

    Raises
    ------
    InvalidConfig, InvalidInput, StorageError
        Inputs that are missing or do not fit together, and a run that does not fit into the workers' memory.
    """
    task = config.method
    params = task.params(**config.params)
    _check_output(config)
    _check_refresh(config, task, params)
    opened = open_versioned(config, versions)
    sources = _open_sources(config, task, opened)
    infos = {name: ArrayInfo(_known_shape(source), source.dtype, source.place) for name, source in sources.items()}
    sizes = check_layout(task, infos)
    sizes = {dim: sizes[dim] for dim in task.dims}
    config.expect.refuse_unknown_classes(sizes.get("class", 0))
    sources = {
        name: replace(source, examples=sizes["example"]) if isinstance(source, AnnotationsSource) else source
        for name, source in sources.items()
    }
    ids = None
    if "ids" in config.input:
        ids = open_source(config.input["ids"], "ids", config.storage, at=opened.get("ids"))
    if ids and ids.shape != (sizes["example"],):
        raise InvalidInput(
            f"ids have shape {ids.shape}, but there are {sizes['example']:,} examples",
            ids.place,
            "Give one identifier per example.",
        )
    check_multiples(task.multiples(params), sizes)
    pixelwise = [spec.name for spec in task.written(params) if len(spec.dims) > 2]
    if config.output.format != "zarr" and pixelwise:
        raise InvalidConfig(
            f"{task.name} writes {' and '.join(pixelwise)}, a value per pixel, which {config.output.format.title()} "
            "cannot hold",
            "output.format",
            "Use format: zarr.",
        )
    layout = _lay_out(config, task, params, sources, ids, sizes)
    outputs = _outputs(task, params, sources, ids, layout)
    _check_types(config, outputs)
    read_at = {name: at.version for name, at in opened.items() if at.version is not None}
    plan = Plan(config, task, params, sources, ids, layout, outputs, resources, read_at)
    if not plan.fits:
        raise _does_not_fit(plan)
    return plan


def _check_output(config: AuditConfig) -> None:
    """Refuse an output that cannot be a folder, and one whose files would be read as input by the next run."""
    out = Location.parse(config.output.uri, config.storage)
    above = Path(out.local_path or "")
    for path in [above, *above.parents] if out.local_path else []:
        if path.is_file():
            raise InvalidConfig("is a file, but the output is a folder", str(path), "Choose another output.uri.")
    refuse_other_output(config)
    for name, settings in config.input.items():
        if settings.catalog is not None:
            continue
        inside = Location.parse(settings.uri, config.storage)
        if settings.array is not None and settings.format is None:
            inside = inside / settings.array
        elif "*" in inside.name or "?" in inside.name:
            first = out.url.removeprefix(f"{inside.parent.url}/").partition("/")[0]
            if out.url.startswith(f"{inside.parent.url}/") and fnmatchcase(first, inside.name):
                inside = out
        if f"{out.url}/".startswith(f"{inside.url}/"):
            raise InvalidConfig(
                f"lies inside the input {name}, which would take in the scores as its data",
                str(out),
                "Choose an output.uri outside of every input.",
            )


def _check_types(config: AuditConfig, outputs: Iterable[OutputArray]) -> None:
    """Refuse what a table has no type for."""
    unsigned = [output.name for output in outputs if output.dtype.kind == "u"]
    if config.output.is_table and unsigned:
        raise InvalidConfig(
            f"{' and '.join(unsigned)} cannot be written: the table has no unsigned integers",
            "output.format",
            "Store them as signed integers or as text, or use format: parquet.",
        )


def _check_refresh(config: AuditConfig, task: Task[Any], params: Any) -> None:
    """Refuse to freeze statistics that cannot score data which they do not count."""
    if config.refresh.statistics == "frozen" and task.passes(params) and not task.scores_unseen(params):
        raise InvalidConfig(
            f"frozen statistics cannot score new data of {task.name} with {_settings(params)}",
            "refresh.statistics",
            "Use statistics: exact.",
        )


def _open_sources(config: AuditConfig, task: Task[Any], at: Mapping[str, AtVersion]) -> dict[str, Source]:
    """Open all inputs of a task; the one with every dimension tells how many classes there are."""

    def opened(spec: ArraySpec, classes: int = 0) -> Source:
        return open_source(config.input[spec.name], spec.kind, config.storage, classes, at.get(spec.name))

    leader = task.inputs[-1]
    predictions = opened(leader)
    classes = dict(zip(leader.dims, predictions.shape, strict=False)).get("class", 0)
    return {**{spec.name: opened(spec, classes) for spec in task.inputs[:-1]}, leader.name: predictions}


def open_source(
    settings: InputConfig, kind: str, storage: StorageOptions, classes: int = 0, at: AtVersion | None = None
) -> Source:
    """Open one input; label sets are those of some number of classes. What has versions was opened `at` one of them."""
    if kind != "annotations" and not settings.is_parquet:
        assert not isinstance(at, ParquetFiles), "its configuration names columns"
        location = at or Location.parse(settings.uri, storage)
        return ZarrSource.open(location, settings.array, predictions=kind in ("probabilities", "values"))
    assert not isinstance(at, Snapshot), "its configuration names no columns"
    files = at or Location.parse(settings.uri, storage)
    if kind == "annotations":
        return AnnotationsSource(AnnotationFiles.open(files, settings.columns or ()), 0)
    columns = settings.columns or (settings.column or "",)
    if kind == "indicators" and len(columns) == 1 and holds_lists_of_any_length(files, columns[0]):
        return LabelSetSource.open(files, columns[0], classes)
    return ParquetSource.open(files, columns, stack=kind in ("probabilities", "indicators"))


def _known_shape(source: Source) -> tuple[float, ...]:
    """The shape; annotations do not tell how many examples there are."""
    return (math.nan,) if isinstance(source, AnnotationsSource) else source.shape


def _converted_bytes(source: Source, spec: ArraySpec, block: Mapping[str, int]) -> int:
    """Memory of the copy that is made where values are not of a type that kernels take."""
    types = {"probabilities": (("f4", "f8"), 4), "values": (("f8",), 8)}
    kept, copied = types.get(spec.kind, (("u1", "i8", "b1"), 8))
    values = math.prod([block[dim] for dim in spec.dims])
    if spec.kind == "annotations":
        return 0
    return 0 if source.dtype.str[1:] in kept and source.dtype.isnative else values * max(copied, source.dtype.itemsize)


def software_versions() -> dict[str, str]:
    """What is installed here, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in _SOFTWARE}}


def _lay_out(
    config: AuditConfig,
    task: Task[Any],
    params: Any,
    sources: Mapping[str, Source],
    ids: Source | None,
    sizes: Mapping[str, int],
) -> Layout:
    return choose_layout(
        task,
        sources,
        sizes,
        task.multiples(params),
        regular=config.output.format == "zarr",
        region_rows=config.output.region_rows,
        gathered_bytes=_gathered_bytes(task, params, sources, ids, sizes),
    )


def _gathered_bytes(
    task: Task[Any], params: Any, sources: Mapping[str, Source], ids: Source | None, sizes: Mapping[str, int]
) -> int:
    """Memory of what is kept of each example of a region, at the peak: scores, identifier, annotations in a table.

    What has values within an example is written at once.
    """
    predictions = sources[task.inputs[-1].name].dtype
    scores = sum(
        max(8, spec.score_dtype(predictions).itemsize * math.prod([sizes[dim] for dim in spec.dims[1:]]))
        for spec in task.written(params)
        if by_rows(spec.dims)
    )
    annotations = sum(source.nbytes([1]) for source in sources.values() if isinstance(source, AnnotationsSource))
    return WRITTEN_TIMES * scores + (ID_BYTES if ids else 0) + 8 * annotations


def _outputs(
    task: Task[Any], params: Any, sources: Mapping[str, Source], ids: Source | None, layout: Layout
) -> tuple[OutputArray, ...]:
    predictions = sources[task.inputs[-1].name].dtype
    labels = task.inputs[0]
    outputs = []
    for spec in task.written(params):
        shape = tuple(layout.sizes[dim] for dim in spec.dims)
        by_region = len(spec.dims) == 1
        chunks = (layout.regions.step,) if by_region else tuple(layout.block[dim] for dim in spec.dims)
        if spec.kind == "issues" and spec.dims == labels.dims and not by_region:
            stored = sources[labels.name].chunks
            chunks = tuple(c if c and b % c == 0 else b for b, c in zip(chunks, stored, strict=True))
        chunks = tuple(min(c, size) for c, size in zip(chunks, shape, strict=True))
        outputs.append(OutputArray(spec.name, spec.dims, shape, spec.score_dtype(predictions), chunks, group_of(spec)))
    if ids:
        dtype = as_ids(np.empty(0, ids.dtype)).dtype
        outputs.append(OutputArray("id", ("example",), ids.shape, dtype, (min(layout.regions.step, ids.shape[0]),)))
    return tuple(outputs)


def group_of(spec: ArraySpec) -> str:
    """The Zarr group that an output is written in."""
    return "issues" if spec.kind == "issues" else "scores"


def _does_not_fit(plan: Plan) -> InvalidConfig:
    resources = plan.resources
    return InvalidConfig(
        f"does not fit: a worker would need {format_bytes(plan.worker_bytes)} "
        f"({format_bytes(plan.region_bytes)} for each of {resources.threads_per_worker} threads), "
        f"but has {format_bytes(resources.memory_limit)}, of which {USABLE_SHARE:.0%} can be planned with",
        "memory",
        f"It would fit with {', or '.join(_remedies(plan))}.",
    )


def _remedies(plan: Plan) -> Iterator[str]:
    """Changes each of which makes the run fit, as planning with them shows."""
    resources = plan.resources
    yield f"a memory_limit of {int(plan.worker_bytes / USABLE_SHARE / (1 << 20)) + 1} MiB"
    for threads in range(resources.threads_per_worker - 1, 0, -1):
        if replace(plan, resources=replace(resources, threads_per_worker=threads)).fits:
            yield f"{resources.workers} workers with threads_per_worker of {threads}"
            break
    rows = _region_rows_that_fit(plan)
    if rows:
        yield f"output.region_rows of {rows}"
    chunk = _chunks_that_fit(plan)
    if chunk:
        rows, *inner = chunk.values()
        extent = f" of {' × '.join(f'{size:,}' for size in inner)} ({' × '.join([*chunk][1:])})" if inner else ""
        yield f"inputs rewritten in chunks (Parquet: row groups) of {rows:,} example{'s' if rows > 1 else ''}{extent}"


def _chunks_that_fit(plan: Plan) -> dict[str, int] | None:
    """Chunks of all inputs with which a run fits: the examples are halved first, then the longest side of one."""
    chunk = {dim: size for dim, size in plan.layout.block.items() if dim != "class"}
    while max(chunk.values()) > _fewest_rows(plan):
        longest = "example" if chunk["example"] > 1 else max(chunk, key=lambda dim: chunk[dim])
        chunk[longest] = -(-chunk[longest] // 2)
        sources = {
            spec.name: plan.sources[spec.name].rechunked([chunk.get(dim) for dim in spec.dims])
            for spec in plan.task.inputs
        }
        if _laid_out_again(plan, plan.config, sources).fits:
            return chunk
    return None


def _region_rows_that_fit(plan: Plan) -> int | None:
    rows = plan.layout.regions.step
    while rows > _fewest_rows(plan):
        rows = -(-rows // 2)
        output = plan.config.output.model_copy(update={"region_rows": rows})
        if _laid_out_again(plan, plan.config.model_copy(update={"output": output}), plan.sources).fits:
            return rows
    return None


def _fewest_rows(plan: Plan) -> int:
    """Below this nobody would want to store the data: a thousand numbers, or one image."""
    return 1000 if len(plan.task.dims) == 2 else 1


def _laid_out_again(plan: Plan, config: AuditConfig, sources: Mapping[str, Source]) -> Plan:
    layout = _lay_out(config, plan.task, plan.params, sources, plan.ids, plan.layout.sizes)
    outputs = _outputs(plan.task, plan.params, sources, plan.ids, layout)
    return replace(plan, config=config, sources=sources, layout=layout, outputs=outputs)


def _settings(params: Params) -> str:
    """The method, and what else is not as it is by default."""
    changed = params.model_dump(exclude_defaults=True)
    shown = {name: value for name, value in params.model_dump().items() if name == "method" or name in changed}
    return ", ".join(f"{name} {value}" for name, value in shown.items())

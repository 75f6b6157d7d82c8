"""Whether a published version still is what was published: everything in it is read again and compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from labelqa_dask.core.blocks import available_cpus
from labelqa_dask.core.errors import LabelQAError, StorageError
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.task import Pass, Task, get_task
from labelqa_dask.storage.location import Location, map_ahead
from labelqa_dask.storage.record import FORMAT, MERGED, Json, Receipt, Version, basis_of, content_digest, latest
from labelqa_dask.storage.sinks import ParquetSink, Sink, ZarrSink, checksum
from pipelines.estimate import regions_of
from pipelines.layout import Layout, Region, Regions
from pipelines.lineage import Lineage, counted
from pipelines.plan import group_of
from pipelines.statistics import read_statistics, statistics, statistics_digest


@dataclass(frozen=True)
class Verified:
    """What came of a verification: the version, how many regions were read, and all that is wrong."""

    version: Version
    regions: int
    problems: tuple[str, ...]


def verify(out: Location) -> Verified:
    """Read the newest published version again and compare it with its record.

    Raises
    ------
    StorageError
        Where nothing has been published, or the record itself cannot be read.
    """
    version = latest(out)
    if version is None:
        raise StorageError("nothing has been published", str(out), "Run an audit with this output first.")
    manifest = version.manifest()
    if manifest is None:
        place = str(version.run / "manifest.json")
        raise StorageError("is damaged, and with it all that tells what the version should hold", place)
    if manifest["format"] != FORMAT:
        raise StorageError(
            f"was written in format {manifest['format']}, and this is of format {FORMAT}",
            str(version.location),
            "Verify it with the version of labelqa-dask that wrote it, or audit the data again.",
        )
    record = _Record.of(version, manifest)
    problems = [*_files(version), *record.missing_regions(), *record.damaged_statistics(), *record.strange_parts()]
    problems += record.damaged_partials(manifest) if not problems else []
    regions = 0
    for found in map_ahead(record.check_region, record.receipts(), available_cpus()):
        problems += found
        regions += 1
    return Verified(version, regions, tuple(problems))


def _files(version: Version) -> Iterator[str]:
    """Which of the files that were written last are missing or changed."""
    recorded = version.published_files()
    if recorded is None:
        yield f"{version.run / 'published.json'}: is missing or damaged"
        return
    for path, digest in recorded.items():
        content = version.location.read_if_exists(path)
        if content is None:
            yield f"{version.location / path}: is missing"
        elif content_digest(content) != digest:
            yield f"{version.location / path}: is not what was published"


@dataclass(frozen=True)
class _Record:
    """What the record of a version says it holds."""

    version: Version
    task: Task[Any]
    params: Any
    layout: Layout
    sink: Sink
    basis: str
    counted: int

    @classmethod
    def of(cls, version: Version, manifest: Json) -> _Record:
        task = get_task(manifest["task"])
        params = task.params(**manifest["params"])
        cut = manifest["layout"]
        regions = Regions.of(manifest)
        ids = "ids" in manifest["inputs"]
        groups = {spec.name: group_of(spec) for spec in task.written(params)} | ({"id": "scores"} if ids else {})
        zarr = manifest["output"]["format"] == "zarr"
        sink: Sink = ZarrSink(version.location, groups) if zarr else ParquetSink(version.location / "scores")
        digest = manifest["digest"]
        basis = basis_of(digest, version.bad_regions(digest)) if task.passes(params) else digest
        layout = Layout(cut["sizes"], regions, cut["block"])
        return cls(version, task, params, layout, sink, basis, counted(manifest))

    def receipts(self) -> Iterator[Receipt]:
        """The valid receipts, in the order of their regions."""
        return filter(None, self._receipts_of_regions())

    def _receipts_of_regions(self) -> Iterator[Receipt | None]:
        return self.version.receipts((region.name for region in self.layout.regions), self.basis)

    def missing_regions(self) -> Iterator[str]:
        for region, receipt in zip(self.layout.regions, self._receipts_of_regions(), strict=True):
            if receipt is None:
                yield f"{self.version.run}/done/{region.name}.json: is missing or damaged"

    def damaged_statistics(self) -> Iterator[str]:
        if self.task.passes(self.params):
            try:
                read_statistics(self.task.name, self.params, self.counted, self.version, self.basis, None)
            except LabelQAError as error:
                yield str(error)

    def damaged_partials(self, manifest: Json) -> Iterator[str]:
        """What the next version would take from this one besides the scores, and cannot."""
        contents = self.version.contents(manifest["digest"])
        if contents is None:
            yield f"{self.version.run}/regions.npz: is missing or damaged"
            return
        lineage = Lineage.of(self.version, manifest, contents)
        bad = self.version.bad_regions(manifest["digest"])
        asked = self.task.name, self.params, self.counted, self.version, self.basis
        for number, step in enumerate(self.task.passes(self.params)):
            needed = step.needed(self.params, statistics(*asked, number), self.counted)
            if needed is None or (lineage.frozen and step.examples):
                continue
            if lineage.frozen and self.version.read_state(step.name, step.state, self.basis, MERGED) is None:
                yield f"{self.version.run}/{MERGED}/{step.name}.npz: is missing or damaged"
            numbers = regions_of(step, needed, self.layout.regions)
            regions = (region for region in map(self.layout.regions.__getitem__, numbers) if region.name not in bad)
            lacks = partial(self._lacking, lineage, step, statistics_digest(*asked, number))
            for problems in map_ahead(lacks, regions, available_cpus()):
                yield from problems

    def _lacking(self, lineage: Lineage, step: Pass[Any], earlier: str, region: Region) -> list[str]:
        key = lineage.partial_key(region, step, earlier)
        if self.version.read_partial(step.name, region.name, step.state, key) is not None:
            return []
        return [f"{self.version.run}/partial/{step.name}/{region.name}.npz.zst: is missing or damaged"]

    def strange_parts(self) -> Iterator[str]:
        """Parts of no region, which readers would take for its scores, or for a table beside them."""
        known = {path for receipt in self.receipts() for path in receipt.files}
        if isinstance(self.sink, ParquetSink):
            known |= {f"{self.sink.location.name}/{self.sink.part(region.name)}" for region in self.layout.regions}
        for folder in {path.rpartition("/")[0] for path in known}:
            for entry in self.version.location.entries(folder):
                if entry.path not in known:
                    yield f"{self.version.location / entry.path}: is not of this version"

    def check_region(self, receipt: Receipt) -> list[str]:
        """What is wrong with what a region has written."""
        place = f"region {receipt.region}, rows {receipt.start:,} to {receipt.stop - 1:,}"
        try:
            found = self._left_out(receipt) if not receipt.scored else {}
            rows = {name: checksum(self._rows(receipt, name)) for name in receipt.rows}
            blocks = {name: self._digest_of_blocks(receipt, name) for name in receipt.blocks}
            files = {path: content_digest(self.version.location.read(path)) for path in receipt.files}
        except StorageError as error:
            return [f"{place}: {error}"]
        found |= {name: rows[name] == receipt.rows[name] for name in rows}
        found |= {name: blocks[name] == receipt.blocks[name] for name in blocks}
        found |= {path: files[path] == receipt.files[path] for path in files}
        return [f"{place}: {name} is not what was written" for name, as_written in found.items() if not as_written]

    def _rows(self, receipt: Receipt, name: str) -> Array:
        return self.sink.read_rows(receipt.region, name, receipt.start, receipt.stop)

    def _digest_of_blocks(self, receipt: Receipt, name: str) -> str:
        """Digest of an output that was written block by block, in that order."""
        spec = next(spec for spec in self.task.written(self.params) if spec.name == name)
        digests = ""
        for rows in pairwise(receipt.cuts):
            for tile in self.layout.tiles():
                where = {"example": slice(*rows), "class": slice(None), **tile}
                digests += checksum(self.sink.read_block(name, tuple(where[dim] for dim in spec.dims)))
        return content_digest(digests.encode())

    def _left_out(self, receipt: Receipt) -> dict[str, bool]:
        """Of each output of a region without scores, whether all of it is missing."""
        outputs = (spec.name for spec in self.task.written(self.params))
        return {name: bool(_is_missing(self._rows(receipt, name)).all()) for name in outputs}


def _is_missing(values: Array) -> Array:
    if values.dtype.kind == "f":
        return np.isnan(values)
    none: Any = {"i": -1, "b": False}.get(values.dtype.kind)
    missing: Array = values == none
    return missing

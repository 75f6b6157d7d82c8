"""The record of a run: versions, the manifest, one receipt per region, and statistics that outlive a crash.

    OUT/latest.json               the newest complete version; written last; readers start here
    OUT/v000001/                  what is published
    OUT/v000001/_run/             manifest.json, regions.npz, stats/<pass>.npz, merged/<pass>.npz,
                                  partial/<pass>/<region>.npz.zst, done/<region>.json, bad/<region>.json, timings.json

The record, not a future in some scheduler's memory, is what a run is: whatever it says is done is done, and the rest is
done by running the same command again. What is done of a region is known by a key, the digest of all that it follows
from, so that the next version can take it over where that is the same.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, Self, TypeVar, get_type_hints

import numpy as np
import pyarrow as pa
import xxhash

from labelqa_dask.core.errors import OutdatedRun, RunConflict, StorageError
from labelqa_dask.core.summary import Summary
from labelqa_dask.storage.digests import Digests
from labelqa_dask.storage.location import Location, map_ahead

Json = dict[str, Any]
StateT = TypeVar("StateT")

_READ_AHEAD = 16
FORMAT = 4
"""Of the record. What another one tells is not read."""
STATS, MERGED = "stats", "merged"
"""Where the states are that scores rest on, and those of the data where the former are frozen."""


@dataclass(frozen=True)
class Sealed:
    """What is written down with a digest of itself, so that damage shows."""

    def to_json(self) -> bytes:
        content = _canonical(_encode(self))
        return f'{content[:-1]}, "digest": "{_key_digest(content.encode())}"}}'.encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self | None:
        """What was written, or None where the object is damaged."""
        try:
            fields_ = json.loads(content)
            if fields_.pop("digest") != json_digest(fields_):
                return None
            return _decode(cls, fields_)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


@dataclass(frozen=True)
class Receipt(Sealed):
    """The commit of one region: written after its scores, and before anything counts on them.

    Attributes
    ----------
    basis : digest of what the scores rest on: the manifest, and the regions that its statistics leave out.
    key : digest of what they were made of: settings, the region's data, and the statistics.
    origin : name of the version in which they were made; the others have taken them over.
    scored : whether there are scores; a region whose data cannot be scored is written without any.
    cuts : where the rows were cut into blocks, both ends included.
    rows, blocks : digest of each output that was written for all rows at once, unless into a file of the region's own,
        and of each one written block by block.
    files : digest of each file of the region's own, by its path in the version.
    """

    region: str
    start: int
    stop: int
    basis: str
    key: str
    origin: str
    scored: bool
    cuts: tuple[int, ...]
    rows: Mapping[str, str]
    blocks: Mapping[str, str]
    summary: Summary
    files: Mapping[str, str] = field(default_factory=dict)

    def moved(self, region: str, start: int, basis: str, files: Mapping[str, str]) -> Self:
        """As that of a region of the same rows with another name, number of the first row, basis, and files."""
        by = start - self.start
        worst = replace(self.summary.worst, rows=self.summary.worst.rows + by)
        return replace(
            self,
            region=region,
            start=start,
            stop=self.stop + by,
            basis=basis,
            cuts=tuple(cut + by for cut in self.cuts),
            summary=replace(self.summary, worst=worst),
            files=files,
        )


@dataclass(frozen=True)
class BadRegion(Sealed):
    """A region whose data cannot be scored, and the first reasons found."""

    region: str
    start: int
    stop: int
    manifest: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Published(Sealed):
    """Digest of each file of a version that no region has written."""

    files: Mapping[str, str]


@dataclass(frozen=True)
class Contents:
    """What tells of each region whether its data have changed: digests (regions, 16)."""

    digests: Digests


@dataclass(frozen=True)
class Version:
    """One version under OUT, complete or in the making."""

    out: Location
    name: str

    @property
    def location(self) -> Location:
        return self.out / self.name

    @property
    def run(self) -> Location:
        return self.location / "_run"

    def manifest(self) -> Json | None:
        """The manifest, or None where there is none that can be read."""
        content = self.run.read_if_exists("manifest.json")
        if content is None:
            return None
        try:
            manifest: Json = json.loads(content)
            return manifest if manifest.pop("checksum") == json_digest(manifest) else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def write_manifest(self, manifest: Json) -> None:
        self.run.write("manifest.json", dump_json({**manifest, "checksum": json_digest(manifest)}))

    def receipt(self, region: str) -> Receipt | None:
        """The receipt of a region, or None where there is none that can be read."""
        content = self.run.read_if_exists(f"done/{region}.json")
        return None if content is None else Receipt.from_json(content)

    def receipted(self) -> Iterator[str]:
        """The regions that have a receipt, valid or not."""
        return (entry.path.removesuffix(".json") for entry in (self.run / "done").entries())

    def receipts(self, regions: Iterable[str], basis: str) -> Iterator[Receipt | None]:
        """The valid receipt of each region in turn, None where none rests on a basis; few are held at a time."""
        for receipt in map_ahead(self.receipt, regions, _READ_AHEAD):
            yield receipt if receipt is not None and receipt.basis == basis else None

    def write_receipt(self, receipt: Receipt) -> None:
        self.run.write(f"done/{receipt.region}.json", receipt.to_json())

    def bad_regions(self, manifest: str) -> dict[str, BadRegion]:
        """The regions of a manifest that were found to hold data that cannot be scored, by name, in order."""
        bad = self.run / "bad"
        read = map(BadRegion.from_json, bad.read_many(sorted(entry.path for entry in bad.entries())))
        return {region.region: region for region in read if region is not None and region.manifest == manifest}

    def write_bad_region(self, bad: BadRegion) -> None:
        self.run.write(f"bad/{bad.region}.json", bad.to_json())

    def published_files(self) -> Mapping[str, str] | None:
        """Digest of each file that was published beside the scores, or None where they cannot be read."""
        content = self.run.read_if_exists("published.json")
        published = Published.from_json(content) if content is not None else None
        return published.files if published else None

    def read_state(self, name: str, kind: type[StateT], basis: str, folder: str = STATS) -> StateT | None:
        """The state of a finished pass, or None where it is to be done."""
        return _load_state(self.run.read_if_exists(f"{folder}/{name}.npz"), kind, basis)

    def write_state(self, name: str, state: Any, basis: str, folder: str = STATS) -> None:
        self.run.write(f"{folder}/{name}.npz", _dump_state(state, basis))

    def contents(self, manifest: str) -> Digests | None:
        """What tells of each region of a manifest whether its data have changed, or None where it cannot be read."""
        found = _load_state(_unsealed(self.run.read_if_exists("regions.npz") or b""), Contents, manifest)
        return None if found is None else found.digests

    def write_contents(self, contents: Digests, manifest: str) -> None:
        self.run.write("regions.npz", _sealed(_dump_state(Contents(contents), manifest)))

    def partials(self, name: str) -> Iterator[str]:
        """The regions of which a partial state of a pass was written, in no particular order."""
        return (entry.path.partition(".")[0] for entry in (self.run / "partial" / name).entries())

    def read_partial(self, name: str, region: str, kind: type[StateT], key: str) -> StateT | None:
        """The state of a pass over one region, or None where it was made of something else, or not at all."""
        content = _unsealed(self.run.read_if_exists(_partial(name, region)) or b"")
        if content is None:
            return None
        with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
            return _load_state(stream.read(), kind, key)

    def write_partial(self, name: str, region: str, state: Any, key: str) -> None:
        """Histograms are mostly empty: compressed, they are a few kilobytes."""
        content = pa.compress(_dump_state(state, key), codec="zstd", asbytes=True)
        self.run.write(_partial(name, region), _sealed(content))

    def publish(
        self, files: Mapping[str, bytes], metadata: Iterable[str], content: Json, check: Callable[[], None]
    ) -> None:
        """Write what readers want, and last of all the pointer that lets them find it.

        Digests of these files, and of the metadata that were there before, are written down to be verified. What checks
        that this run may still publish is called at the last moment.
        """
        digests = {path: content_digest(self.location.read(path)) for path in metadata}
        for path, file in files.items():
            self.location.write(path, file)
            digests[path] = content_digest(file)
        self.run.write("published.json", Published(digests).to_json())
        check()
        pointer = {"version": self.name, **content}
        self.out.write("latest.json", dump_json({**pointer, "checksum": json_digest(pointer)}))


def _partial(name: str, region: str) -> str:
    return f"partial/{name}/{region}.npz.zst"


_SKIPPED_FRAME = b"\x50\x2a\x4d\x18"


def _sealed(content: bytes) -> bytes:
    """An archive with a digest of every byte after it, in a frame that decoders of Zstandard skip."""
    return content + _seal(content)


def _unsealed(sealed: bytes) -> bytes | None:
    """What was sealed, or None where any of it has changed."""
    content = sealed[: -len(_seal(b""))]
    return content if sealed and sealed[len(content) :] == _seal(content) else None


def _seal(content: bytes) -> bytes:
    digest = content_digest(content).encode()
    return _SKIPPED_FRAME + len(digest).to_bytes(4, "little") + digest


def _dump_state(state: Any, basis: str) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, basis=np.array(basis), **{f.name: getattr(state, f.name) for f in fields(state)})
    return buffer.getvalue()


def _load_state(content: bytes | None, kind: type[StateT], basis: str) -> StateT | None:
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if str(arrays["basis"]) != basis:
                return None
            return kind(**{f.name: _scalar(arrays[f.name]) for f in fields(kind)})  # type: ignore[arg-type]
    except Exception:  # what a damaged archive raises is not to be foreseen
        return None


def state_digest(state: Any) -> str:
    """Digest of every bit of a state, for keys."""
    return _key_digest(_dump_state(state, ""))


def latest(out: Location) -> Version | None:
    """The newest complete version; a pointer that was restored by hand needs no checksum."""
    content = out.read_if_exists("latest.json")
    if content is None:
        return None
    try:
        pointer = json.loads(content)
        checksum = pointer.pop("checksum", None)
        name = pointer["version"] if checksum in (None, json_digest(pointer)) else ""
    except (ValueError, KeyError, TypeError, AttributeError):
        name = ""
    if not _is_version(str(name)):
        raise StorageError(
            "is damaged", str(out / "latest.json"), 'Restore it: {"version": "v00000N"} with the last version.'
        )
    return Version(out, name)


def unfinished(out: Location) -> Version | None:
    """The version in the making, if there is one."""
    complete = latest(out)
    newer = [name for name in version_names(out) if complete is None or name > complete.name]
    return Version(out, newer[-1]) if newer else None


def next_version(out: Location) -> Version:
    """The version after the last one, complete or not."""
    names = version_names(out)
    return Version(out, f"v{int(names[-1][1:]) + 1 if names else 1:06d}")


def version_names(out: Location) -> list[str]:
    """Names of all versions, oldest first."""
    return [name for name in out.children() if _is_version(name)]


def prune(out: Location, keep: int) -> None:
    """Delete published versions but so many of the newest; without its manifest a version counts for nothing."""
    newest = latest(out)
    published = [name for name in version_names(out) if newest and name <= newest.name]
    for name in published[: -max(1, keep)]:
        version = Version(out, name)
        version.run.delete_object("manifest.json")
        version.location.delete()


def _is_version(name: str) -> bool:
    return len(name) == 7 and name[0] == "v" and name[1:].isdecimal()


# Parts of a manifest that say when and by what it was made, not what is to be computed.
_CIRCUMSTANCES = ("created", "software", "versions", "previous", "digest")
# Parts of an input that are found, not set.
_FACTS = ("shape", "dtype", "objects", "bytes", "digest")
_MOST_SHOWN = 16


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Digest of what a manifest says is to be computed."""
    return json_digest({key: value for key, value in manifest.items() if key not in _CIRCUMSTANCES})


def basis_of(manifest: str, left_out: Iterable[str]) -> str:
    """Digest of what a run's statistics rest on: its manifest, and the regions that they leave out."""
    names = sorted(left_out)
    return json_digest([manifest, names]) if names else manifest


def check_same(manifest: Json, planned: Json, where: str) -> None:
    """Refuse to continue a run with other settings or inputs than it was begun with, naming what differs.

    Raises
    ------
    OutdatedRun
        Where the inputs are other data in the same places.
    RunConflict
        Where anything else differs.
    """
    then, now = (dict(_flatten({k: v for k, v in m.items() if k not in _CIRCUMSTANCES})) for m in (manifest, planned))
    changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
    changes = [f"{key}: {_shown(then, key)} then, {_shown(now, key)} now" for key in changed]
    if changes:
        of_inputs = [key.split(".") for key in changed if key.startswith("inputs.")]
        outdated = bool(of_inputs) and all(fact in _FACTS for _, _, fact in of_inputs)
        raise (OutdatedRun if outdated else RunConflict)(
            "an unfinished run there was begun with other settings or inputs: " + "; ".join(changes),
            where,
            "Run it as it was begun to finish it, or add --fresh to discard it and start anew.",
        )


def _shown(settings: Mapping[str, Any], key: str) -> str:
    """A value for people, who do not read a million numbers."""
    value = settings.get(key, "not set")
    return f"{len(value):,} values" if isinstance(value, list) and len(value) > _MOST_SHOWN else str(value)


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def content_digest(content: bytes) -> str:
    """Digest of an object, by which damage shows; XXH3 takes less time than reading the object from memory."""
    return xxhash.xxh3_128_hexdigest(content)


def dump_json(content: Any) -> bytes:
    """JSON for people and machines: indented, in the order given, exact floats, no NaN."""
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def json_digest(content: Any) -> str:
    """Digest of what JSON can hold."""
    return _key_digest(_canonical(content).encode())


def _key_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)


# States and receipts as JSON, by their own type annotations.

_type_hints = cache(get_type_hints)


def _encode(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        return {"dtype": "str" if value.dtype == object else value.dtype.str, "values": value.tolist()}
    if isinstance(value, Mapping):
        return {key: _encode(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _decode(kind: Any, value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"dtype", "values"}:
        if value["dtype"] == "str":  # strings, or lists, which NumPy would make columns of
            return np.fromiter(value["values"], object, len(value["values"]))
        return np.array(value["values"], np.dtype(value["dtype"]))
    alternatives = [kind, *getattr(kind, "__args__", ())]
    cls = next((a for a in alternatives if isinstance(a, type) and is_dataclass(a)), None)
    if isinstance(value, dict) and cls is not None:
        hints = _type_hints(cls)
        return cls(**{f.name: _decode(hints[f.name], value[f.name]) for f in fields(cls)})
    if isinstance(value, dict):
        return {key: _decode(None, inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _scalar(array: Any) -> Any:
    return array.item() if array.ndim == 0 else array

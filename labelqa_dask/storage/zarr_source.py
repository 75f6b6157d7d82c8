"""Arrays of Zarr groups as sources, decoded as their CF attributes say."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice, product
from typing import Any, Self

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError, nearest
from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.digests import digest_of_sum, digests_of_rows, hash_of, stacked
from labelqa_dask.storage.icechunk_store import REFERENCE_BYTES, Snapshot
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.sources import NO_BOUNDS, Bounds, Fingerprint, Index

_CF_ATTRIBUTES = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
_CHUNKS_IN_FLIGHT = 10
_ENTRIES = 4096


@dataclass(frozen=True)
class ZarrSource:
    """An array of a Zarr group (format 2 or 3), decoded as its CF attributes say.

    A `_FillValue` or `missing_value` marks missing values. The fill value of a Zarr array is a value like any other;
    only in format 2, where xarray keeps `_FillValue` there, does one that is not 0 mark missing values.
    """

    location: Location | Snapshot
    array: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    attributes: Mapping[str, Any]
    stored: np.dtype[Any]
    metadata: str
    start: int
    stop: int
    complete: bool

    @classmethod
    def open(cls, location: Location | Snapshot, array: str | None, *, predictions: bool) -> Self:
        """Open an array by its name in a group; without a name, the location is the array, or holds only one.

        Predictions are decoded, and every chunk of theirs must have been written; labels are taken as they are, since
        a chunk of nothing but class 0 may well not be written.
        """
        if isinstance(location, Location) and not location.is_folder():
            what = "is not a Zarr group or array" if location.exists() else "does not exist"
            raise StorageError(what, str(location), "Check the URI.")
        path = array.strip("/") if array is not None else _only_array(location)
        node = _open_array(location, path)
        if isinstance(location, Snapshot):
            location.refuse_virtual(path, node.ndim)
        source = cls(
            location,
            path,
            node.shape,
            node.dtype,
            node.shards or node.chunks,
            _cf_attributes(node) if predictions else {},
            node.dtype,
            _digest_of(node),
            0,
            node.shape[0] if node.shape else 0,
            predictions,
        )
        decoded = (
            source._decode(np.zeros((0,) * node.ndim, node.dtype)).dtype if node.dtype.kind in "iuf" else node.dtype
        )
        return replace(source, dtype=decoded)

    @property
    def place(self) -> str:
        return str(self.location / self.array) if self.array else str(self.location)

    @property
    def resolution(self) -> float:
        return abs(float(self.attributes.get("scale_factor", 0.0)))

    def rows(self, start: int, stop: int) -> Self:
        return replace(self, start=start, stop=stop)

    def row_bounds(self) -> NDArray[np.int64]:
        step = self.chunks[0]
        inner = np.arange(-(-(self.start + 1) // step) * step, self.stop, step)
        return np.concatenate([[self.start], inner, [self.stop]]).astype(np.int64)

    def read(self, index: Index) -> Array:
        node = _open_planned(self.location, self.array, self.metadata)
        index = (*index, *(slice(None) for _ in node.shape[len(index) :]))
        try:
            values = self.location.attempt(self.array, lambda: np.asarray(node[index]))
        except (StorageError, MemoryError):
            raise
        except Exception as error:  # what a codec raises is not to be foreseen
            raise self._undecodable(node, index, error) from error
        if self.complete:
            self._check_written(node, index, values)
        return self._decode(values)

    def _undecodable(self, node: zarr.Array[Any], index: Index, error: Exception) -> Exception:
        """Which chunk of a block cannot be decoded, looked for one by one; not the data's fault where each one can."""
        for chunk, part in _chunks_in(node, index):
            try:
                self.location.attempt(self.array, partial(node.__getitem__, part))
            except (StorageError, MemoryError):
                raise
            except Exception as cause:
                return InvalidInput(
                    f"chunk {_chunk_key(node, chunk)} cannot be decoded ({type(cause).__name__}: {cause})",
                    self.place,
                    "It is damaged: write it again.",
                )
        return StorageError(f"could not be decoded at first ({type(error).__name__}: {error})", self.place)

    def _check_written(self, node: zarr.Array[Any], index: Index, values: Array) -> None:
        """Refuse what was never written, which reads as the fill value.

        A chunk of nothing but the fill value is not written either by default, as where a class is never predicted;
        so chunks are missing only where there is none of any class. The store is asked where all values say so.
        """
        fill = node.fill_value
        chunks: dict[tuple[int, ...], list[tuple[tuple[int, ...], Index]]] = {}
        for chunk, part in _chunks_in(node, index):
            chunks.setdefault((chunk[0], *chunk[2:]), []).append((chunk, part))
        starts = [s.indices(size)[0] for s, size in zip(index, node.shape, strict=True)]
        for across in chunks.values():
            inside = [
                tuple(slice(s.start - start, s.stop - start) for s, start in zip(part, starts, strict=True))
                for _, part in across
            ]
            if not all(_holds_only(values[part], fill) for part in inside):
                continue
            keys = [_chunk_key(node, chunk) for chunk, _ in across]
            if not any(self.location.holds(f"{self.array}/{key}".strip("/")) for key in keys):
                rows = across[0][1][0]
                raise InvalidInput(
                    f"chunk {keys[0]} (examples {rows.start:,} to {rows.stop - 1:,}) was never written",
                    self.place,
                    f"It reads as the fill value {fill}: write it, or drop these examples.",
                )

    def seams(self, rows: int) -> NDArray[np.int64]:
        return np.empty(0, np.int64)

    def fingerprint(self, bounds: Bounds = NO_BOUNDS) -> Fingerprint:
        """Chunks count for the regions whose rows they hold; of the metadata what tells how these are decoded."""
        starts, stops = bounds[:-1], bounds[1:]
        chunks = np.zeros((len(starts), 2), np.uint64)
        objects = nbytes = total = 0
        entries = self.location.entries(self.array or None)
        while batch := list(islice(entries, _ENTRIES)):
            hashes = [hash_of((entry.path, entry.size, entry.version)) for entry in batch]
            objects += len(batch)
            nbytes += sum(entry.size for entry in batch)
            total += sum(hashes)
            if len(starts):
                self._count([entry.path for entry in batch], stacked(hashes).view(np.uint64), starts, stops, chunks)
        whole = Fingerprint(objects, nbytes, digest_of_sum(total))
        if not len(starts):
            return whole
        regions = digests_of_rows([starts, stops, chunks.view(np.uint8)], [self.place, self._decoding()])
        return replace(whole, regions=regions)

    def _count(
        self,
        paths: Sequence[str],
        hashes: NDArray[np.uint64],
        starts: Bounds,
        stops: Bounds,
        chunks: NDArray[np.uint64],
    ) -> None:
        """Let the hashes of some objects count for the regions whose rows they hold: added up without carrying."""
        rows, prefix = self.chunks[0] if self.chunks else 1, f"{self.array}/"
        found = [_row_of_chunk(path.removeprefix(prefix)) for path in paths]
        numbers = np.array([-1 if number is None else number for number in found], np.int64)
        first = np.searchsorted(stops, numbers * rows, side="right")
        last = np.searchsorted(starts, (numbers + 1) * rows)
        last[numbers < 0] = 0
        alone = last - first == 1
        np.bitwise_xor.at(chunks, first[alone], hashes[alone])
        for i in np.flatnonzero(last - first > 1).tolist():
            chunks[first[i] : last[i]] ^= hashes[i]

    def _decoding(self) -> str:
        """Digest of the metadata that a region's values follow from: not the length, nor what is said of the array."""
        metadata = _open_planned(self.location, self.array, self.metadata).metadata.to_dict()
        kept = {key: value for key, value in metadata.items() if key not in ("shape", "attributes")}
        return _digest_of_json([kept, self.shape[1:], self.attributes])

    def nbytes(self, block: Sequence[int]) -> int:
        return math.prod(block) * self.dtype.itemsize

    def decode_bytes(self, block: Sequence[int]) -> int:
        result = self.nbytes(block)
        chunk = math.prod(self.chunks) * self.stored.itemsize
        in_flight = min(_CHUNKS_IN_FLIGHT, math.prod([-(-b // c) for b, c in zip(block, self.chunks, strict=True)]))
        raw = math.prod(block) * self.stored.itemsize if self.attributes else 0
        return result + raw + 2 * chunk * in_flight

    @property
    def is_snapshot(self) -> bool:
        """Whether it is read at a snapshot of an Icechunk repository."""
        return isinstance(self.location, Snapshot)

    @property
    def reference_bytes(self) -> int:
        """Memory of where the chunks are, which a process holds of an array in a repository."""
        chunks = (-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))
        return REFERENCE_BYTES * math.prod(chunks)

    def rechunked(self, chunks: Sequence[int | None]) -> Self:
        return replace(self, chunks=tuple(wanted or c for wanted, c in zip(chunks, self.chunks, strict=True)))

    def _decode(self, values: Array) -> Array:
        if not self.attributes:
            return values
        dims = [f"d{i}" for i in range(values.ndim)]
        attributes = dict(self.attributes)
        if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:  # float32 holds every such value
            scales = ("scale_factor", "add_offset")
            attributes |= {name: np.float32(attributes[name]) for name in scales if name in attributes}
        stored = xr.Dataset({"values": (dims, values, attributes)})
        return xr.decode_cf(stored)["values"].values


def _chunks_in(node: zarr.Array[Any], index: Index) -> Iterator[tuple[tuple[int, ...], Index]]:
    """The chunks that a slice along each dimension touches, each with the part of it that lies inside."""
    sizes = node.shards or node.chunks
    bounds = [s.indices(size)[:2] for s, size in zip(index, node.shape, strict=True)]
    touched = (range(a // size, -(-b // size)) for (a, b), size in zip(bounds, sizes, strict=True))
    for chunk in product(*touched):
        yield (
            chunk,
            tuple(
                slice(max(a, i * size), min(b, (i + 1) * size))
                for i, (a, b), size in zip(chunk, bounds, sizes, strict=True)
            ),
        )


_CHUNK_KEY = re.compile(r"(?:c[/.])?(\d+)(?:[/.]\d+)*")


def _row_of_chunk(path: str) -> int | None:
    """Number along the rows of the chunk that an object of an array holds; None where it holds none."""
    found = _CHUNK_KEY.fullmatch(path)
    return int(found[1]) if found else None


def _chunk_key(node: zarr.Array[Any], chunk: tuple[int, ...]) -> str:
    return node.metadata.encode_chunk_key(chunk)


def _holds_only(values: Array, fill: Any) -> bool:
    """Whether all values are the fill value; the first tells almost always."""
    if fill != fill:
        return bool(np.isnan(values.flat[0]) and np.isnan(values).all())
    return bool(values.flat[0] == fill and (values == fill).all())


def _cf_attributes(node: zarr.Array[Any]) -> dict[str, Any]:
    attributes = {key: node.attrs[key] for key in _CF_ATTRIBUTES if key in node.attrs}
    fill: Any = attributes.pop("_FillValue", None)
    if fill is None and node.metadata.zarr_format == 2 and node.fill_value:
        fill = node.fill_value
    if isinstance(fill, str):  # as xarray writes floats in format 3
        fill = float(np.frombuffer(base64.b64decode(fill), "<f8")[0])
    return attributes if fill is None or fill != fill else {**attributes, "_FillValue": fill}


def _digest_of(node: zarr.Array[Any]) -> str:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")
        return _digest_of_json(node.metadata.to_dict())


def _digest_of_json(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=32)
def _open_planned(location: Location | Snapshot, path: str, metadata: str) -> zarr.Array[Any]:
    """The array that a source was made of; refused where another one has taken its place since."""
    node = _open_array(location, path)
    if _digest_of(node) != metadata:
        raise StorageError("was replaced while it was read", str(location / path), "Run again with --fresh.")
    return node


def _open_array(location: Location | Snapshot, path: str) -> zarr.Array[Any]:
    node = _open_node(location, path)
    if not isinstance(node, zarr.Array):
        names = [name for name, _ in node.arrays()]
        raise InvalidConfig(
            f"is a group, not an array; it holds {', '.join(names) or 'no arrays'}",
            str(location / path if path else location),
        )
    return node


def _open_node(location: Location | Snapshot, path: str) -> Any:
    place = location / path if path else location
    with location.errors_of(path):
        store = location.store if isinstance(location, Snapshot) else ZarrObjectStore(location.store, read_only=True)
    try:
        return location.attempt(path, lambda: zarr.open(store, path=path, mode="r"))
    except FileNotFoundError:
        if path == "":
            raise StorageError("is not a Zarr group or array", str(place), _check_the_uri(location)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"has Zarr metadata that cannot be read ({error})", str(place)) from error
    parent, _, name = path.rpartition("/")
    group = _open_node(location, parent)
    above = str(location / parent if parent else location)
    if not isinstance(group, zarr.Group):
        raise InvalidConfig(
            f"is an array, it holds no {name!r}", above, "Leave out 'array:', or name the array itself."
        )
    raise InvalidConfig(f"has no array {name!r}", above, nearest(name, [child for child, _ in group.members()]))


def _check_the_uri(location: Location | Snapshot) -> str:
    """What mends it where there is no Zarr; a repository of Icechunk looks like it, by its name at most."""
    if isinstance(location, Location) and {"snapshots", "transactions"} <= {*location.children()}:
        return "It is an Icechunk repository: add format: icechunk."
    return "Check the URI."


def _only_array(location: Location | Snapshot) -> str:
    node = _open_node(location, "")
    if isinstance(node, zarr.Array):
        return ""
    names = [name for name, _ in node.arrays()]
    if len(names) != 1:
        raise InvalidConfig(
            f"holds {len(names)} arrays ({', '.join(names)})" if names else "holds no array",
            str(location),
            "Name one with 'array:'.",
        )
    return names[0]

"""Folders of masks and predictions become one Zarr group, once and whole, on a disk and in a bucket."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, RunConflict, StorageError
from labelqa_dask.storage.lease import holding
from pipelines.imports.convert import Geometry
from pipelines.imports.masks import Imported, import_masks, list_folders, without
from pipelines.imports.survey import MaskFolders
from pipelines.imports.work import Demand, Misfit, describe_misfits, record_of
from pipelines.plan import Resources
from pipelines.regions import Progress
from tests.pipelines.audits import RESOURCES, on_disk
from tests.stores import Place

CLASSES = 3
SIZES = {"a/one": (6, 9), "a/two": (8, 5), "b/one": (8, 9), "three": (1, 1)}


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Scenes:
    """Images in two folders, and what an import makes of them."""

    place: Place
    client: object
    labels: dict[str, np.ndarray]
    pred_probs: dict[str, np.ndarray]

    @property
    def folders(self) -> MaskFolders:
        return MaskFolders(self.place("masks"), self.place("predictions"), self.place("out.zarr"))

    def write(self, *names: str) -> None:
        for name in names or self.labels:
            self.place("masks").write(f"{name}.png", png(self.labels[name]))
            self.place("predictions").write(f"{name}.npy", npy(self.pred_probs[name]))

    def run(self, told: list[Progress] | None = None, **changes: object) -> Imported:
        listing = list_folders(replace(self.folders, **changes))
        return import_masks(listing, self.client, RESOURCES, [].append if told is None else told.append)

    def open(self, **options: bool) -> xr.Dataset:
        return xr.open_zarr(ZarrObjectStore(self.place("out.zarr").store, read_only=True), **options).load()

    def check(self, *names: str, ignore: int = 255) -> None:
        """What was written is what was given, for these images in this order."""
        data = self.open()
        assert data.image_id.values.tolist() == list(names)
        for row, name in enumerate(names):
            labels, pred_probs = self.labels[name], self.pred_probs[name]
            height, width = labels.shape
            written = data.labels.values[row]
            assert (written[:height, :width] == labels).all()
            written[:height, :width] = ignore
            assert (written == ignore).all()
            values = data.pred_probs.values[row].copy()
            assert (values[:, :height, :width] == pred_probs).all()
            values[:, :height, :width] = 0
            assert (values == 0).all()


@pytest.fixture
def scenes(place, client):
    rng = np.random.default_rng(3)
    labels, pred_probs = {}, {}
    for name, size in SIZES.items():
        labels[name] = rng.integers(0, CLASSES, size).astype(np.uint8)
        pred_probs[name] = rng.dirichlet(np.ones(CLASSES), size).transpose(2, 0, 1).astype(np.float32)
    made = Scenes(place, client, labels, pred_probs)
    made.write()
    return made


def test_images_of_differing_sizes_are_padded_and_masked_out(scenes):
    told: list[Progress] = []
    imported = scenes.run(told)
    scenes.check(*sorted(SIZES))
    assert (imported.images, imported.classes, imported.height, imported.width) == (4, CLASSES, 8, 9)
    assert imported.ignored
    assert imported.padded == pytest.approx(1 - sum(h * w for h, w in SIZES.values()) / (4 * 8 * 9))
    data = scenes.open()
    assert (data.labels.dtype, data.pred_probs.dtype) == (np.uint8, np.float32)
    assert data.labels.encoding["chunks"] == (1, 8, 9)
    assert data.pred_probs.encoding["chunks"] == (1, CLASSES, 8, 9)
    assert not record_of(scenes.place("out.zarr")).location.exists()
    assert [(p.stage, p.done, p.total, p.unit) for p in told if p.done == p.total] == [
        ("survey", 4, 4, "images"),
        ("convert", 4, 4, "images"),
    ]


@on_disk
def test_the_same_command_again_does_nothing_and_other_files_need_overwrite(scenes):
    first = scenes.run()
    before = scenes.place.writes("out.zarr")
    assert scenes.run() == replace(first, unchanged=True)
    assert scenes.place.writes("out.zarr") == before
    scenes.labels["three"][:] = 255
    scenes.write("three")
    with pytest.raises(InvalidConfig, match=r"holds an import of other files.*--overwrite"):
        scenes.run()
    assert scenes.place.writes("out.zarr") == before
    scenes.run(overwrite=True)
    scenes.check(*sorted(SIZES))


@on_disk
def test_one_size_and_no_ignored_pixel_needs_no_ignore_index(scenes):
    for name in SIZES:
        scenes.labels[name] = np.ones((4, 4), np.uint8)
        scenes.pred_probs[name] = np.full((CLASSES, 4, 4), 1 / CLASSES)
    scenes.write()
    imported = scenes.run()
    assert (imported.ignored, imported.padded, imported.dtype) == (False, 0, "float64")
    scenes.labels["three"][0, 0] = 255
    scenes.write("three")
    assert scenes.run(overwrite=True).ignored


@on_disk
@pytest.mark.parametrize(("dtype", "scale"), [("uint8", 1 / 255), ("uint16", 1 / 65535)])
def test_quantised_predictions_bear_their_scale(scenes, dtype, scale):
    floats = dict(scenes.pred_probs)
    for name, values in floats.items():
        scenes.pred_probs[name] = (values / scale).round().astype(dtype)
    scenes.write()
    scenes.run()
    stored = scenes.open(decode_cf=False).pred_probs
    assert stored.dtype == dtype
    assert stored.attrs["scale_factor"] == pytest.approx(scale, rel=1e-15)
    height, width = SIZES["b/one"]
    decoded = scenes.open().pred_probs.values[2]
    assert np.abs(decoded[:, :height, :width] - floats["b/one"]).max() <= scale


@on_disk
def test_floats_of_several_types_become_the_one_that_holds_all(scenes):
    scenes.pred_probs["three"] = scenes.pred_probs["three"].astype(np.float64)
    scenes.pred_probs["a/one"] = scenes.pred_probs["a/one"].astype(np.float16)
    scenes.write()
    assert scenes.run().dtype == "float64"
    scenes.check(*sorted(SIZES))


@on_disk
@pytest.mark.parametrize(
    ("ignore", "dtype"), [(-1, "int16"), (0, "uint8"), (254, "uint8"), (300, "uint16"), (65536, "uint32")]
)
def test_labels_are_of_a_type_that_holds_the_ignore_index(scenes, ignore, dtype):
    assert scenes.run(given_ignore_index=ignore).ignored
    assert scenes.open().labels.dtype == dtype
    scenes.check(*sorted(SIZES), ignore=ignore)


@on_disk
def test_where_255_is_a_class_the_ignore_index_has_to_be_given(scenes):
    for name, (height, width) in SIZES.items():
        scenes.pred_probs[name] = np.full((300, height, width), 1 / 300, np.float16)
        scenes.labels[name] = np.full((height, width), 299, np.uint16)
    scenes.write()
    with pytest.raises(InvalidConfig, match=r"--ignore-index: is not given, and 255 is one of the 300 classes"):
        scenes.run()
    scenes.run(given_ignore_index=65535)
    scenes.check(*sorted(SIZES), ignore=65535)


@on_disk
def test_large_images_are_cut_into_tiles(scenes, monkeypatch):
    monkeypatch.setattr("pipelines.imports.convert._TILE_BYTES", CLASSES * 4 * 20)
    scenes.run()
    data = scenes.open()
    assert data.pred_probs.encoding["chunks"] == (1, CLASSES, 4, 5)
    scenes.check(*sorted(SIZES))
    paths = set(scenes.place.writes("out.zarr"))
    assert "pred_probs/c/2/0/1/1" in paths
    assert "pred_probs/c/3/0/1/1" not in paths, "what is padding only is not written"


def break_some(scenes: Scenes) -> dict[str, str]:
    """Files that do not fit, each in another way, beside those that do; returns what is said of each."""
    masks, predictions = scenes.place("masks"), scenes.place("predictions")
    good, probs = png(np.zeros((4, 4), np.uint8)), npy(np.full((CLASSES, 4, 4), 1 / CLASSES, np.float32))
    for name in ("alone", "truncated", "colour", "shape", "class", "classes", "quantised", "nan", "double", "damaged"):
        masks.write(f"x/{name}.png", good)
        predictions.write(f"x/{name}.npy", probs)
    predictions.delete_object("x/alone.npy")
    predictions.write("x/no mask.npy", probs)
    predictions.write("x/truncated.npy", probs[:-1])
    masks.write("x/colour.png", png(np.zeros((4, 4, 3), np.uint8)))
    masks.write("x/shape.png", png(np.zeros((4, 5), np.uint8)))
    masks.write("x/class.png", png(np.full((4, 4), CLASSES, np.uint8)))
    predictions.write("x/classes.npy", npy(np.full((5, 4, 4), 0.2, np.float32)))
    predictions.write("x/quantised.npy", npy(np.zeros((CLASSES, 4, 4), np.uint8)))
    predictions.write("x/nan.npy", npy(np.full((CLASSES, 4, 4), np.nan, np.float32)))
    predictions.write("x/double.npz", b"")
    masks.write("x/damaged.png", good[:-20])
    masks.write("notes.txt", b"not a mask")
    masks.write(".hidden/a.png", b"")
    return {
        "masks/x/alone.png": "has no prediction",
        "predictions/x/no mask.npy": "has no mask",
        "predictions/x/truncated.npy": "was it copied whole",
        "masks/x/colour.png": "is an RGB image",
        "predictions/x/shape.npy": "but its mask is 4 × 5",
        "masks/x/class.png": "has class id 3 (first at y 0, x 0; 16 such pixels), but its prediction has 3 classes",
        "predictions/x/classes.npy": "has 5 classes, where most have 3",
        "predictions/x/quantised.npy": "holds uint8, where most hold float32",
        "predictions/x/nan.npy": "holds NaN",
        "predictions/x/double.npz": "has the name of another file, but for the ending: x/double.npy",
        "masks/x/damaged.png": "cannot be read as PNG",
    }


def unfit(scenes: Scenes) -> dict[str, str]:
    content = scenes.place("out.zarr").parent.read("out.unfit.csv")
    rows = csv.DictReader(io.StringIO(content.decode()))
    return {row["file"].removeprefix(f"{scenes.place.root}/"): row["reason"] for row in rows}


def test_all_that_does_not_fit_is_listed_and_nothing_is_published(scenes):
    expected = break_some(scenes)
    with pytest.raises(InvalidInput, match="10 files do not fit; nothing was published") as error:
        scenes.run()
    listed = unfit(scenes)
    assert listed.keys() == expected.keys() - {"predictions/x/nan.npy"}, "values are looked at in converting"
    for file, reason in listed.items():
        assert expected[file] in reason
        assert f"{file} {reason}" in str(error.value)
    assert not scenes.place("out.zarr").exists()


def test_what_does_not_fit_can_be_skipped_and_is_listed(scenes):
    expected = break_some(scenes)
    imported = scenes.run(skip_bad=True)
    listed = unfit(scenes)
    assert listed.keys() == expected.keys()
    assert all(expected[file] in reason for file, reason in listed.items())
    assert {misfit.file.removeprefix(f"{scenes.place.root}/") for misfit in imported.skipped} == expected.keys()
    probs = np.full((CLASSES, 4, 4), 1 / CLASSES, np.float32)
    scenes.labels["x/double"], scenes.pred_probs["x/double"] = np.zeros((4, 4), np.uint8), probs
    scenes.check(*sorted(SIZES), "x/double")
    assert scenes.run(skip_bad=True) == replace(imported, unchanged=True)
    rows = {path.split("/")[2] for path in scenes.place.writes("out.zarr") if path.startswith("labels/c/")}
    assert rows == {"0", "1", "2", "3", "4"}, "rows of skipped images are gone"


@on_disk
def test_what_turns_out_bad_in_converting_is_refused_then_mended_without_doing_the_rest_again(scenes, monkeypatch):
    monkeypatch.setattr("pipelines.imports.convert._BATCH_BYTES", 1)
    good = scenes.pred_probs["a/two"]
    scenes.pred_probs["a/two"] = good + 3
    scenes.write("a/two")
    with pytest.raises(InvalidInput, match=r"a/two\.npy holds values from .*logits"):
        scenes.run()
    assert not (scenes.place("out.zarr") / "zarr.json").exists()
    before = scenes.place.writes("out.zarr")
    assert not any(path.endswith("zarr.json") for path in before), "no reader finds what is not published"
    scenes.pred_probs["a/two"] = good
    scenes.write("a/two")
    scenes.run()
    scenes.check(*sorted(SIZES))
    after = scenes.place.writes("out.zarr")
    assert all(after[path] == written for path, written in before.items())


@on_disk
def test_an_interrupted_import_does_only_what_is_left(scenes, monkeypatch):
    monkeypatch.setattr("pipelines.imports.convert._BATCH_BYTES", 1)

    class Interrupted(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == "convert" and progress.done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        import_masks(list_folders(scenes.folders), scenes.client, RESOURCES, stop)
    done = record_of(scenes.place("out.zarr")).run / "stats"
    before = {entry.path: entry.version for entry in done.entries()}
    assert len(before) >= 3
    told: list[Progress] = []

    def look(progress: Progress) -> None:
        told.append(progress)
        if progress.stage == "convert" and progress.done == progress.total:
            assert before.items() <= {entry.path: entry.version for entry in done.entries()}.items()

    import_masks(list_folders(scenes.folders), scenes.client, RESOURCES, look)
    assert next(p for p in told if p.stage == "survey").done == 4
    assert next(p for p in told if p.stage == "convert").done >= 2
    scenes.check(*sorted(SIZES))


@on_disk
def test_another_form_begins_anew(scenes, monkeypatch):
    monkeypatch.setattr("pipelines.imports.convert._BATCH_BYTES", 1)
    good = scenes.pred_probs["b/one"]
    scenes.pred_probs["b/one"] = good * np.nan
    scenes.write("b/one")
    with pytest.raises(InvalidInput, match="NaN"):
        scenes.run()
    for name in ("a/two", "b/one"):
        scenes.labels[name] = np.ones((3, 2), np.uint8)
        scenes.pred_probs[name] = np.full((CLASSES, 3, 2), 1 / CLASSES, np.float32)
    scenes.write()
    scenes.run()
    assert scenes.open().labels.shape == (4, 6, 9)
    scenes.check(*sorted(SIZES))


@on_disk
def test_an_output_that_no_import_wrote_is_left_alone(scenes):
    scenes.place("out.zarr").write("precious.txt", b"data")
    for overwrite in (False, True):
        with pytest.raises(InvalidConfig, match="is not what an import wrote"):
            scenes.run(overwrite=overwrite)
    assert scenes.place("out.zarr").read("precious.txt") == b"data"


@on_disk
def test_folders_that_hold_nothing_or_nothing_that_matches_are_refused(scenes):
    def listing(masks: str, predictions: str) -> None:
        list_folders(replace(scenes.folders, masks=scenes.place(masks), predictions=scenes.place(predictions)))

    with pytest.raises(StorageError, match="does not exist"):
        listing("nowhere", "predictions")
    with pytest.raises(InvalidInput, match=r"holds no PNG masks; it holds 4 of \.npy"):
        listing("predictions", "predictions")
    scenes.place("others").write("other.npy", b"")
    with pytest.raises(InvalidInput, match=r"no prediction has the name of a mask: masks are named as .*\.png"):
        listing("masks", "others")


@on_disk
def test_an_image_that_does_not_fit_into_memory_is_refused_with_the_numbers(scenes):
    small = Resources(1, 1, 540 << 20)
    listing = list_folders(scenes.folders)
    import_masks(listing, scenes.client, small, [].append)
    big = Geometry(19, 20000, 20000, (5000, 2500), "float32", "uint8", 255, 1)
    with pytest.raises(InvalidConfig, match=r"a worker would need .* GiB, but has 540\.00 MiB.*cluster.memory_limit="):
        Demand(small, big.job_bytes).check("images")


@on_disk
def test_one_import_at_a_time(scenes):
    with holding(record_of(scenes.place("out.zarr")).location), pytest.raises(RunConflict, match="has been working"):
        scenes.run()


def test_rows_that_are_left_out_are_filled_from_the_end():
    assert without("abcdefg", []) == list("abcdefg")
    assert without("abcdefg", [1, 6]) == list("afcde")
    assert without("abcdefg", [5, 6]) == list("abcde")
    assert without("abc", [0, 1, 2]) == []


def test_many_files_with_one_reason_are_told_in_one_line():
    many = [Misfit(f"{i:03d}.png", "has no prediction") for i in range(100)]
    lines = describe_misfits([*many, Misfit("x.png", "is empty")]).strip().splitlines()
    assert len(lines) == 5
    assert lines[3].strip() == "… and 97 more of which each has no prediction"
    assert lines[4].strip() == "x.png is empty"
    several = [Misfit(f"{i:03d}.png", f"has class id {i}") for i in range(100)]
    assert describe_misfits(several).strip().splitlines()[-1].strip() == "… and 80 more"

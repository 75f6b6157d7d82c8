"""CSV files become Parquet files with the same rows, whatever they look like, on a disk and in a bucket."""

from __future__ import annotations

import bz2
import gzip
import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, RunConflict
from labelqa_dask.storage.lease import holding
from labelqa_dask.storage.parquet_source import ParquetSource
from pipelines.imports.columns import Asked
from pipelines.imports.tables import MARKER, METADATA, ImportedTable, import_tables, look_at
from pipelines.imports.work import record_of
from pipelines.regions import Progress
from tests.pipelines.audits import RESOURCES, on_disk

NAMES = ["cat", "dog", "owl"]
PROBS = [f"p_{name}" for name in NAMES]


def frame(n: int = 100, seed: int = 0, *, text: str = "plain") -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    data = {"id": np.arange(n) * 3 + seed, "label": rng.choice(NAMES, n), "text": text}
    return pd.DataFrame(data | dict(zip(PROBS, rng.dirichlet(np.ones(3), n).T, strict=True)))


@pytest.fixture
def importing(place, client):
    """Write files, import them, and return what came of it."""

    def run(files: dict[str, bytes], told=None, overwrite=False, **asked) -> ImportedTable:
        for name, content in files.items():
            place("in").write(name, content)
        paths = [place(f"in/{name}") for name in files]
        tables = look_at(paths, place("out.parquet"), Asked(**asked), overwrite)
        return import_tables(tables, client, RESOURCES, [].append if told is None else told.append)

    run.place, run.client = place, client
    return run


def csv(data: pd.DataFrame, **options) -> bytes:
    return data.to_csv(index=False, **options).encode()


def published(place) -> pa.Table:
    parts = ParquetSource.open(place("out.parquet"), ["label"], stack=False).groups
    files = list(dict.fromkeys(group.file for group in parts))
    return pa.concat_tables([pq.read_table(io.BytesIO(place("out.parquet").read(name))) for name in files])


def check(place, *frames: pd.DataFrame) -> None:
    table, given = published(place), pd.concat(frames)
    assert table.column_names == ["id", "label", *PROBS]
    assert table["id"].to_pylist() == given["id"].tolist()
    assert table["label"].to_pylist() == [NAMES.index(name) for name in given["label"]]
    for name in PROBS:
        assert (table[name].to_numpy() == given[name].to_numpy()).all()


def test_files_plain_and_compressed_are_read_alike(importing):
    frames = [frame(50, seed) for seed in range(4)]
    files = {
        "a.csv": csv(frames[0]),
        "b.csv.gz": gzip.compress(csv(frames[1])),
        "c.csv.bz2": bz2.compress(csv(frames[2])),
        "d.csv": b"\xef\xbb\xbf" + csv(frames[3], lineterminator="\r\n")[:-2],
    }
    told: list[Progress] = []
    imported = importing(files, told)
    check(importing.place, *frames)
    assert imported.rows == 200
    assert imported.left_out == ("text",)
    assert (told[-1].done, told[-1].total, told[-1].unit) == (4, 4, "pieces")
    table = published(importing.place)
    assert json.loads(table.schema.metadata[METADATA])["classes"] == NAMES
    assert not record_of(importing.place("out.parquet")).location.exists()


@on_disk
@pytest.mark.parametrize("step", [1, 7, 100, 1000])
@pytest.mark.parametrize("text", ["plain", 'a "quoted, word"', "é"])
def test_the_rows_do_not_depend_on_where_a_file_is_cut(importing, monkeypatch, step, text):
    data = frame(12, text=text)
    content = csv(data)
    monkeypatch.setattr("pipelines.imports.tables._RANGE_BYTES", max(step, len(content) // 40))
    importing({"a.csv": content})
    check(importing.place, data)


@on_disk
def test_lines_that_end_inside_quotes_are_read_from_the_beginning(importing, monkeypatch):
    data = frame(300, text='one\ntwo, "three"\n')
    monkeypatch.setattr("pipelines.imports.tables._RANGE_BYTES", 5000)
    importing({"a.csv": csv(data), "b.csv": csv(frame(5))})
    check(importing.place, data, frame(5))


@on_disk
def test_a_stream_is_written_in_pieces(importing, monkeypatch):
    data = frame(1000)
    monkeypatch.setattr("pipelines.imports.tables._RANGE_BYTES", 5000)
    importing({"a.csv.gz": gzip.compress(csv(data))})
    check(importing.place, data)
    assert len(importing.place("out.parquet").children()) == 0
    assert sum(1 for _ in importing.place("out.parquet").entries()) > 5


@on_disk
@pytest.mark.parametrize("sep", [";", "\t", "|"])
def test_other_separators_and_another_order_of_columns(importing, sep):
    data = frame()
    importing({"a.csv": csv(data[[*reversed(data.columns)]], sep=sep), "b.csv": csv(data)}, probabilities=tuple(PROBS))
    check(importing.place, data, data)


@on_disk
def test_identifiers_that_turn_out_to_be_text_are_kept_as_text(importing):
    data = frame(), frame(10)
    later = data[1].assign(id="007")
    importing({"a.csv": csv(data[0]), "b.csv": csv(later)})
    assert published(importing.place)["id"].to_pylist() == [*map(str, data[0]["id"]), *["007"] * 10]


@on_disk
def test_numbers_of_regression_are_kept_as_they_are(importing):
    data = pd.DataFrame({"key": ["a", "b"], "target": [1, 2.5], "prediction": [0.1, -3e7]})
    imported = importing({"a.csv": csv(data)}, label="target")
    assert (imported.columns.prediction, imported.columns.probabilities) == ("prediction", ())
    part = next(e.path for e in importing.place("out.parquet").entries() if e.path != MARKER)
    table = pq.read_table(io.BytesIO(importing.place("out.parquet").read(part)))
    assert table.to_pydict() == data.to_dict("list")


def test_rows_that_do_not_fit_are_named_and_nothing_is_published(importing, monkeypatch):
    monkeypatch.setattr("pipelines.imports.tables._RANGE_BYTES", 2000)
    data = frame()
    bad = {
        "label": data.assign(label=data["label"].where(data.index != 77, "bird")),
        "null": data.assign(p_dog=data["p_dog"].where(data.index != 60)),
        "text": data.astype(object).where(~((data.index == 41)[:, None] & (data.columns == "p_owl")), "much"),
    }
    files = {"fine.csv": csv(data), **{f"{name}.csv": csv(broken) for name, broken in bad.items()}}
    files["width.csv"] = csv(data) + b"1,2\n"
    with pytest.raises(InvalidInput, match="4 files do not fit; nothing was published") as error:
        importing(files)
    place = importing.place
    for line in (
        f"{place('in/label.csv')} row 78 has label 'bird', which is none of cat, dog, owl",
        f"{place('in/null.csv')} row 61 has no p_dog",
        f"{place('in/text.csv')} row 42 has p_owl 'much', which is no number",
        f"{place('in/width.csv')} row 101 cannot be read: Expected 6 columns, got 2",
    ):
        assert line in str(error.value)
        assert line.split()[0] in place("out.parquet").parent.read("out.unfit.csv").decode()
    assert not place("out.parquet").exists()


@on_disk
def test_what_is_mended_is_all_that_is_done_again(importing, monkeypatch):
    monkeypatch.setattr("pipelines.imports.tables._RANGE_BYTES", 2000)
    data = frame()
    bad = csv(data).replace(b",cat,", b",cta,", 1)
    with pytest.raises(InvalidInput, match="'cta'"):
        importing({"a.csv": csv(data), "b.csv": bad})
    parts = record_of(importing.place("out.parquet")).location / "parts"
    before = {entry.path: entry.version for entry in parts.entries() if entry.path.startswith("part-00000")}
    assert len(before) > 2
    told: list[Progress] = []
    importing.place("in").write("b.csv", csv(data))
    tables = look_at(
        [importing.place(f"in/{n}") for n in ("a.csv", "b.csv")], importing.place("out.parquet"), Asked(), False
    )
    import_tables(tables, importing.client, RESOURCES, told.append)
    assert told[0].done == len(before)
    check(importing.place, data, data)


@on_disk
def test_the_same_command_again_does_nothing_and_other_files_need_overwrite(importing):
    first = importing({"a.csv": csv(frame())})
    before = importing.place.writes("out.parquet")
    tables = look_at([importing.place("in/a.csv")], importing.place("out.parquet"), Asked(), False)
    assert import_tables(tables, importing.client, RESOURCES, [].append) == replace(first, unchanged=True)
    assert importing.place.writes("out.parquet") == before
    with pytest.raises(InvalidConfig, match="--overwrite"):
        importing({"a.csv": csv(frame(7))})
    importing({"a.csv": csv(frame(7))}, overwrite=True)
    check(importing.place, frame(7))


@on_disk
def test_an_output_that_no_import_wrote_is_left_alone(importing):
    importing.place("out.parquet").write("part-0.parquet", b"precious")
    with pytest.raises(InvalidConfig, match="is not what an import wrote"):
        importing({"a.csv": csv(frame())}, overwrite=True)
    assert importing.place("out.parquet").read("part-0.parquet") == b"precious"


@on_disk
def test_one_import_at_a_time(importing):
    record = record_of(importing.place("out.parquet"))
    with holding(record.location), pytest.raises(RunConflict, match="has been working"):
        importing({"a.csv": csv(frame())})


def test_files_are_found_by_a_pattern(importing):
    place = importing.place
    for number in range(3):
        place("in").write(f"part-{number}.csv", csv(frame(5, number)))
    tables = look_at([place("in/part-*.csv")], place("out.parquet"), Asked(), False)
    assert [file.entry.path for file in tables.files] == [f"part-{number}.csv" for number in range(3)]


@on_disk
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no line of column names"),
        (b"1,0.5,0.5\n0,1,0\n", "has no line of column names"),
        (b"label\n1\n", "has no line of column names"),
        (b"label,p,p\n1,.5,.5\n", "has two columns of one name"),
        (b"label,p_\xff\n1,.5\n", "is not UTF-8 text"),
        (csv(frame()).replace(b"p_owl", b"p_elk", 1), "has no column p_owl"),
        (None, "does not exist"),
    ],
)
def test_files_that_are_no_such_tables_are_listed(importing, content, message):
    place = importing.place
    place("in").write("a.csv", csv(frame()))
    if content is not None:
        place("in").write("b.csv", content)
    with pytest.raises(InvalidInput, match=rf"1 file does not fit.*\n.*\n.*b\.csv {message}"):
        look_at([place("in/a.csv"), place("in/b.csv")], place("out.parquet"), Asked(), False)


@on_disk
@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.xz"])
def test_damaged_and_unknown_compression_is_listed(importing, name):
    importing.place("in").write(name, b"no such thing")
    with pytest.raises(InvalidInput, match=r"cannot be read|is compressed in a way"):
        look_at([importing.place(f"in/{name}")], importing.place("out.parquet"), Asked(), False)


@on_disk
def test_a_header_alone_holds_no_rows(importing):
    with pytest.raises(InvalidInput, match="holds no rows"):
        importing({"a.csv": csv(frame(0))})
    importing({"a.csv": csv(frame(3)), "b.csv": csv(frame(0))})
    check(importing.place, frame(3))

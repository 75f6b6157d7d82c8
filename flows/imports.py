"""The commands `labelqa import …`: from a folder of files, or from tables, to what an audit reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.screen import console, print_pairs

if TYPE_CHECKING:
    from labelqa_dask.storage.location import Location
    from pipelines.config import WorkConfig
    from pipelines.imports.columns import Columns
    from pipelines.imports.masks import Imported
    from pipelines.imports.tables import ImportedTable

_CLASSES_SHOWN = 12

import_app = typer.Typer(
    help="Turn the files that you have into what an audit reads, with a configuration that audits it.\n\n"
    "An import that was interrupted is finished by running it again; what is done is not done twice.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting of cluster or storage, for the import and for the configuration it writes, such as "
        "cluster.workers=4 or storage.endpoint_url=http://127.0.0.1:9000. Repeatable.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier import left at the output.")]


@import_app.command(
    epilog="[bold]Example[/bold]\n\n"
    "masks/berlin/0001.png and predictions/berlin/0001.npy, and so on:\n\n"
    "labelqa import masks masks/ predictions/ street.zarr\n\n"
    "labelqa run street.yaml"
)
def masks(
    labels_dir: Annotated[
        str,
        typer.Argument(
            metavar="LABELS_DIR",
            help="A folder or URL of PNG masks, one an image: grey values (8 or 16 bit) or palette indices are the "
            "class ids. Folders inside it are searched too.",
        ),
    ],
    predictions_dir: Annotated[
        str,
        typer.Argument(
            metavar="PREDICTIONS_DIR",
            help="A folder or URL of predictions, .npy or .npz of (classes, height, width), out of sample, each with "
            "the path of its mask but for the ending: float16, float32 or float64 in 0..1, or quantised to uint8 "
            "(255 is 1) or uint16 (65535 is 1).",
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT.zarr", help="Path or URL of the Zarr group to write.")],
    ignore_index: Annotated[
        int | None,
        typer.Option(
            help="Class id of pixels that are never scored; images smaller than the largest are filled up with it. "
            "[dim]Default: 255[/dim]",
            show_default=False,
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Import the other images where files do not fit, and list those.")
    ] = False,
    overwrite: Overwrite = False,
    settings: Overrides = None,
) -> None:
    """From folders of masks and predictions to a Zarr group for the segmentation task.

    Images may differ in size. Every file is looked at before anything is written; where some do not fit, all of them
    are listed, nothing is published, and the exit status is 1.
    """
    from labelqa_dask.storage.location import Location
    from pipelines.imports.masks import list_folders
    from pipelines.imports.survey import MaskFolders

    work = _work_config(settings or ())
    labels, predictions, target = (
        Location.parse(url, work.storage) for url in (labels_dir, predictions_dir, _with_ending(out, ".zarr"))
    )
    listing = list_folders(MaskFolders(labels, predictions, target, ignore_index, skip_bad, overwrite))
    imported = _import_masks(listing, work)
    _tell_masks(imported)
    _tell_next(target, _masks_config(imported, listing.folders.ignore_index), work)


def _work_config(overrides: Sequence[str]) -> WorkConfig:
    """Cluster and storage from the command line."""
    from pydantic import ValidationError

    from flows.settings import overridden
    from labelqa_dask.core.settings import explain
    from pipelines.config import WorkConfig

    try:
        return WorkConfig(**overridden(overrides))
    except ValidationError as error:
        raise explain(error, WorkConfig, "--set") from None


def _with_ending(out: str, ending: str) -> str:
    from labelqa_dask.core.errors import InvalidConfig

    out = out.rstrip("/")
    if not out.endswith(ending):
        raise InvalidConfig(f"does not end in {ending}", out, f"Name the output {out}{ending}.")
    return out


def _import_masks(listing: Any, work: WorkConfig) -> Imported:
    from flows.cluster import open_cluster, resources_of
    from flows.terminal import show_progress
    from pipelines.imports.masks import import_masks

    console.print("[dim]starting the workers[/dim]")
    with show_progress(console) as listener, open_cluster(work) as client:
        return import_masks(listing, client, resources_of(work), listener)


def _tell_masks(imported: Imported) -> None:
    if imported.unchanged:
        console.print("Nothing has changed since this was imported.")
    form = f"{imported.classes} classes, {imported.height:,} × {imported.width:,}, {imported.dtype}"
    pairs = [("images", f"{imported.images:,}"), ("form", form)]
    if imported.padded:
        pairs.append(("padding", f"{imported.padded:.1%} of the pixels: images smaller than the largest are filled up"))
    if imported.skipped:
        from pipelines.imports.work import describe_misfits, misfits_at

        listed = f"{len(imported.skipped):,} files, listed in {misfits_at(imported.out)}"
        pairs.append(("skipped", listed + describe_misfits(imported.skipped)))
    print_pairs([*pairs, ("written", str(imported.out))])


def _masks_config(imported: Imported, ignore_index: int) -> dict[str, Any]:
    from pipelines.imports.convert import IDS, LABELS
    from pipelines.imports.images import PRED_PROBS

    uri = str(imported.out)
    names = {"labels": LABELS, "pred_probs": PRED_PROBS, "ids": IDS}
    return {
        "task": "segmentation",
        "input": {name: {"uri": uri, "array": array} for name, array in names.items()},
        "params": {"method": "softmin"} | ({"ignore_index": ignore_index} if imported.ignored else {}),
        "output": {"uri": f"{uri.removesuffix('.zarr')}-audit", "format": "zarr"},
    }


def _tell_next(out: Location, config: Mapping[str, Any], work: WorkConfig, notes: Sequence[str] = ()) -> None:
    """Write the configuration beside the output, or here where that is not on this machine, and say what is next."""
    from pathlib import Path

    import yaml

    from pipelines.imports.work import stem_of

    folder = Path(out.parent.local_path) if out.parent.local_path else Path()
    path = folder / f"{stem_of(out)}.yaml"
    given = work.model_dump(mode="json", exclude_defaults=True)
    text = "".join(f"# {note}\n" for note in notes) + yaml.safe_dump(
        {**config, **given}, sort_keys=False, allow_unicode=True
    )
    if path.exists() and path.read_text() != text:
        console.print(f"\n{path} is there already and was left as it is. For this import it would read:\n")
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        path.write_text(text)
    print_pairs([("next", f"labelqa run {path}")])


@import_app.command(
    "csv",
    epilog="[bold]Example[/bold]\n\n"
    "predictions.csv has the columns id, label, p_cat, p_dog, and labels such as cat:\n\n"
    "labelqa import csv predictions.csv predictions.parquet\n\n"
    "labelqa run predictions.yaml",
)
def csv_files(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="CSV files or URLs with a line of column names; patterns and .gz, .bz2, .zst, .lz4 work too.",
        ),
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT.parquet", help="Path or URL of the folder of Parquet files to write.")
    ],
    label: Annotated[str | None, typer.Option(help="Column of the labels: class names or numbers, or values.")] = None,
    probabilities: Annotated[
        str | None,
        typer.Option(
            metavar="P0,P1,…|PREFIX",
            help="Columns of the probabilities in class order, or what their names begin with.",
        ),
    ] = None,
    prediction: Annotated[str | None, typer.Option(help="Regression: column of the predicted values.")] = None,
    id_: Annotated[str | None, typer.Option("--id", help="Column that identifies each row.")] = None,
    overwrite: Overwrite = False,
    settings: Overrides = None,
) -> None:
    """From CSV files to Parquet files for the multiclass task, or for regression.

    Which column is what is told from names and values, and said; name them where that is wrong. Labels that are names
    are mapped to the probability columns that bear them (cat to p_cat).
    """
    from flows.cluster import open_cluster, resources_of
    from flows.terminal import show_progress
    from labelqa_dask.storage.location import Location
    from pipelines.imports.columns import Asked
    from pipelines.imports.tables import import_tables, look_at

    work = _work_config(settings or ())
    target = Location.parse(_with_ending(out, ".parquet"), work.storage)
    wanted = tuple(name.strip() for name in probabilities.split(",")) if probabilities else ()
    paths = [Location.parse(file, work.storage) for file in files]
    tables = look_at(paths, target, Asked(label, wanted, prediction, id_), overwrite)
    print_pairs(_describe_columns(tables.columns, tables.left_out))
    console.print("[dim]starting the workers[/dim]")
    with show_progress(console) as listener, open_cluster(work) as client:
        imported = import_tables(tables, client, resources_of(work), listener)
    if imported.unchanged:
        console.print("Nothing has changed since this was imported.")
    print_pairs([("rows", f"{imported.rows:,}"), ("written", str(imported.out))])
    _tell_next_of_table(imported, work)


def _describe_columns(columns: Columns, left_out: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [("label", f"column {columns.label!r}")]
    if columns.probabilities:
        named = columns.classes if columns.by_name else columns.probabilities
        how = "by the names of the classes" if columns.by_name else "by the numbers of the classes"
        pairs.append(("labels are", how))
        shown = [
            f"{i} {name} ({column})" for i, (name, column) in enumerate(zip(named, columns.probabilities, strict=True))
        ]
        if len(shown) > _CLASSES_SHOWN:
            shown[_CLASSES_SHOWN - 1 : -1] = ["…"]
        pairs.append(("classes", "\n".join(shown)))
    else:
        pairs.append(("prediction", f"column {columns.prediction!r} (regression)"))
    pairs.append(("id", f"column {columns.id!r}" if columns.id else "none: rows are known by their number"))
    if left_out:
        pairs.append(("left out", ", ".join(left_out)))
    return pairs


def _tell_next_of_table(imported: ImportedTable, work: WorkConfig) -> None:
    from labelqa_dask.core.task import task_names

    columns, uri = imported.columns, str(imported.out)
    task = "multiclass" if columns.probabilities else "regression"
    if task not in task_names():
        return
    inputs: dict[str, Any] = {"labels": {"uri": uri, "column": columns.label}}
    if columns.probabilities:
        inputs["pred_probs"] = {"uri": uri, "columns": list(columns.probabilities)}
    else:
        inputs["predictions"] = {"uri": uri, "column": columns.prediction}
    if columns.id:
        inputs["ids"] = {"uri": uri, "column": columns.id}
    output = {"uri": f"{uri.removesuffix('.parquet')}-audit", "format": "parquet"}
    notes = [f"class {i}: {name}" for i, name in enumerate(columns.classes)] if columns.by_name else []
    _tell_next(imported.out, {"task": task, "input": inputs, "output": output}, work, notes)

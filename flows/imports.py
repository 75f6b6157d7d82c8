"""The commands `labelqa import …`: from a folder of files, or from tables, to what an audit reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.screen import console, print_pairs

if TYPE_CHECKING:
    from labelqa_dask.storage.location import Location
    from pipelines.config import WorkConfig
    from pipelines.imports.masks import Imported

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
    from pipelines.imports.masks import MaskFolders, list_folders

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
    from flows.cluster import open_cluster
    from flows.terminal import show_progress
    from pipelines.imports.masks import import_masks

    console.print("[dim]starting the workers[/dim]")
    with show_progress(console) as listener, open_cluster(work) as (client, resources):
        return import_masks(listing, client, resources, listener)


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
    from pipelines.imports.images import PRED_PROBS
    from pipelines.imports.masks import IDS, LABELS

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

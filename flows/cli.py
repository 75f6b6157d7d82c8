"""The command line, `labelqa`."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn
from unicodedata import category

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.imports import import_app
from flows.screen import console, errors, print_pairs
from labelqa_dask.core.errors import InvalidConfig, LabelQAError

if TYPE_CHECKING:
    import pandas as pd

    from labelqa_dask.storage.location import Location
    from labelqa_dask.storage.run import Run
    from pipelines.audit import Audited
    from pipelines.config import AuditConfig

FAILED, BAD_CONFIGURATION, QUARANTINED, BROKEN = 1, 2, 3, 4

_BAD_SHOWN = 5
_MOST_PROBLEMS = 100

app = typer.Typer(
    help="Find wrong labels in data sets too large for memory.\n\n"
    "Try [bold]labelqa demo[/bold] first. Then write a configuration (see configs/ and [bold]labelqa schema[/bold]), "
    "look at [bold]labelqa plan CONFIG[/bold], and [bold]labelqa run CONFIG[/bold]. "
    "A run that was interrupted is finished by running it again.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(import_app, name="import")

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as those in configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a setting, such as params.temperature=0.2. Repeatable."),
]
Out = Annotated[
    str, typer.Argument(metavar="OUT", help="The output of an audit: a path, a URL, or the CONFIG that it was run by.")
]


@app.command()
def run(
    config: ConfigPath,
    settings: Overrides = None,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="Run without the Prefect server.")] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Discard an unfinished run; read everything again, even if nothing changed."),
    ] = False,
) -> None:
    """Run an audit, finish one that was interrupted, or bring one up to date whose input has changed.

    Scores, the worst examples, a summary and a report are published together as a new version under the output. What
    has not changed since the last version is taken over from it.

    Exit status: 0 done, 1 failed, 2 bad configuration, 3 published without the regions whose data cannot be scored
    (on_error: quarantine), 4 published, but not as the configuration expects (expect:).
    """
    from flows.settings import load_config

    audited = _audit(load_config(config, settings or ()), fresh=fresh, prefect=not no_prefect)
    _tell_result(audited)


@app.command()
def plan(config: ConfigPath, settings: Overrides = None) -> None:
    """Show what a run would read, how it is cut, and the memory it takes, without running it.

    Reads metadata only. Tells how much has changed since the newest version, if there is one. Exit status 2 where the
    run would not fit.
    """
    from flows.cluster import resources_of
    from flows.progress import changed_line
    from flows.settings import load_config
    from pipelines.audit import changes_of
    from pipelines.plan import make_plan

    audit = load_config(config, settings or ())
    plan = make_plan(audit, resources_of(audit))
    changes = changes_of(plan)
    print_pairs([*plan.describe(), *([("refresh", changed_line(changes))] if changes else [])])


Cron = Annotated[
    str | None,
    typer.Option(
        "--cron",
        metavar="SCHEDULE",
        help="When to run, as minute, hour, day, month and weekday in UTC: '0 3 * * *' is every night at 3. "
        "[dim]Default: only when asked to[/dim]",
        show_default=False,
    ),
]


@app.command(
    epilog="[bold]Example[/bold]\n\n"
    "labelqa deploy street.yaml --cron '0 3 * * *' --work-pool gpu-cluster\n\n"
    "prefect worker start --pool gpu-cluster"
)
def deploy(
    config: ConfigPath,
    cron: Cron = None,
    work_pool: Annotated[
        str | None,
        typer.Option(
            "--work-pool",
            metavar="NAME",
            help="Whose workers run it. [dim]Default: Prefect's default work pool, or else 'labelqa', made where there "
            "is none, whose workers run audits as processes on their machine[/dim]",
            show_default=False,
        ),
    ] = None,
    settings: Overrides = None,
) -> None:
    """Make an audit a deployment on your Prefect server, so that it runs by schedule, by API or from the UI.

    The server is the one that PREFECT_API_URL names. It holds the configuration as it is now: deploy again after a
    change. Each run may override it, in the UI under Custom run. Workers need this package, and credentials in their
    environment.
    """
    _no_telemetry()
    from flows.deploy import deploy as make_deployment

    deployed = make_deployment(config, settings or (), cron, work_pool)
    made = ", made just now" if deployed.made_pool else ""
    print_pairs(
        [
            ("deployment", deployed.name),
            ("schedule", f"{cron} (UTC)" if cron else "none"),
            ("work pool", f"{deployed.work_pool} ({deployed.kind}{made})"),
            ("a worker", f"prefect worker start --pool {deployed.work_pool}"),
            ("run it now", f"prefect deployment run '{deployed.name}'"),
        ]
    )


@app.command(
    epilog="[bold]Example[/bold]\n\n"
    "prefect server start --background\n\n"
    "export PREFECT_API_URL=http://127.0.0.1:4200/api\n\n"
    "labelqa serve street.yaml crowd.yaml --cron '0 3 * * *'"
)
def serve(
    configs: Annotated[
        list[Path], typer.Argument(metavar="CONFIG...", help="YAML files, such as those in configs/; one or more.")
    ],
    cron: Cron = None,
    settings: Overrides = None,
) -> None:
    """Run audits from this process whenever they are due, until it is ended.

    Needs no workers: one machine and a Prefect server, named by PREFECT_API_URL, are enough. Audits run one at a time;
    what is due meanwhile waits. Schedules pause while nobody serves them.
    """
    _no_telemetry()
    from flows.deploy import serve_configs

    signal.signal(signal.SIGINT, signal.default_int_handler)  # Prefect ends its runs and pauses their schedules
    serve_configs(configs, settings or (), cron)


@app.command()
def demo(
    task: Annotated[
        str,
        typer.Option(
            help="segmentation, multiclass, multilabel, multiannotator, regression, or diabetes (regression too)."
        ),
    ] = "segmentation",
    out: Annotated[Path, typer.Option(help="Folder for the data, the configuration and the results.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Which labels are corrupted, and how.")] = 0,
) -> None:
    """Audit real data whose labels were corrupted on purpose, and say how many of those were found.

    Trains a real model on scikit-learn's handwritten digits or patients (regression: on simulated throws), out of
    sample, and runs the whole audit on a local cluster. Takes about a minute.
    """
    from flows import demo as demonstration
    from flows.settings import load_config

    data = demonstration.make_data(task, seed, lambda line: console.print(f"[dim]{line}[/dim]", highlight=False))
    demonstration.prepare_folder(out)
    console.print(data.story, highlight=False)
    config = demonstration.write_demo(data, out)
    console.print(f"\nThe configuration is {config}; the same run by hand:\n  labelqa run {config}\n", highlight=False)
    audited = _audit(load_config(config), fresh=False, prefect=True)
    console.print(f"\n[bold]{demonstration.verdict(data, audited.run)}[/bold]", highlight=False)
    _tell_result(audited)


@app.command()
def status(out: Out) -> None:
    """Show the versions of an output: which are published, and how far an unfinished one is."""
    from flows.status import versions

    table = Table("version", "state", "task", "examples", "begun", "took", box=None, padding=(0, 2, 0, 0))
    rows = versions(_output(out))
    if not rows:
        raise LabelQAError("holds no audit", out, "Run one with this output first.")
    for row in rows:
        table.add_row(*row)
    console.print(table)


@app.command()
def verify(out: Out) -> None:
    """Read the newest version again and compare it with its record: scores, statistics, and what was published.

    Exit status 1 where something is damaged or missing.
    """
    from pipelines.verify import verify as read_again

    verified = read_again(_output(out))
    if verified.problems:
        listed = "".join(f"\n  {problem}" for problem in verified.problems[:_MOST_PROBLEMS])
        raise LabelQAError(
            f"{len(verified.problems):,} problems were found: run the audit again with --fresh.{listed}",
            str(verified.version.location),
        )
    console.print(f"{verified.version.location}: all {verified.regions:,} regions are as they were written.")


@app.command()
def top(out: Out, n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 20) -> None:
    """Show the worst examples, worst first; as CSV where the output is not a terminal."""
    worst = _open_run(out).worst.head(n)
    if not console.is_terminal:
        worst.to_csv(sys.stdout, index=False)
        return
    console.print(_table_of(worst))


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "labelqa compare audit.yaml\n\n"
    "labelqa compare s3://bucket/audits/street --from v000003 --to v000007"
)
def compare(
    out: Out,
    before: Annotated[
        str | None,
        typer.Option("--from", metavar="VERSION", help="[dim]Default: the one before --to[/dim]", show_default=False),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--to", metavar="VERSION", help="[dim]Default: the latest[/dim]", show_default=False),
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many rows of each table.")] = 20,
) -> None:
    """Show what has changed from one version to another.

    New and resolved bad examples, by id where there is one; how the distribution of the scores, the classes and the
    annotators have moved. Reads summaries and lists, not the scores. labelqa status names the versions.
    """
    from pipelines.compare import Found, choose_versions
    from pipelines.compare import compare as compare_versions
    from pipelines.report.changes import headline, remarks, sections

    location = _output(out)
    then, now = (Found.read(version) for version in choose_versions(location, before, after))
    comparison = compare_versions(then, now)
    console.print(f"[bold]{then.version} → {now.version}[/bold]  {escape(headline(comparison))}", highlight=False)
    for remark in remarks(comparison):
        console.print(f"[dim]{escape(remark)}[/dim]", highlight=False)
    for section in sections(comparison, n):
        console.print(f"\n[bold]{section.heading}[/bold]", highlight=False)
        if section.note:
            console.print(f"[dim]{escape(section.note)}[/dim]", highlight=False)
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in section.table.columns:
            table.add_column(column.heading, justify="right" if column.numeric else "left")
        for row in section.table.rows:
            table.add_row(*map(escape, row))
        console.print(table)


@app.command()
def report(
    out: Out,
    to: Annotated[Path | None, typer.Option(help="Save a copy of the report there.")] = None,
) -> None:
    """Say where the report of the newest version is, or save a copy of it."""
    location = _open_run(out).report
    if to is None and location.local_path is None:
        to = Path("report.html")
    if to is not None:
        content = location.parent.read(location.name)
        try:
            to.write_bytes(content)
        except OSError as error:
            raise LabelQAError(f"cannot be written: {error.strerror}", str(to), "Choose another --to.") from None
    print(to or location)


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration, for editors and other tools."""
    from pipelines.config import config_schema

    print(json.dumps(config_schema(), indent=2))


def main() -> None:
    """Entry point: errors in one place.

    Exit status 1 for a failed run, 2 for a bad configuration, 3 where regions were left out of what is published, and 4
    where what is published is not what was expected.
    """
    signal.signal(signal.SIGINT, _interrupted)
    end = _End()
    atexit.register(end)
    try:
        app(standalone_mode=True)
    except LabelQAError as error:
        errors.print("[bold red]error:[/bold red] ", end="")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        end.status = BAD_CONFIGURATION if isinstance(error, InvalidConfig) else FAILED
    except SystemExit as done:
        if done.code is None or isinstance(done.code, int):  # or else it is what went wrong, in words
            end.status = done.code or 0
        raise


@dataclass
class _End:
    """Ends the process, as the first to be registered and so the last to be called at its exit.

    Before Python 3.14, an interpreter that is torn down aborts the process if a thread of the object store's client
    answers a request just then, and the exit status is lost: https://github.com/python/cpython/issues/87135
    """

    status: int = FAILED

    def __call__(self) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.status)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """End at once: a run may be killed at any moment, and its workers end with this process."""
    print("\nInterrupted. What is finished is kept: run the same command again to go on.", file=sys.stderr, flush=True)
    os._exit(128 + number)


def _audit(config: AuditConfig, *, fresh: bool, prefect: bool) -> Audited:
    from flows.terminal import show_progress

    console.print(f"[dim]starting {'Prefect and ' if prefect else ''}the workers[/dim]")
    with show_progress(console) as listener:
        if not prefect:
            from flows.cluster import open_cluster, resources_of
            from pipelines.audit import run_audit
            from pipelines.plan import make_plan

            plan = make_plan(config, resources_of(config))
            with open_cluster(config) as client:
                return run_audit(plan, client, listener, fresh=fresh)
        _quiet_prefect()
        from flows.audit import run_flow

        return run_flow(config, listener, fresh=fresh)


def _no_telemetry() -> None:
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def _quiet_prefect() -> None:
    """Prefect without telemetry and with the terminal left to our progress; its own logs still reach its server.

    Its embedded server is given time to start on a machine that is busy or slow.
    """
    _no_telemetry()
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")


def _tell_result(audited: Audited) -> None:
    from flows.progress import refreshed_lines

    run = audited.run
    summary = run.summary
    if audited.unchanged:
        console.print("Nothing has changed since this version was published. Use --fresh to score it again.")
    score = summary["score"]
    mean = "none" if score["mean"] is None else f"{score['mean']:.4f}, lowest {score['min']:.4g}"
    print_pairs(
        [
            ("examples", f"{summary['examples']:,}"),
            (f"mean {score['name']}", mean),
            *([("refreshed", refreshed_lines(audited.refreshed))] if audited.refreshed else []),
            *(("note", remark) for remark in summary["remarks"]),
            ("scores", str(run.version.location)),
            ("report", str(run.report)),
            *([("expectations", _how_many_hold(audited))] if audited.findings else []),
        ]
    )
    left_out = summary["quarantined"]
    if left_out["regions"]:
        errors.print(
            f"[bold yellow]left out:[/bold yellow] {left_out['regions']:,} regions with {left_out['examples']:,} "
            "examples, as their data cannot be scored; their scores are missing, summary.json lists them.",
            highlight=False,
            soft_wrap=True,
        )
        for bad in left_out["listed"][:_BAD_SHOWN]:
            errors.print(
                f"  region {bad['region']}: {bad['reasons'][0]}", markup=False, highlight=False, soft_wrap=True
            )
    broken = [finding for finding in audited.findings if not finding.holds]
    for finding in broken:
        errors.print("[bold red]broken expectation:[/bold red] ", end="")
        errors.print(finding.sentence, markup=False, highlight=False, soft_wrap=True)
    if broken:
        raise typer.Exit(BROKEN)
    if left_out["regions"]:
        raise typer.Exit(QUARANTINED)


def _how_many_hold(audited: Audited) -> str:
    held = sum(finding.holds for finding in audited.findings)
    return "all hold" if held == len(audited.findings) else f"{held} of {len(audited.findings)} hold"


def _output(out: str) -> Location:
    """The location of an output, given itself or the configuration file that names it."""
    from flows.settings import load_config
    from labelqa_dask.storage.location import Location

    if out.endswith((".yaml", ".yml")):
        config = load_config(Path(out))
        return Location.parse(config.output.uri, config.storage)
    return Location.parse(out)


def _open_run(out: str) -> Run:
    from labelqa_dask.storage.run import open_run

    location = _output(out)
    return open_run(location.url, location.options)


def _table_of(frame: pd.DataFrame) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    formats: list[Callable[[object], str]] = []
    for name in frame.columns:
        number = frame[name].dtype.kind in "iuf"
        table.add_column(str(name), justify="right" if number else "left")
        formats.append((lambda value: f"{value:.4g}") if frame[name].dtype.kind == "f" else str)
    for row, missing in zip(frame.itertuples(index=False), frame.isna().to_numpy(), strict=True):
        shown = ("" if none else form(value) for form, value, none in zip(formats, row, missing, strict=True))
        table.add_row(*(Text(_printable(text)) for text in shown))
    return table


def _printable(text: str) -> str:
    """What comes from data, without what would command the terminal."""
    return "".join("\N{REPLACEMENT CHARACTER}" if category(character) == "Cc" else character for character in text)


if __name__ == "__main__":
    main()

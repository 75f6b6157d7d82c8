"""What a run is told: a validated, immutable configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from labelqa_dask.core.errors import InvalidConfig, nearest
from labelqa_dask.core.settings import Settings, explain
from labelqa_dask.core.task import Task, get_task, task_names
from labelqa_dask.storage.location import StorageOptions
from pipelines.clusters import AnyCluster, LocalCluster, with_its_kind


class InputConfig(Settings):
    """A stored array: a Zarr array by its name in a group, or columns of Parquet files or of a table."""

    uri: str
    """Path or URL of a Zarr group or array, or of Parquet files: one, a folder, or a pattern such as part-*.parquet.
    Delta Lake and Icechunk: the folder of the table or repository. Iceberg: the table's name in a catalog, or the URL
    of its newest metadata.json."""
    format: Literal["delta", "iceberg", "icechunk"] | None = None
    """Where it has versions, one of which is read: a table of a data lake, or an Icechunk repository of Zarr arrays."""
    catalog: str | None = None
    """Iceberg: name of the catalog in pyiceberg's own configuration."""
    version: int | str | None = None
    """Delta Lake: the number of the version to read. Iceberg: that of the snapshot. Icechunk: a branch, a tag, or the
    id of a snapshot. Default: the newest when the run is planned, of the branch main."""
    array: str | None = None
    """Zarr and Icechunk: name of the array in the group; not needed where there is only one."""
    column: str | None = None
    """Parquet: one column, which may hold lists."""
    columns: tuple[str, ...] | None = None
    """Parquet: one column per class, in class order. Annotations: those of example, annotator and label."""
    bad_rows: Literal["refuse", "drop"] | None = None
    """Annotations: whether rows that cannot be scored stop the run (the default), or are left out."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in ("array", "column", "columns") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of array, column and columns, not {' and '.join(given)}")
        self._check_format(given)
        if not given and self.format is None and ".parquet" in self.uri:
            raise ValueError("a Parquet input needs 'column:' (or 'columns:' with one per class)")
        if self.columns is not None and not self.columns:
            raise ValueError("columns is empty")
        return self

    def _check_format(self, given: list[str]) -> None:
        if self.format is None and self.version is not None:
            raise ValueError("version is that of a table or repository: add 'format: delta', iceberg or icechunk")
        if self.format != "iceberg" and self.catalog is not None:
            raise ValueError("catalog is that of a table of 'format: iceberg'")
        if self.format == "icechunk" and self.is_parquet:
            raise ValueError(f"an Icechunk repository has arrays: give 'array:', not {given[0]}")
        if self.is_table and not self.is_parquet:
            raise ValueError("a table needs 'column:' (or 'columns:' with one per class)")
        if self.is_table and self.version is not None and not (isinstance(self.version, int) and self.version >= 0):
            raise ValueError(f"version of a table is a number, not {self.version!r}")
        if self.format == "iceberg" and self.catalog is None and not self.uri.endswith(".metadata.json"):
            raise ValueError("an Iceberg table needs its 'catalog:', or as uri that of its newest metadata.json")

    @property
    def is_parquet(self) -> bool:
        return self.column is not None or self.columns is not None

    @property
    def is_table(self) -> bool:
        return self.format in ("delta", "iceberg")


class OutputConfig(Settings):
    """Where scores go."""

    uri: str
    """Path or URL of a folder; each run adds a version to it."""
    format: Literal["zarr", "parquet", "delta", "iceberg"] = "zarr"
    """delta: Parquet files, and a log that makes the folder a Delta table. iceberg: Parquet files, which a table of a
    catalog is told of."""
    catalog: str | None = None
    """Iceberg: name of the catalog in pyiceberg's own configuration."""
    table: str | None = None
    """Iceberg: name of the table in the catalog, with its namespace; made where there is none."""
    keep_versions: int | None = Field(default=None, ge=1)
    """How many published versions stay; older ones are deleted once a new one is published. Default: all."""
    region_rows: int | None = Field(default=None, ge=1)
    """Examples per region, the unit of work and of resuming; chosen from the input's layout where not given."""

    @model_validator(mode="after")
    def _table_is_named(self) -> Self:
        named = [name for name in ("catalog", "table") if getattr(self, name) is not None]
        if self.format == "iceberg" and len(named) < 2:
            raise ValueError("format: iceberg needs 'catalog:' and 'table:'")
        if self.format != "iceberg" and named:
            raise ValueError(f"{named[0]} is that of format: iceberg")
        return self

    @property
    def is_table(self) -> bool:
        return self.format in ("delta", "iceberg")


class RefreshConfig(Settings):
    """What a new version of an output takes from the one before, where the data of a region have not changed."""

    statistics: Literal["exact", "frozen"] = "exact"
    """exact: statistics of all data; where they moved, what rests on them is scored again, and the result is that of a
    run from scratch. frozen: those of the version before; only new and changed regions are scored."""


class SelectConfig(Settings):
    """Which examples are listed."""

    worst: int = Field(default=1000, ge=1, le=100_000)
    """Length of the list of the worst examples."""


class Bounds(Settings):
    """The least and the most that a number may be; one of them is enough."""

    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: nothing lies between")
        return self


EACH = "each"
"""Stands for every class, or every annotator."""


class ExpectConfig(Settings):
    """What the results must be; where they are not, the run fails after publishing them, with exit status 4."""

    mean_score: Bounds | None = None
    """Mean score of the examples."""
    issue_share: Bounds | None = None
    """Share of the labels that are estimated to be wrong, from 0 to 1, where the run looks for label issues."""
    class_mean_score: dict[str, Bounds] = {}
    """Mean score of the labels of a class by its number, or of each class: {each: {min: 0.5}, 3: {min: 0.8}}."""
    annotator_quality: dict[str, Bounds] = {}
    """Quality of an annotator by name, or of each annotator: {each: {min: 0.5}, alice: {min: 0.8}}."""
    quarantined_regions: Bounds | None = None
    """Number of regions left out because their data cannot be scored, with on_error: quarantine."""

    @field_validator("class_mean_score", "annotator_quality", mode="before")
    @classmethod
    def _names_are_text(cls, value: Any) -> Any:
        return {str(name): bounds for name, bounds in value.items()} if isinstance(value, Mapping) else value

    @field_validator("class_mean_score")
    @classmethod
    def _classes_are_numbers(cls, value: dict[str, Bounds]) -> dict[str, Bounds]:
        for name in value:
            if name != EACH and not (name.isascii() and name.isdecimal() and str(int(name)) == name):
                raise ValueError(f"{name!r} is no class; give its number, from 0, or {EACH!r}")
        return value

    def refuse_what_is_not_there(self, task: Task[Any], params: Any) -> None:
        """Refuse an expectation of what a task does not tell with these parameters, saying what it tells."""
        why_not = {
            "class_mean_score": None if "class" in task.dims else "has no classes",
            "issue_share": _why_not("issues", "estimate which labels are wrong", task, params),
            "annotator_quality": _why_not("annotators", "tell the quality of annotators", task, params),
        }
        known = [name for name in type(self).model_fields if why_not.get(name) is None]
        for name, reason in why_not.items():
            if reason and getattr(self, name):
                raise ValueError(f"expect.{name}: {task.name} {reason}; expected can be {', '.join(known)}")

    def refuse_unknown_classes(self, classes: int) -> None:
        """Refuse an expectation of a class that the data do not have."""
        for name in self.class_mean_score:
            if name != EACH and int(name) >= classes:
                raise InvalidConfig(
                    f"there is no class {name}: classes are 0 to {classes - 1}", "expect.class_mean_score"
                )


def _why_not(what: str, does: str, task: Task[Any], params: Any) -> str | None:
    """Why a task does not tell something with these parameters; None where it does."""
    if what not in task.told_where:
        return f"does not {does}"
    name, value = task.told_where[what]
    if getattr(params, name) == value:
        return None
    shown = str(value).lower() if isinstance(value, bool) else value
    return f"does not {does} without params.{name}: {shown}"


class WorkConfig(Settings):
    """What runs the work, and how storage is reached."""

    cluster: AnyCluster = LocalCluster()
    storage: StorageOptions = StorageOptions()

    @field_validator("cluster", mode="before")
    @classmethod
    def _of_a_known_kind(cls, value: Any) -> Any:
        return with_its_kind(value) if isinstance(value, Mapping) else value


class AuditConfig(WorkConfig):
    """One audit: what is scored, how, where the scores go, and what runs it."""

    task: str
    """The method, such as multiclass or segmentation."""
    input: dict[str, InputConfig]
    """Each input of the task by name (labels, pred_probs), and optionally ids."""
    params: dict[str, Any] = {}
    """The method's parameters."""
    output: OutputConfig
    select: SelectConfig = SelectConfig()
    refresh: RefreshConfig = RefreshConfig()
    on_error: Literal["fail", "quarantine"] = "fail"
    """Where regions hold data that cannot be scored: fail lists them and publishes nothing; quarantine leaves them out,
    marks them, and publishes the rest."""
    expect: ExpectConfig = ExpectConfig()

    @model_validator(mode="after")
    def _inputs_are_the_tasks(self) -> Self:
        if self.task not in task_names():
            raise ValueError(f"unknown task {self.task!r}. {nearest(self.task, task_names())}")
        wanted = [spec.name for spec in self.method.inputs]
        for name in self.input:
            if name not in (*wanted, "ids"):
                raise ValueError(f"input {name!r} is not one of {self.task}. {nearest(name, [*wanted, 'ids'])}")
        missing = [name for name in wanted if name not in self.input]
        if missing:
            raise ValueError(f"input lacks {' and '.join(missing)}: {self.task} needs {' and '.join(wanted)}")
        self.expect.refuse_what_is_not_there(self.method, self.method.params(**self.params))
        return self

    @property
    def method(self) -> Task[Any]:
        return get_task(self.task)


def parse_config(settings: Mapping[str, Any], where: str = "configuration") -> AuditConfig:
    """Validate settings; every problem found is named in one error.

    Raises
    ------
    InvalidConfig
    """
    try:
        return AuditConfig(**settings)
    except ValidationError as error:
        raise explain(error, AuditConfig, where) from None
    except TypeError as error:
        raise InvalidConfig(f"is not a mapping of settings: {error}", where) from None


def config_schema() -> dict[str, Any]:
    """JSON schema of the configuration, the parameters of each task included."""
    schema = AuditConfig.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    schema["properties"]["task"]["enum"] = list(task_names())
    schema["allOf"] = []
    for name in task_names():
        params = get_task(name).params_model
        described = params.model_json_schema()
        definitions |= described.pop("$defs", {})
        definitions[params.__name__] = described
        schema["allOf"].append(
            {
                "if": {"properties": {"task": {"const": name}}},
                "then": {"properties": {"params": {"$ref": f"#/$defs/{params.__name__}"}}},
            }
        )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

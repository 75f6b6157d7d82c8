"""What a run is told: a validated, immutable configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from dask.utils import parse_bytes
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from labelqa_dask.core.errors import InvalidConfig, nearest
from labelqa_dask.core.settings import explain
from labelqa_dask.core.task import Task, get_task, task_names
from labelqa_dask.storage.location import StorageOptions


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class InputConfig(_Settings):
    """A stored array: a Zarr array by its name in a group, or columns of Parquet files."""

    uri: str
    """Path or URL of a Zarr group or array, or of Parquet files: one, a folder, or a pattern such as part-*.parquet."""
    array: str | None = None
    """Zarr: name of the array in the group; not needed where there is only one."""
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
        if not given and ".parquet" in self.uri:
            raise ValueError("a Parquet input needs 'column:' (or 'columns:' with one per class)")
        if self.columns is not None and not self.columns:
            raise ValueError("columns is empty")
        return self

    @property
    def is_parquet(self) -> bool:
        return self.column is not None or self.columns is not None


class OutputConfig(_Settings):
    """Where scores go."""

    uri: str
    """Path or URL of a folder; each run adds a version to it."""
    format: Literal["zarr", "parquet"] = "zarr"
    keep_versions: int | None = Field(default=None, ge=1)
    """How many published versions stay; older ones are deleted once a new one is published. Default: all."""
    region_rows: int | None = Field(default=None, ge=1)
    """Examples per region, the unit of work and of resuming; chosen from the input's layout where not given."""


class RefreshConfig(_Settings):
    """What a new version of an output takes from the one before, where the data of a region have not changed."""

    statistics: Literal["exact", "frozen"] = "exact"
    """exact: statistics of all data; where they moved, what rests on them is scored again, and the result is that of a
    run from scratch. frozen: those of the version before; only new and changed regions are scored."""


class SelectConfig(_Settings):
    """Which examples are listed."""

    worst: int = Field(default=1000, ge=1, le=100_000)
    """Length of the list of the worst examples."""


class LocalCluster(_Settings):
    """Worker processes on this machine, for the length of the run."""

    kind: Literal["local"] = "local"
    workers: int | None = Field(default=None, ge=1)
    """Default: one per core."""
    threads_per_worker: int = Field(default=1, ge=1)
    memory_limit: str | None = None
    """Per worker, such as 4GiB. Default: an equal share of the machine's memory."""

    @field_validator("memory_limit")
    @classmethod
    def _is_bytes(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_bytes(value)
            except ValueError:
                raise ValueError("must be a size such as 4GiB or 800MB") from None
        return value


class RunningCluster(_Settings):
    """A Dask scheduler that is already running."""

    kind: Literal["address"] = "address"
    address: str
    """Such as tcp://10.0.0.5:8786."""


class WorkConfig(_Settings):
    """What runs the work, and how storage is reached."""

    cluster: Annotated[LocalCluster | RunningCluster, Field(discriminator="kind")] = LocalCluster()
    storage: StorageOptions = StorageOptions()

    @field_validator("cluster", mode="before")
    @classmethod
    def _local_by_default(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "kind" not in value:
            return {"kind": "address" if "address" in value else "local", **value}
        return value


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
        self.method.params(**self.params)
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

"""What runs the work: the kinds of cluster, and what has to be said of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from dask.utils import parse_bytes
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from labelqa_dask.core.errors import nearest
from labelqa_dask.core.settings import Settings


def _is_bytes(value: str) -> str:
    try:
        parse_bytes(value)
    except ValueError:
        raise ValueError("must be a size such as 4GiB or 800MB") from None
    return value


def _is_quoted(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError("must be quoted, such as '12:00:00': YAML takes it for a number")
    return value


def _one_number_for_both(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return {"minimum": value, "maximum": value}
    if not isinstance(value, Mapping | Settings):
        raise ValueError("must be a number, or {minimum: …, maximum: …}")
    return value


def _is_public_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("is no name of an environment variable")
    if re.search(r"SECRET|PASSWORD|TOKEN|CREDENTIAL|_KEY(_|$)", name, re.IGNORECASE):
        raise ValueError("looks like a credential, which has no place in a configuration")
    return name


Size = Annotated[str, AfterValidator(_is_bytes)]
VariableName = Annotated[str, AfterValidator(_is_public_variable)]


class LocalCluster(Settings):
    """Worker processes on this machine, for the length of the run."""

    kind: Literal["local"] = "local"
    workers: int | None = Field(default=None, ge=1)
    """Default: one per core."""
    threads_per_worker: int = Field(default=1, ge=1)
    memory_limit: Size | None = None
    """Per worker, such as 4GiB. Default: an equal share of the machine's memory."""


class RunningCluster(Settings):
    """A Dask scheduler that is already running."""

    kind: Literal["address"] = "address"
    address: str
    """Such as tcp://10.0.0.5:8786."""


class Workers(Settings):
    """As many workers as there is work for, within bounds."""

    minimum: int = Field(ge=0)
    """Kept while there is nothing to do, between the stages of a run."""
    maximum: int = Field(ge=1)
    """Asked for while there is enough to do."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self


class BegunCluster(Settings):
    """What is said of every cluster that an engine begins elsewhere, for the length of a run."""

    workers: Annotated[Workers, BeforeValidator(_one_number_for_both, json_schema_input_type=int | Workers)]
    """A number, or {minimum: 0, maximum: 20}: as many as there is work for."""
    threads_per_worker: int = Field(default=1, ge=1)
    memory_limit: Size
    """Per worker, such as 4GiB."""
    env: dict[VariableName, str] = {}
    """Environment variables of the workers; never credentials."""


class JobsCluster(BegunCluster):
    """Workers in jobs of a batch system; the scheduler runs in the process that runs the audit."""

    workers_per_job: int = Field(default=1, ge=1)
    """A job asks for the threads and the memory of so many workers."""
    interface: str | None = None
    """Network interface that this host and those of the jobs reach each other by, such as ib0."""
    job_script_prologue: tuple[str, ...] = ()
    """Commands before a worker starts, such as module load."""

    @model_validator(mode="after")
    def _whole_jobs(self) -> Self:
        for name, workers in self.workers:
            if workers % self.workers_per_job:
                raise ValueError(
                    f"workers.{name}: {workers} is not a multiple of workers_per_job: {self.workers_per_job}"
                )
        return self


class QueueCluster(JobsCluster):
    """What is said of jobs in a queue."""

    queue: str | None = None
    """Queue or partition."""
    walltime: Annotated[str, BeforeValidator(_is_quoted)] | None = None
    """How long a job may take, as the batch system writes it, such as '12:00:00'."""
    job_extra_directives: tuple[str, ...] = ()
    """Further options of a job, as after #SBATCH, #PBS and the like."""


class AccountQueueCluster(QueueCluster):
    """Jobs of Slurm, PBS or Moab."""

    kind: Literal["slurm", "pbs", "moab"]
    account: str | None = None


class ProjectQueueCluster(QueueCluster):
    """Jobs of Grid Engine or LSF."""

    kind: Literal["sge", "lsf"]
    project: str | None = None


class HTCondorCluster(JobsCluster):
    """Jobs of HTCondor."""

    kind: Literal["htcondor"]
    disk: Size
    """Per job."""
    job_extra_directives: dict[str, str] = {}
    """Further lines of the submit description."""


class KubernetesCluster(BegunCluster):
    """Pods of the Dask operator for Kubernetes."""

    kind: Literal["kubernetes"] = "kubernetes"
    image: str
    """Of the scheduler and the workers; it holds this package, in the version that is installed here."""
    namespace: str | None = None
    """Default: that of the current context."""
    service_account: str | None = None
    """Of the pods, such as one that may read and write the object store."""
    secrets: tuple[str, ...] = ()
    """Secrets of the namespace whose entries are environment variables of the pods: credentials of the object store."""


class CoiledCluster(BegunCluster):
    """Machines that Coiled starts in a cloud account."""

    kind: Literal["coiled"] = "coiled"
    image: str | None = None
    """Container image with this package. Default: what is installed here is installed there."""
    software: str | None = None
    """Coiled's name of a software environment, instead of an image."""
    region: str | None = None
    """Of the cloud: that of the object store."""
    workspace: str | None = None

    @model_validator(mode="after")
    def _one_software(self) -> Self:
        if self.image is not None and self.software is not None:
            raise ValueError("give one of image and software, not both")
        return self


AnyJobsCluster = AccountQueueCluster | ProjectQueueCluster | HTCondorCluster
AnyBegunCluster = AnyJobsCluster | KubernetesCluster | CoiledCluster
AnyCluster = Annotated[LocalCluster | RunningCluster | AnyBegunCluster, Field(discriminator="kind")]
KINDS: Mapping[str, type[Settings]] = {
    kind: model
    for model in get_args(get_args(AnyCluster)[0])
    for kind in get_args(model.model_fields["kind"].annotation)
}


def with_its_kind(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a cluster, local unless it has an address; what its kind does not have is refused by name."""
    kind = settings.get("kind", "address" if "address" in settings else "local")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}. {nearest(str(kind), KINDS)}")
    for name in settings:
        owners = [other for other, model in KINDS.items() if name in model.model_fields]
        if owners and kind not in owners:
            raise ValueError(f"{name!r} is not a setting of kind {kind}, only of {', '.join(owners)}")
    return {"kind": kind, **settings}

"""Configurations: the examples are valid, and every mistake is answered with one error that names the setting."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.settings import load_config
from labelqa_dask.core.errors import InvalidConfig
from labelqa_dask.core.task import get_task, task_names
from pipelines.clusters import KINDS, LocalCluster, RunningCluster, Workers
from pipelines.config import AuditConfig, config_schema, parse_config

CONFIGS = Path(__file__).parents[2] / "configs"
CLUSTER_EXAMPLES = sorted(CONFIGS.glob("cluster-*.yaml"))
INPUT_EXAMPLES = sorted([*CONFIGS.glob("table-*.yaml"), *CONFIGS.glob("input-*.yaml")])
EXAMPLES = sorted({*CONFIGS.glob("*.yaml")} - {*CLUSTER_EXAMPLES, *INPUT_EXAMPLES})
JOBS = {"kind": "slurm", "workers": 4, "memory_limit": "4GiB"}

LEAST: dict[str, Any] = {
    "task": "multiclass",
    "input": {
        "labels": {"uri": "s3://bucket/data.zarr", "array": "labels"},
        "pred_probs": {"uri": "s3://bucket/data.zarr", "array": "pred_probs"},
    },
    "output": {"uri": "s3://bucket/out"},
}
MISSING = object()


def changed(path: str, value: Any) -> dict[str, Any]:
    """The least configuration with one setting changed, added or taken out."""
    settings = copy.deepcopy(LEAST)
    *parents, last = path.split(".")
    inner = settings
    for parent in parents:
        inner = inner.setdefault(parent, {})
    if value is MISSING:
        del inner[last]
    else:
        inner[last] = value
    return settings


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_configuration_is_valid_and_named_after_its_task(path: Path) -> None:
    config = load_config(path)
    assert config.task == path.stem
    assert config.cluster.kind == "local"


@pytest.mark.parametrize("path", INPUT_EXAMPLES, ids=lambda path: path.stem)
def test_an_example_of_inputs_is_valid_and_named_after_their_format(path: Path) -> None:
    formats = {settings.format for settings in load_config(path).input.values()}
    assert formats == {path.stem.partition("-")[2]}


def test_there_is_an_example_for_each_format_with_versions() -> None:
    assert {path.stem.partition("-")[2] for path in INPUT_EXAMPLES} == {"delta", "iceberg", "icechunk"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_expectations_of_an_example_are_valid_once_they_are_no_comment(path: Path) -> None:
    lines = path.read_text().splitlines()
    begin = lines.index("# expect:")
    shown = yaml.safe_load("\n".join(line.removeprefix("# ") for line in lines[begin : lines.index("", begin)]))
    asked_for = {
        "multiclass": {"find_label_issues": True},
        "multilabel": {"count_issues": True},
        "segmentation": {"method": "num_pixel_issues"},
    }
    settings = {**yaml.safe_load(path.read_text()), "params": asked_for.get(path.stem, {}), **shown}
    config = parse_config(settings)
    assert config.expect.mean_score is not None
    assert set(shown["expect"]) == config.expect.model_fields_set


def test_there_is_an_example_for_each_task() -> None:
    assert [path.stem for path in EXAMPLES] == list(task_names())


@pytest.mark.parametrize("path", CLUSTER_EXAMPLES, ids=lambda path: path.stem)
def test_an_example_of_a_cluster_is_valid_and_named_after_its_kind(path: Path) -> None:
    assert f"cluster-{load_config(path).cluster.kind}" == path.stem


def test_there_is_an_example_for_each_kind_of_cluster() -> None:
    assert {path.stem.removeprefix("cluster-") for path in CLUSTER_EXAMPLES} == {*KINDS} - {"local"}


def test_what_is_not_given_has_defaults() -> None:
    config = parse_config(LEAST)
    assert config.output.format == "zarr"
    assert config.output.region_rows is None
    assert config.select.worst == 1000
    assert config.cluster == LocalCluster()
    assert config.params == {}
    assert config.storage.endpoint_url is None


def test_a_configuration_is_immutable_and_can_be_sent() -> None:
    config = parse_config(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        config.task = "segmentation"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == config
    assert AuditConfig(**config.model_dump()) == config


def test_a_cluster_is_local_unless_it_has_an_address() -> None:
    assert parse_config(changed("cluster", {"workers": 3})).cluster == LocalCluster(workers=3)
    address = {"address": "tcp://host:8786"}
    for settings in (address, {"kind": "address", **address}):
        assert parse_config(changed("cluster", settings)).cluster == RunningCluster(kind="address", **address)


def test_workers_are_a_number_or_a_range() -> None:
    for value, expected in (
        (4, Workers(minimum=4, maximum=4)),
        ({"minimum": 0, "maximum": 9}, Workers(minimum=0, maximum=9)),
    ):
        cluster = parse_config(changed("cluster", JOBS | {"workers": value})).cluster
        assert cluster.workers == expected
        assert parse_config(changed("cluster", cluster.model_dump())).cluster == cluster


def test_a_secret_that_stands_in_a_configuration_is_refused_and_not_told() -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AZURE_STORAGE_ACCOUNT_KEY", "api_token", "PASSWORD"):
        with pytest.raises(InvalidConfig, match=rf"cluster\.env\.{name}: looks like a credential") as caught:
            parse_config(changed("cluster", JOBS | {"env": {name: "hunter2"}}))
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("task", MISSING, "missing setting 'task'"),
        ("output", MISSING, "missing setting 'output'"),
        ("output.uri", MISSING, "missing setting 'output.uri'"),
        ("input.labels.uri", MISSING, "missing setting 'input.labels.uri'"),
        ("taks", "x", "unknown setting 'taks' (Did you mean 'task'?)"),
        ("task", "multiclas", "unknown task 'multiclas'. Did you mean 'multiclass'?"),
        ("task", ["multiclass"], "task: Input should be a valid string"),
        ("input", {}, "input lacks labels and pred_probs: multiclass needs labels and pred_probs"),
        ("input.pred_probs", MISSING, "input lacks pred_probs: multiclass needs labels and pred_probs"),
        ("input.lables", {"uri": "x"}, "input 'lables' is not one of multiclass. Did you mean 'labels'?"),
        ("input.labels.aray", "x", "unknown setting 'input.labels.aray' (Did you mean 'array'?)"),
        ("input.labels", "s3://bucket/x", "input.labels: Input should be a valid dictionary"),
        ("input.labels.column", "x", "input.labels: give one of array, column and columns, not array and column"),
        ("input.labels", {"uri": "s3://b/x.parquet"}, "input.labels: a Parquet input needs 'column:'"),
        ("input.labels", {"uri": "s3://b/x.parquet", "columns": []}, "input.labels: columns is empty"),
        (
            "input.labels.format",
            "hudi",
            "input.labels.format: Input should be 'delta', 'iceberg' or 'icechunk' (got 'hudi')",
        ),
        ("input.labels.format", "delta", "input.labels: a table needs 'column:' (or 'columns:' with one per class)"),
        ("input.labels", {"uri": "x", "format": "delta"}, "input.labels: a table needs 'column:'"),
        ("input.labels.version", 3, "input.labels: version is that of a table or repository: add 'format: delta'"),
        (
            "input.labels",
            {"uri": "x", "format": "delta", "column": "c", "catalog": "prod"},
            "input.labels: catalog is that of a table of 'format: iceberg'",
        ),
        (
            "input.labels",
            {"uri": "s3://b/table", "format": "iceberg", "column": "c"},
            "input.labels: an Iceberg table needs its 'catalog:', or as uri that of its newest metadata.json",
        ),
        (
            "input.labels",
            {"uri": "x", "format": "delta", "column": "c", "version": -1},
            "input.labels: version of a table is a number, not -1",
        ),
        ("output", {"uri": "x", "format": "iceberg"}, "output: format: iceberg needs 'catalog:' and 'table:'"),
        ("output", {"uri": "x", "format": "delta", "table": "a.b"}, "output: table is that of format: iceberg"),
        ("params", {"methd": "x"}, "multiclass params: unknown setting 'methd' (Did you mean 'method'?)"),
        ("params", {"method": "x"}, "multiclass params: method: Input should be 'self_confidence',"),
        (
            "params",
            {"adjust_pred_probs": "maybe"},
            "multiclass params: adjust_pred_probs: Input should be a valid boolean",
        ),
        (
            "params",
            {"adjust_pred_probs": True, "method": "confidence_weighted_entropy"},
            "adjust_pred_probs is not supported for confidence_weighted_entropy",
        ),
        ("output.formt", "zarr", "unknown setting 'output.formt' (Did you mean 'format'?)"),
        ("output.format", "csv", "output.format: Input should be 'zarr', 'parquet', 'delta' or 'iceberg' (got 'csv')"),
        ("output.region_rows", 0, "output.region_rows: Input should be greater than or equal to 1 (got 0)"),
        ("select.wrst", 3, "unknown setting 'select.wrst' (Did you mean 'worst'?)"),
        ("select.worst", 0, "select.worst: Input should be greater than or equal to 1 (got 0)"),
        ("select.worst", 100_001, "select.worst: Input should be less than or equal to 100000"),
        ("cluster.wrokers", 3, "unknown setting 'cluster.wrokers' (Did you mean 'workers'?)"),
        ("cluster.workers", 0, "cluster.workers: Input should be greater than or equal to 1"),
        ("cluster.memory_limit", "lots", "cluster.memory_limit: must be a size such as 4GiB or 800MB (got 'lots')"),
        ("cluster.memory_limit", 4e9, "cluster.memory_limit: Input should be a valid string"),
        ("cluster", {"kind": "kubernetes"}, "missing setting 'cluster.image'"),
        ("cluster", {"kind": "slrm"}, "cluster: unknown kind 'slrm'. Did you mean 'slurm'?"),
        ("cluster", {"kind": ["slurm"]}, "cluster: unknown kind ['slurm']"),
        ("cluster", {"image": "x"}, "cluster: 'image' is not a setting of kind local, only of kubernetes, coiled"),
        ("cluster", JOBS | {"project": "x"}, "cluster: 'project' is not a setting of kind slurm, only of sge, lsf"),
        ("cluster", JOBS | {"quue": "x"}, "unknown setting 'cluster.quue' (Did you mean 'queue'?)"),
        ("cluster", JOBS | {"workers": "x"}, "cluster.workers: must be a number, or {minimum: …, maximum: …}"),
        ("cluster", JOBS | {"workers": True}, "cluster.workers: must be a number, or {minimum: …, maximum: …}"),
        ("cluster", JOBS | {"workers": 0}, "cluster.workers.maximum: Input should be greater than or equal to 1"),
        (
            "cluster",
            JOBS | {"workers": {"minimum": 3, "maximum": 2}},
            "cluster.workers: minimum 3 is above maximum 2",
        ),
        ("cluster", JOBS | {"workers": {"minimum": 3}}, "missing setting 'cluster.workers.maximum'"),
        (
            "cluster",
            JOBS | {"workers_per_job": 3},
            "cluster: workers.minimum: 4 is not a multiple of workers_per_job: 3",
        ),
        ("cluster", JOBS | {"walltime": 43200}, "cluster.walltime: must be quoted, such as '12:00:00'"),
        ("cluster", JOBS | {"env": {"A B": "x"}}, "cluster.env.A B: is no name of an environment variable"),
        (
            "cluster",
            {**JOBS, "kind": "coiled", "image": "x", "software": "y"},
            "cluster: give one of image and software, not both",
        ),
        ("cluster.workers", {"minimum": 1, "maximum": 2}, "cluster.workers: Input should be a valid integer"),
        (
            "cluster",
            {"address": "tcp://x", "adress": "y"},
            "unknown setting 'cluster.adress' (Did you mean 'address'?)",
        ),
        ("expect.mean_scor", {"min": 0}, "unknown setting 'expect.mean_scor' (Did you mean 'mean_score'?)"),
        ("expect.mean_score", {"mn": 0}, "unknown setting 'expect.mean_score.mn' (Did you mean 'min'?)"),
        ("expect.mean_score", {}, "expect.mean_score: give min, max or both"),
        ("expect.mean_score", {"min": 2, "max": 1}, "expect.mean_score: min 2 is above max 1: nothing lies between"),
        ("expect.mean_score", {"min": float("nan")}, "expect.mean_score.min: Input should be a finite number"),
        ("expect.class_mean_score", {"x": {"min": 0}}, "'x' is no class; give its number, from 0, or 'each'"),
        ("expect.class_mean_score", {-1: {"min": 0}}, "'-1' is no class"),
        ("expect.class_mean_score", {3: {"mn": 0}}, "unknown setting 'expect.class_mean_score.3.mn'"),
        (
            "expect.issue_share",
            {"max": 0},
            "expect.issue_share: multiclass does not estimate which labels are wrong without "
            "params.find_label_issues: true; expected can be mean_score, class_mean_score, quarantined_regions",
        ),
        (
            "expect.annotator_quality",
            {"each": {"min": 0}},
            "expect.annotator_quality: multiclass does not tell the quality of annotators; expected can be mean_score",
        ),
        ("storage.endpoint", "x", "unknown setting 'storage.endpoint' (Did you mean 'endpoint_url'?)"),
        ("storage.timeout_seconds", 0, "storage.timeout_seconds: Input should be greater than 0"),
    ],
)
def test_a_mistake_is_named_with_its_setting(path: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_config(changed(path, value), "audit.yaml")
    assert str(caught.value).startswith("audit.yaml: ")
    assert message in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("settings", [[], {1: 2}, "text", None])
def test_what_is_no_mapping_of_settings_is_named(settings: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"^configuration: is not a mapping of settings"):
        parse_config(settings)


@pytest.mark.parametrize(
    ("task", "params", "known"),
    [
        ("multiclass", {}, {"class_mean_score"}),
        ("multiclass", {"find_label_issues": True}, {"class_mean_score", "issue_share"}),
        ("multilabel", {"count_issues": True}, {"class_mean_score", "issue_share"}),
        ("segmentation", {"method": "num_pixel_issues"}, {"class_mean_score", "issue_share"}),
        ("segmentation", {}, {"class_mean_score"}),
        ("multiannotator", {}, {"class_mean_score", "annotator_quality"}),
        ("multiannotator", {"return_annotator_stats": False}, {"class_mean_score"}),
        ("regression", {}, set()),
    ],
)
def test_what_can_be_expected_is_what_the_task_tells(task: str, params: dict[str, Any], known: set[str]) -> None:
    inputs = {spec.name: {"uri": "x.zarr"} for spec in get_task(task).inputs}
    settings = {"task": task, "params": params, "input": inputs, "output": {"uri": "out"}}
    each = {
        "mean_score": {"min": 0},
        "quarantined_regions": {"max": 0},
        "issue_share": {"max": 0.1},
        "class_mean_score": {"each": {"min": 0}},
        "annotator_quality": {"each": {"min": 0}},
    }
    for name, expected in each.items():
        if name in known | {"mean_score", "quarantined_regions"}:
            parse_config({**settings, "expect": {name: expected}})
        else:
            with pytest.raises(InvalidConfig, match=f"expect.{name}: {task} "):
                parse_config({**settings, "expect": {name: expected}})


def test_classes_and_annotators_may_be_named_by_numbers() -> None:
    config = parse_config({**LEAST, "expect": {"class_mean_score": {3: {"min": 0.5}, "each": {"min": 0.1}}}})
    assert [*config.expect.class_mean_score] == ["3", "each"]
    assert parse_config(config.model_dump(mode="json")) == config


def test_all_mistakes_are_listed_at_once() -> None:
    settings = {**LEAST, "selct": {}, "output": {"uri": "x", "format": "csv", "regionrows": 3}}
    with pytest.raises(InvalidConfig) as caught:
        parse_config(settings)
    for name in ("'selct'", "output.format", "'output.regionrows'"):
        assert name in str(caught.value)


# -- the schema


def resolved(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema with its references replaced by what they refer to."""
    if isinstance(schema, dict) and "$ref" in schema:
        return resolved(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    if isinstance(schema, dict):
        return {key: resolved(inner, definitions) for key, inner in schema.items() if key != "$defs"}
    return [resolved(inner, definitions) for inner in schema] if isinstance(schema, list) else schema


def test_the_schema_is_plain_json_and_complete() -> None:
    schema = config_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == set(AuditConfig.model_fields)
    assert sorted(schema["required"]) == ["input", "output", "task"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["task"]["enum"] == list(task_names())


def test_the_schema_refuses_unknown_settings_at_every_depth() -> None:
    schema = resolved(config_schema(), config_schema()["$defs"])
    properties = schema["properties"]
    inner = [properties[name] for name in ("output", "select", "storage")]
    inner += [properties["input"]["additionalProperties"], *properties["cluster"]["oneOf"]]
    assert len(inner) == 4 + 7
    for known in inner:
        assert known["additionalProperties"] is False
    assert set(properties["output"]["properties"]["format"]["enum"]) == {"zarr", "parquet", "delta", "iceberg"}
    assert properties["output"]["properties"]["region_rows"]["anyOf"][0] == {"minimum": 1, "type": "integer"}


def test_the_schema_has_the_parameters_of_each_task_for_that_task_only() -> None:
    schema = resolved(config_schema(), config_schema()["$defs"])
    found = {
        case["if"]["properties"]["task"]["const"]: case["then"]["properties"]["params"] for case in schema["allOf"]
    }
    assert sorted(found) == list(task_names())
    for name, params in found.items():
        assert set(params["properties"]) == set(get_task(name).params_model.model_fields)
        assert params["additionalProperties"] is False
    assert found["segmentation"]["properties"]["temperature"]["exclusiveMinimum"] == 0


def test_the_schema_needs_no_kind_of_cluster_where_the_address_tells() -> None:
    schema = resolved(config_schema(), config_schema()["$defs"])
    kinds = {known["title"]: known for known in schema["properties"]["cluster"]["oneOf"]}
    assert kinds["LocalCluster"].get("required", []) == []
    assert kinds["RunningCluster"]["required"] == ["address"]


def test_the_schema_takes_workers_as_a_number_or_a_range() -> None:
    schema = resolved(config_schema(), config_schema()["$defs"])
    (jobs,) = (known for known in schema["properties"]["cluster"]["oneOf"] if known["title"] == "AccountQueueCluster")
    number, bounds = jobs["properties"]["workers"]["anyOf"]
    assert number == {"type": "integer"}
    assert bounds["required"] == ["minimum", "maximum"]


def test_the_schema_describes_its_settings() -> None:
    schema = resolved(config_schema(), config_schema()["$defs"])
    assert (
        "chosen from the input's layout" in schema["properties"]["output"]["properties"]["region_rows"]["description"]
    )
    assert schema["properties"]["select"]["properties"]["worst"]["default"] == 1000


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("storage.endpoint_url", "https://name:MARKER@host"),
        ("storage.endpoint_url", "https://host?sig=MARKER"),
        ("storage.endpoint_url", "MARKER"),
        ("storage.secret_access_key", "MARKER"),
        ("storage", {"access_key_id": "MARKER", "region": "x"}),
    ],
)
def test_credentials_in_a_configuration_are_refused_without_telling_them(path: str, value: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"storage\.\w+") as caught:
        parse_config(changed(path, value))
    assert "MARKER" not in str(caught.value)

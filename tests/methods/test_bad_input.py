"""Bad input is refused with the array, the place and the mend: at once where shapes tell, else with the values."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from labelqa_dask import multiclass, segmentation
from labelqa_dask.core.errors import InvalidConfig, InvalidInput
from tests.strategies import multiclass_data, segmentation_data

N = 12
METHODS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "multiclass": (multiclass.get_label_quality_scores, lambda: multiclass_data(N, 3)),
    "segmentation": (segmentation.get_label_quality_scores, lambda: segmentation_data(N, 3, 4, 6)),
}
each_method = pytest.mark.parametrize("method", METHODS)
eager_or_lazy = pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])

# -- What shapes and types tell: refused at the call, lazy or not -----------------------------------------------------

LAYOUTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], str]] = {
    "too few labels": (
        lambda labels: labels[:-1],
        lambda probs: probs,
        r"^pred_probs: pred_probs has 12 along 'example' but labels has 11\. Both must describe the same examples",
    ),
    "labels of too many dimensions": (
        lambda labels: labels[..., None],
        lambda probs: probs,
        r"^labels: labels must have \d dimensions \(example",
    ),
    "probabilities of too few dimensions": (
        lambda labels: labels,
        lambda probs: probs[..., 0],
        r"^pred_probs: pred_probs must have \d dimensions \(example, class",
    ),
    "no example": (lambda labels: labels[:0], lambda probs: probs[:0], r"^labels: labels is empty: its shape is \(0,"),
    "no class": (lambda labels: labels, lambda probs: probs[:, :0], r"^pred_probs: pred_probs is empty"),
    "one class": (
        lambda labels: labels,
        lambda probs: probs[:, :1],
        r"^pred_probs: there is only one class\. .*stack 1 - p and p",
    ),
    "float labels": (
        lambda labels: labels.astype(float),
        lambda probs: probs,
        r"^labels: labels must be integers 0\.\.k-1, got float64\. Convert them",
    ),
    "bool labels": (lambda labels: labels > 0, lambda probs: probs, r"^labels: .*got bool\. Convert them"),
    "string labels": (
        lambda labels: labels.astype(str),
        lambda probs: probs,
        r"^labels: .*got <U\d+\. Map each name to its class id",
    ),
    "object labels": (
        lambda labels: labels.astype(object),
        lambda probs: probs,
        r"^labels: .*got object\. Map each name to its class id",
    ),
    "object probabilities": (
        lambda labels: labels,
        lambda probs: probs.astype(object),
        r"^pred_probs: pred_probs must be floating point, got object",
    ),
    "integer probabilities": (
        lambda labels: labels,
        lambda probs: (probs * 255).astype(np.uint8),
        r"^pred_probs: .*got uint8\. Quantised values need their scale: .*scale_factor.* values / 255",
    ),
    "complex probabilities": (
        lambda labels: labels,
        lambda probs: probs.astype(complex),
        r"^pred_probs: .*got complex128",
    ),
}


@eager_or_lazy
@each_method
@pytest.mark.parametrize("case", LAYOUTS)
def test_impossible_shapes_and_types_are_refused_at_the_call(case: str, method: str, lazy: bool) -> None:
    score, make = METHODS[method]
    of_labels, of_probs, message = LAYOUTS[case]
    labels, pred_probs = make()
    labels, pred_probs = of_labels(labels), of_probs(pred_probs)
    if lazy:
        labels, pred_probs = (da.from_array(array, chunks=-1) for array in (labels, pred_probs))
    with pytest.raises(InvalidInput, match=message):
        score(labels, pred_probs)


def test_images_of_another_size_than_their_probabilities_are_refused() -> None:
    labels, pred_probs = segmentation_data(2, 3, 4, 6)
    with pytest.raises(InvalidInput, match=r"^pred_probs: pred_probs has 5 along 'x' but labels has 6"):
        segmentation.get_label_quality_scores(labels, pred_probs[..., :5])


# -- What only values tell: refused at the call in memory, and with the result where lazy -----------------------------


def put(array: Any, place: tuple[int, ...], value: Any) -> Any:
    array = array.copy()
    array[place] = value
    return array


def at(row: int, value: float) -> Callable[[Any], Any]:
    """Put a value at class 1 of a row, or of pixel (2, 3) of an image."""
    return lambda probs: put(probs, (row, 1, 2, 3)[: probs.ndim], value)


def labelled(row: int, value: int) -> Callable[[Any], Any]:
    return lambda labels: put(labels, (row, 2, 3)[: labels.ndim], value)


LABEL_VALUES = [(3, "label 3 is outside 0..2"), (-1, "label -1 is outside 0..2"), (1000, "label 1000 is outside 0..2")]
PROBABILITY_VALUES = [
    (np.nan, "probability is nan.*Mend the model's output"),
    (np.inf, "probability is inf.*Mend the model's output"),
    (-np.inf, "probability is -inf.*Mend the model's output"),
    (1 + 2e-6, r"probability 1.000002 is outside \[0, 1\]"),
    (-2e-6, r"probability -2e-06 is outside \[0, 1\]. Are these logits\? Apply softmax"),
    (7.5, r"probability 7.5 is outside \[0, 1\]. Are these logits\? Apply softmax"),
]
CHUNKS: dict[str, int | None] = {"eager": None, "one chunk": N, "one row per chunk": 1, "some rows per chunk": 3}


def computed(method: str, labels: Any, pred_probs: Any, chunk: int | None, **settings: Any) -> Any:
    """Scores, or the error, of arrays in memory, or cut into chunks of some rows."""
    score = METHODS[method][0]
    if chunk is None:
        return score(labels, pred_probs, **settings)
    lazy = score(da.from_array(labels, chunks=chunk), da.from_array(pred_probs, chunks=chunk), **settings)
    return dask.compute(lazy, scheduler="sync")[0]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("row", [0, N - 1])
@pytest.mark.parametrize(("value", "reason"), LABEL_VALUES)
@each_method
def test_labels_that_are_no_class_are_refused(method: str, value: int, reason: str, row: int, chunks: str) -> None:
    labels, pred_probs = METHODS[method][1]()
    place = f"example {row}" + (", y 2, x 3" if method == "segmentation" else "")
    with pytest.raises(InvalidInput, match=rf"^labels, {place}: {reason}.*pred_probs has 3 classes: map the labels"):
        computed(method, labelled(row, value)(labels), pred_probs, CHUNKS[chunks])


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("row", [0, N - 1])
@pytest.mark.parametrize(("value", "reason"), PROBABILITY_VALUES)
@each_method
def test_values_that_are_no_probability_are_refused(
    method: str, value: float, reason: str, row: int, chunks: str
) -> None:
    labels, pred_probs = METHODS[method][1]()
    place = f"example {row}, class 1" + (", y 2, x 3" if method == "segmentation" else "")
    with pytest.raises(InvalidInput, match=rf"^pred_probs, {place}: {reason}"):
        computed(method, labels, at(row, value)(pred_probs), CHUNKS[chunks])


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("row", [0, N - 1])
@pytest.mark.parametrize("factor", [1 + 1.1e-3, 1 - 1.1e-3, 0.0])
def test_rows_that_do_not_sum_to_one_are_refused(factor: float, row: int, chunks: str) -> None:
    labels, pred_probs = METHODS["multiclass"][1]()
    pred_probs[row] = np.array([0.25, 0.25, 0.5]) * factor
    message = rf"^pred_probs, example {row}: probabilities sum to {factor:.6g}, not 1\. Normalise each row"
    with pytest.raises(InvalidInput, match=message):
        computed("multiclass", labels, pred_probs, CHUNKS[chunks])


@pytest.mark.parametrize("n", [1, 2, 65])
def test_sums_at_the_very_edge_are_either_scored_or_refused_with_their_place(n: int) -> None:
    rng = np.random.default_rng(0)
    for k in rng.integers(9, 200, 60):
        _, pred_probs = multiclass_data(n, k, seed=k)
        pred_probs[-1] *= 1.001
        try:
            scores = multiclass.get_label_quality_scores(np.zeros(n, int), pred_probs)
        except InvalidInput as error:
            assert str(error).startswith(f"pred_probs, example {n - 1}: probabilities sum to 1.001")  # noqa: PT017
        else:
            np.testing.assert_array_equal(scores, pred_probs[:, 0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("row", [[0.2502, 0.2502, 0.5004], [0.2498, 0.2498, 0.4996], [1 + 9e-7, -9e-7, 0.0]])
def test_what_rounding_can_do_is_accepted(row: list[float], dtype: str) -> None:
    assert abs(sum(row) - 1) < 1e-3
    pred_probs = np.array([row] * 4, dtype)
    scores = multiclass.get_label_quality_scores(np.zeros(4, int), pred_probs)
    np.testing.assert_array_equal(scores, pred_probs[:, 0])
    images = np.broadcast_to(pred_probs[:, :, None, None], (4, 3, 2, 2))
    _, pixel_scores = segmentation.get_label_quality_scores(np.zeros((4, 2, 2), int), images)
    np.testing.assert_array_equal(pixel_scores, images[:, 0])


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("break_one", [labelled(9, 9), None], ids=["label", "probability"])
def test_what_is_wrong_is_found_before_thresholds_are_made_of_it(break_one: Any, chunks: str) -> None:
    labels, pred_probs = METHODS["multiclass"][1]()
    if break_one:
        labels = break_one(labels)
    else:
        pred_probs = at(9, np.nan)(pred_probs)
    with pytest.raises(InvalidInput, match=r"^(labels|pred_probs), example 9[:,]"):
        computed("multiclass", labels, pred_probs, CHUNKS[chunks], adjust_pred_probs=True)


def test_the_first_wrong_example_is_named_whatever_the_threads_do() -> None:
    labels, pred_probs = multiclass_data(500_000, 3)
    labels[[255_001, 255_003, 499_999]] = 9
    with pytest.raises(InvalidInput, match=r"^labels, example 255,001: "):
        multiclass.get_label_quality_scores(labels, pred_probs)
    labels, pred_probs = segmentation_data(N, 3, 4, 6)
    for row in (5, 8, 11):
        labels = labelled(row, 9)(labels)
    with pytest.raises(InvalidInput, match=r"^labels, example 5, y 2, x 3: "):
        segmentation.get_label_quality_scores(labels, pred_probs, batch_size=2, n_jobs=4)


def test_a_pixel_is_named_by_its_place_in_the_whole_image() -> None:
    labels, pred_probs = segmentation_data(3, 3, 9, 9)
    labels[2, 7, 8] = 5
    lazy, _ = segmentation.get_label_quality_scores(
        da.from_array(labels, chunks=(1, 4, 5)), da.from_array(pred_probs, chunks=(1, 3, 4, 5))
    )
    with pytest.raises(InvalidInput, match=r"^labels, example 2, y 7, x 8: label 5 is outside 0\.\.2 \(1 such pixels"):
        lazy.compute(scheduler="sync")


def test_large_positions_are_readable() -> None:
    labels, pred_probs = multiclass_data(500_000, 3)
    labels[431_234] = 3
    with pytest.raises(InvalidInput, match=r"^labels, example 431,234: "):
        multiclass.get_label_quality_scores(labels, pred_probs)


def test_labels_beyond_what_int64_holds_are_refused_as_they_are() -> None:
    _, pred_probs = multiclass_data(2, 3)
    with pytest.raises(InvalidInput, match="label 18446744073709551615 is outside"):
        multiclass.get_label_quality_scores(np.array([0, 2**64 - 1], np.uint64), pred_probs)


def test_only_quantised_probabilities_may_sum_to_less() -> None:
    labels, pred_probs = multiclass_data(5, 50)
    coarse = xr.DataArray(np.round(pred_probs * 255) / 255, dims=("row", "class"))
    with pytest.raises(InvalidInput, match=r"^pred_probs, example \d: probabilities sum to"):
        multiclass.get_label_quality_scores(labels, coarse)
    coarse.encoding["scale_factor"] = 1 / 255
    assert multiclass.get_label_quality_scores(labels, coarse).shape == (5,)


@each_method
def test_errors_of_values_survive_the_way_from_a_worker(method: str) -> None:
    labels, pred_probs = METHODS[method][1]()
    with pytest.raises(ValueError, match="is outside") as caught:
        computed(method, labelled(4, 9)(labels), pred_probs, 3)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is InvalidInput
    assert str(again) == str(caught.value)


# -- Arguments --------------------------------------------------------------------------------------------------------


@eager_or_lazy
@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "multiclass",
            {"method": "self_confidense"},
            r"^multiclass params: method: .*'self_confidence'.*\(got 'self_confidense'\)",
        ),
        (
            "multiclass",
            {"method": "confidence_weighted_entropy", "adjust_pred_probs": True},
            "adjust_pred_probs is not supported.*choose",
        ),
        ("multiclass", {"adjust_pred_probs": None}, "adjust_pred_probs: .*bool"),
        ("segmentation", {"method": "softmax"}, r"^segmentation params: method: .*'softmin'.*\(got 'softmax'\)"),
        (
            "segmentation",
            {"temprature": 0.1},
            "^segmentation params: unknown setting 'temprature' .Did you mean 'temperature'",
        ),
        ("segmentation", {"zzz": 0.1}, "unknown setting 'zzz' .Known are: .*temperature"),
        ("segmentation", {"temperature": 0}, r"temperature: .*greater than 0 \(got 0\)"),
        ("segmentation", {"temperature": -0.1}, r"temperature: .*greater than 0 \(got -0.1\)"),
        ("segmentation", {"temperature": np.inf}, r"temperature: .*finite number \(got inf\)"),
        ("segmentation", {"temperature": np.nan}, r"temperature: .*finite number \(got nan\)"),
        ("segmentation", {"temperature": None}, r"temperature: .*number \(got None\)"),
        ("segmentation", {"temperature": "hot"}, r"temperature: .*number.* \(got 'hot'\)"),
    ],
)
def test_impossible_settings_are_refused_by_name(method: str, settings: Any, message: str, lazy: bool) -> None:
    score, make = METHODS[method]
    labels, pred_probs = (da.from_array(array) if lazy else array for array in make())
    with pytest.raises(InvalidConfig, match=message):
        score(labels, pred_probs, **settings)


@eager_or_lazy
@pytest.mark.parametrize("setting", ["batch_size", "n_jobs"])
@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    ("method", "function"),
    [
        ("segmentation", segmentation.get_label_quality_scores),
        ("segmentation", segmentation.find_label_issues),
        ("multiclass", multiclass.find_label_issues),
    ],
)
def test_nothing_runs_in_batches_or_jobs_below_one(
    method: str, function: Callable[..., Any], setting: str, value: int, lazy: bool
) -> None:
    labels, pred_probs = (da.from_array(array) if lazy else array for array in METHODS[method][1]())
    with pytest.raises(InvalidInput, match=f"{setting} must be at least 1, got {value}"):
        function(labels, pred_probs, **{setting: value})


def test_settings_and_inputs_that_are_refused_are_value_errors() -> None:
    assert issubclass(InvalidInput, ValueError)
    assert issubclass(InvalidConfig, ValueError)

"""Which column of a table is what, told from its first rows."""

from __future__ import annotations

import pyarrow as pa
import pytest

from labelqa_dask.core.errors import InvalidConfig
from pipelines.imports.columns import Asked, choose_columns


def sample(**columns: str) -> pa.Table:
    return pa.table({name: pa.array(text.split()) for name, text in columns.items()})


THREE = {"p_cat": ".5 .1", "p_dog": ".25 .2", "p_car": ".25 .7"}


def test_named_classes_are_mapped_by_the_order_of_the_columns():
    columns = choose_columns(sample(id="7 9", text="a b", label="dog cat", **THREE), Asked())
    assert columns.probabilities == ("p_cat", "p_dog", "p_car")
    assert (columns.classes, columns.by_name) == (("cat", "dog", "car"), True)
    assert (columns.id, columns.integer_ids) == ("id", True)
    assert columns.class_ids() == {"cat": 0, "dog": 1, "car": 2}
    assert columns.kept == ("id", "label", "p_cat", "p_dog", "p_car")


@pytest.mark.parametrize(
    ("names", "labels", "classes", "by_name"),
    [
        (("p0", "p1", "p2"), "0 2", ("0", "1", "2"), False),
        (("p10", "p11", "p12"), "10 12", ("10", "11", "12"), True),
        (("p_1", "p_2", "p_3"), "1 3", ("1", "2", "3"), True),
        (("p_1", "p_2", "p_3"), "0 2", ("0", "1", "2"), False),
        (("p_a", "p_b", "p_c"), "0 2", ("0", "1", "2"), False),
        (("p_a", "p_b", "p_c"), "0.0 2.0", ("0", "1", "2"), False),
        (("cat", "car", "cow"), "cow cat", ("cat", "car", "cow"), True),
        (("a_prob", "b_prob", "c_prob"), "c a", ("a", "b", "c"), True),
        (("prob.a b", "prob.b", "prob.c"), "c b", ("a b", "b", "c"), True),
    ],
)
def test_labels_are_names_of_columns_or_numbers(names, labels, classes, by_name):
    table = sample(target=labels, **dict(zip(names, (".5 .1", ".25 .2", ".25 .7"), strict=True)))
    columns = choose_columns(table, Asked())
    assert (columns.label, columns.id) == ("target", None)
    assert columns.probabilities == names
    assert (columns.classes, columns.by_name) == (classes, by_name)


def test_other_numbers_are_not_taken_for_probabilities():
    columns = choose_columns(sample(label="0 1", weight=".3 .9", p_a=".5 .1", p_b=".5 .9", age="3 9"), Asked())
    assert columns.probabilities == ("p_a", "p_b")


def test_what_is_asked_for_counts():
    table = sample(label="0 1", given="b a", key="x y", **THREE, q_a=".5 1", q_b=".5 0")
    for asked in (("q_",), ("q_*",), ("q_a", "q_b")):
        columns = choose_columns(table, Asked("given", asked, id="key"))
        assert (columns.label, columns.probabilities, columns.id) == ("given", ("q_a", "q_b"), "key")
        assert (columns.classes, columns.integer_ids) == (("a", "b"), False)
    assert choose_columns(table, Asked("given", ("q_b", "q_a"))).classes == ("b", "a")


def test_identifiers_that_only_look_like_numbers_stay_text():
    assert not choose_columns(sample(id="007 12", label="0 1", **THREE), Asked()).integer_ids


def test_a_prediction_column_is_regression():
    columns = choose_columns(sample(y="1.5 2", y_pred="1 2.5", id="a b"), Asked())
    assert (columns.label, columns.prediction, columns.probabilities, columns.classes) == ("y", "y_pred", (), ())
    assert choose_columns(sample(label="1 2", p0=".5 .5", p1=".5 .5"), Asked(prediction="p1")).prediction == "p1"


@pytest.mark.parametrize(
    ("table", "asked", "message"),
    [
        (sample(a="1 2", **THREE), Asked(), "none of a, p_cat, p_dog, p_car is named as a label is. Give --label"),
        (sample(label="0 1", **THREE), Asked(label="labl"), "there is no column 'labl'. Did you mean 'label'"),
        (
            sample(label="0 1", **THREE),
            Asked(probabilities=("p_cat", "p_dg")),
            "no column 'p_dg'. Did you mean 'p_",
        ),
        (sample(label="0 1", **THREE), Asked(probabilities=("q",)), "0 columns begin with 'q'"),
        (sample(label="0 1", **THREE), Asked(probabilities=("p_cat",)), "two columns or more"),
        (sample(label="0 1", p_a=".5 .5", p_b=".1 .2"), Asked(), "hold probabilities that sum to 1"),
        (sample(label="bird cat", **THREE), Asked(), "labels such as bird are neither the names of the probability"),
        (sample(label="3 1", **THREE), Asked(), r"nor numbers 0\.\.2"),
    ],
)
def test_what_cannot_be_told_is_asked_for(table, asked, message):
    with pytest.raises(InvalidConfig, match=message):
        choose_columns(table, asked)

"""Label quality of multilabel data: any number of classes for each example, and one probability per class.

Each class is a binary problem of its own, with the probabilities `1 - p` and `p`. With `s` the one of the given label,
1 where the class applies and 0 where it does not:

- self-confidence: `s`
- normalized margin: `(s - (1 - s) + 1) / 2`, which is `s` again
- confidence-weighted entropy: `ln(q + 1) / max(q, 1e-6)` with `q = (H(p) / ln 2) / max(s, 1e-6)`
- adjusted for class imbalance: thresholds `t` of each class are the mean of `1 - p` over the examples without it and of
  `p` over those with it; `(1 - p, p) - t + max(t)`, renormalised, takes the place of `(1 - p, p)`.

An example's score aggregates those of its classes, in descending order, by an exponential moving average

    e_1 = s_1,  e_t = alpha * s_t + (1 - alpha) * e_(t-1)

or by the soft minimum `sum(s * softmax((1 - s) / temperature))`, or by any function of the rows.

A class's issues are the examples off the diagonal of its confident joint: the other side is the more probable one,
and its probability is at least that side's threshold, less 1e-6.

Source: Thyagarajan, Snorrason, Northcutt and Mueller, "Identifying Incorrect Annotations in Multi-Label Classification
Data", ICLR Workshop on Trustworthy ML (2023). The numbers agree with cleanlab 2.9.

Axes: n = examples, k = classes.
"""

from labelqa_dask.multilabel.scorer import (
    Aggregator,
    ClassLabelScorer,
    MultilabelScorer,
    count_issues_per_class,
    exponential_moving_average,
    get_cross_validated_multilabel_pred_probs,
    get_label_quality_scores,
    get_label_quality_scores_per_class,
    multilabel_py,
    softmin,
)
from labelqa_dask.multilabel.task import Multilabel, MultilabelParams

__all__ = [
    "TASK",
    "Aggregator",
    "ClassLabelScorer",
    "Multilabel",
    "MultilabelParams",
    "MultilabelScorer",
    "count_issues_per_class",
    "exponential_moving_average",
    "get_cross_validated_multilabel_pred_probs",
    "get_label_quality_scores",
    "get_label_quality_scores_per_class",
    "multilabel_py",
    "softmin",
]

TASK = Multilabel()

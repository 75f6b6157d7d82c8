"""Label quality of multiclass data: one label and one probability per class for each example.

A label is suspicious where the model, out of sample, gives it little probability.

Formulas, with `p` the row of predicted probabilities, `l` the given label and `s = p[l]`:

- self-confidence: `s`
- normalized margin: `(s - max_{j != l} p[j] + 1) / 2`
- confidence-weighted entropy: `ln(q + 1) / max(q, 1e-6)` with `q = (H(p) / ln k) / max(s, 1e-6)`
- adjusted for class imbalance: `p[j]` becomes `p[j] - t[j] + max(t)`, renormalised, where the confident threshold
  `t[j]` is the mean of `p[j]` over the examples labelled `j`.

Label issues are found by confident learning, see `labelqa_dask.core.confident`.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021),
and Kuan and Mueller, "Model-agnostic label quality scoring to detect real-world label errors", ICML DataPerf (2022).
The numbers agree with cleanlab 2.9.

Axes: n = examples, k = classes.
"""

from labelqa_dask.multiclass.functions import (
    find_label_issues,
    find_top_issues,
    get_label_quality_ensemble_scores,
    get_label_quality_scores,
    order_label_issues,
)
from labelqa_dask.multiclass.task import TASK

__all__ = [
    "TASK",
    "find_label_issues",
    "find_top_issues",
    "get_label_quality_ensemble_scores",
    "get_label_quality_scores",
    "order_label_issues",
]

"""Label quality of semantic segmentation: one label per pixel, one probability per class and pixel.

A pixel's score is the probability that the model, out of sample, gives its label: `s = p[label]`. The score of an image
is one of

- softmin: the soft minimum of its pixels' scores, `sum(s * softmax((1 - s) / temperature))`, which for a small
  temperature follows the worst pixels, and for a large one the mean;
- num_pixel_issues: 1 minus the share of its pixels that are label issues by confident learning over all pixels of the
  data set, see `labelqa_dask.core.confident`.

Pixels labelled with the ignore index are never scored or counted.

Source: Lad and Mueller, "Estimating label quality and errors in semantic segmentation data via any model", ICML
DataPerf (2023). The numbers agree with cleanlab 2.9.

Axes: n = images, k = classes, h, w = height and width of an image.
"""

from labelqa_dask.segmentation.functions import (
    common_label_issues,
    filter_by_class,
    find_label_issues,
    get_label_quality_scores,
    issues_from_scores,
)
from labelqa_dask.segmentation.task import TASK

__all__ = [
    "TASK",
    "common_label_issues",
    "filter_by_class",
    "find_label_issues",
    "get_label_quality_scores",
    "issues_from_scores",
]

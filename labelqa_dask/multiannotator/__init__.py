"""Label quality of data that several annotators labelled: consensus labels, and trust in them and in each annotator.

CROWDLAB takes a classifier as one more voice. With `J_i` the annotators of example i, `a_i` their number, `p_i` its row
of predicted probabilities, `P` the mean share of annotators who give the consensus label and `Q = (1 - P) / (k - 1)`,
the posterior of class c is the weighted mean

    (w_M p_ic + sum over j in J_i of w_j (P if j gave c else Q)) / (w_M + sum over j in J_i of w_j)

- weight of an annotator: `w_j = max(1e-6, 1 - (1 - A_j) / E)`, with `A_j` its agreement with others on the same
  examples and `E = max(1e-6, share of consensus labels that are not the most common one)`
- weight of the model: `w_M = max(1e-6, 1 - E_M / E) sqrt(mean of a_i)`, with `E_M` its share of errors
- consensus: the class of highest posterior, the weights being those that follow from the majority vote; quality: its
  multiclass score under the posterior, the weights now following from the consensus itself
- quality of an annotator: `u` times the mean score of its labels, and `1 - u` times its agreement with the consensus,
  with `u = w_M / (w_M + sum of w_j times mean of a_i / m)`

Shares and means are over examples with more than one annotation, where they compare annotators. Votes given equally
often go to the class of higher probability, then to the rarer one, then to the one that better annotators gave; then
one is drawn by a hash of the seed, the example and the class, so that no cut of the data changes it.

The walks over the data, each of which needs the result of those before it:

1. `coarse_temperature` and `temperature`, only to calibrate: cross-entropies at 9 temperatures, then around the best
2. `votes`: all that follows from annotations alone: how common classes are, how annotators agree with each other
   and with majorities that are not tied
3. `majority_vote`: ties need 2; gives the weights that a consensus starts from
4. `best_quality`: the consensus needs the weights of 3; gives those that score it
5. `thresholds`, only to adjust for class imbalance: means of the posterior of 4
6. `annotators`: sums by annotator and class of the scores that 4 (or 5) allow; in memory one walk with the scoring

Nothing is kept per example between them: majority and posterior are made anew from a block, which costs less than to
store and read them. Memory grows with the annotations of a block, with annotators times the classes that each has
given, and with a block's probabilities; never with examples times annotators.

Source: Goh, Tkachenko and Mueller, "CROWDLAB: Supervised learning to infer consensus labels and quality scores for
data with multiple annotators", NeurIPS HITL workshop (2022). The numbers agree with cleanlab 2.9, with one exception:
where labels are floats, as they are with NaN among them, that version counts the labels of an example from class 0 on,
whatever classes they are, and so calibrates and finds posteriors of the agreement method by other shares than the
annotators gave (with integers it does not). Here shares are always those that were given.

Axes: n = examples, m = annotators, A = annotations, p = models, k = classes.
"""

from labelqa_dask.multiannotator.active_learning import (
    get_active_learning_scores,
    get_active_learning_scores_ensemble,
)
from labelqa_dask.multiannotator.crowdlab import (
    convert_long_to_wide_dataset,
    get_label_quality_multiannotator,
    get_label_quality_multiannotator_ensemble,
    get_majority_vote_label,
)
from labelqa_dask.multiannotator.task import TASK, MultiannotatorParams

__all__ = [
    "TASK",
    "MultiannotatorParams",
    "convert_long_to_wide_dataset",
    "get_active_learning_scores",
    "get_active_learning_scores_ensemble",
    "get_label_quality_multiannotator",
    "get_label_quality_multiannotator_ensemble",
    "get_majority_vote_label",
]

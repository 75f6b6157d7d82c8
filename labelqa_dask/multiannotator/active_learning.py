"""ActiveLab: which examples gain most from one more label.

The score of a labelled example is the mean of the quality of its consensus, by the weights of its annotators and of
the model, and of 1/k, by the mean weight of an annotator: an example that many good annotators have labelled changes
least by another label. One without labels has the model's probability of its most probable class in place of quality.

Source: Goh and Mueller, "ActiveLab: Active Learning with Re-Labeling by Multiple Annotators", ICLR workshop (2023).
The numbers agree with cleanlab 2.9.

Axes: n = examples, p = models, k = classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.task import Block, Stats
from labelqa_dask.multiannotator import activelab, lazy
from labelqa_dask.multiannotator.activelab import Learned
from labelqa_dask.multiannotator.crowdlab import read_crowd, run
from labelqa_dask.multiannotator.forms import NAME, Crowd, models_first
from labelqa_dask.multiannotator.states import Votes

Floats = NDArray[np.float64]


def get_active_learning_scores(
    labels_multiannotator: Any = None,
    pred_probs: Any = None,
    pred_probs_unlabeled: Any = None,
    *,
    columns: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Score how sure the class of each example is by now; the lowest are those to be labelled next.

    Parameters
    ----------
    labels_multiannotator : (n, m) array or DataFrame, or long DataFrame, optional
        As of `get_label_quality_multiannotator`; one annotator is enough.
    pred_probs : (n, k) float array, optional
        Probabilities of the labelled examples.
    pred_probs_unlabeled : (u, k) float array, optional
        Probabilities of examples without labels.
    columns : (str, str, str), optional
        The columns of a long DataFrame: example, annotator, label.
    seed : int
        Of draws between labels that nothing else tells apart.

    Returns
    -------
    scores : (n,) float64 array
        Of labelled examples, empty where there are none; in [0, 1].
    scores_unlabeled : (u,) float64 array
        Comparable with those. If an input is lazy, both are Dask arrays.

    Raises
    ------
    InvalidInput

    Examples
    --------
    >>> labels = np.array([[0, 0, 0], [1, 0, 1]])
    >>> pred_probs, of_others = np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0.5, 0.5]])
    >>> scores, of_others = get_active_learning_scores(labels, pred_probs, of_others)
    >>> np.argsort(np.concatenate([scores, of_others])).tolist()
    [2, 1, 0]
    """
    return _scores(labels_multiannotator, pred_probs, pred_probs_unlabeled, columns, seed, ensemble=False)


def get_active_learning_scores_ensemble(
    labels_multiannotator: Any = None,
    pred_probs: Any = None,
    pred_probs_unlabeled: Any = None,
    *,
    columns: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Any, Any]:
    """As `get_active_learning_scores`, with the predictions of several models.

    Parameters
    ----------
    labels_multiannotator : (n, m) array or DataFrame, or long DataFrame, optional
    pred_probs : (p, n, k) float array, optional
    pred_probs_unlabeled : (p, u, k) float array, optional
    columns, seed
        As of `get_active_learning_scores`.

    Returns
    -------
    scores : (n,) float64 array
    scores_unlabeled : (u,) float64 array

    Raises
    ------
    InvalidInput
    """
    return _scores(labels_multiannotator, pred_probs, pred_probs_unlabeled, columns, seed, ensemble=True)


def _scores(
    labels: Any, pred_probs: Any, unlabeled: Any, columns: Sequence[str] | None, seed: int, *, ensemble: bool
) -> tuple[Any, Any]:
    if pred_probs is None and unlabeled is None:
        raise InvalidInput("pred_probs and pred_probs_unlabeled are both missing", mend="Give one of them, or both.")
    if pred_probs is not None and labels is None:
        raise InvalidInput("is missing, but pred_probs is given", NAME, "Give the labels of these examples.")
    labels, pred_probs, unlabeled = map(lazy.plain, (labels, pred_probs, unlabeled))
    if any(map(lazy.is_lazy, (labels, pred_probs, unlabeled))):
        return lazy.active_learning_scores(labels, pred_probs, unlabeled, columns, seed, ensemble=ensemble)
    others = None
    if unlabeled is not None:
        others = models_first(np.asarray(unlabeled), ensemble, "pred_probs_unlabeled")
    if pred_probs is None:
        assert others is not None
        return np.empty(0), _of_unlabeled(others, activelab.nothing_learned(others.shape[1]), seed)
    crowd, models = read_crowd(labels, pred_probs, columns, ensemble=ensemble)
    if others is not None:
        activelab.check_same_models(others.shape, models.shape)
    scores, learned = _of_labeled(crowd, models, seed)
    return scores, np.empty(0) if others is None else _of_unlabeled(others, learned, seed)


def _of_labeled(crowd: Crowd, models: Array, seed: int) -> tuple[Floats, Learned]:
    arrays: dict[str, Any] = {"annotations": crowd.annotations, "pred_probs": models}
    block, params = Block(arrays), activelab.params(seed)
    stats: Stats = {"votes": Votes.of(crowd.annotations, models.shape[2])}
    if stats["votes"].overlapping:
        found = run(crowd, models, params, verbose=False)
        stats, quality = found.stats, found.scores["consensus_quality_score"]
    else:
        quality = activelab.quality(block, params, stats)
    learned = activelab.learn(stats, models.shape[1])
    return activelab.of_labeled(block, quality, learned), learned


def _of_unlabeled(models: Array, learned: Learned, seed: int) -> Floats:
    return activelab.of_unlabeled(models, 0, learned, activelab.votes_of_models(models, 0, learned), seed)

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
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.task import Block
from labelqa_dask.multiannotator.crowdlab import get_majority_vote_label, read_crowd, read_models, run
from labelqa_dask.multiannotator.forms import NAME, Crowd
from labelqa_dask.multiannotator.task import TASK, calibrated, weights_of

Floats = NDArray[np.float64]


def get_active_learning_scores(
    labels_multiannotator: Any = None,
    pred_probs: Any = None,
    pred_probs_unlabeled: Any = None,
    *,
    columns: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Score how sure the class of each example is by now; the lowest are those to be labelled next.

    Parameters
    ----------
    labels_multiannotator : (n, m) array or DataFrame, or long pandas DataFrame, optional
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
        Comparable with those.

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
) -> tuple[Floats, Floats]:
    """As `get_active_learning_scores`, with the predictions of several models.

    Parameters
    ----------
    labels_multiannotator : (n, m) array or DataFrame, or long pandas DataFrame, optional
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


@dataclass(frozen=True)
class _Learned:
    """What labelled examples tell of models and annotators."""

    temperature: Floats
    model_weight: Floats
    mean_annotator_weight: float


def _scores(
    labels: Any, pred_probs: Any, unlabeled: Any, columns: Sequence[str] | None, seed: int, *, ensemble: bool
) -> tuple[Floats, Floats]:
    if pred_probs is None and unlabeled is None:
        raise InvalidInput("pred_probs and pred_probs_unlabeled are both missing", mend="Give one of them, or both.")
    others = None if unlabeled is None else read_models(unlabeled, ensemble=ensemble, name="pred_probs_unlabeled")
    if pred_probs is None:
        assert others is not None
        models = others.shape[1]
        return np.empty(0), _of_unlabeled(others, _Learned(np.ones(models), np.ones(models), 1.0), seed, ensemble)
    if labels is None:
        raise InvalidInput("is missing, but pred_probs is given", NAME, "Give the labels of these examples.")
    crowd, models_ = read_crowd(labels, pred_probs, columns, ensemble=ensemble)
    if others is not None and others.shape[1:] != models_.shape[1:]:
        raise InvalidInput(
            f"has {others.shape[2]} classes and {others.shape[1]} models, but pred_probs has {models_.shape[2]} and "
            f"{models_.shape[1]}",
            "pred_probs_unlabeled",
            "Both must be of the same models.",
        )
    scores, learned = _of_labeled(crowd, models_, seed)
    return scores, np.empty(0) if others is None else _of_unlabeled(others, learned, seed, ensemble)


def _of_labeled(crowd: Crowd, models: Array, seed: int) -> tuple[Floats, _Learned]:
    annotations = crowd.annotations
    k = models.shape[2]
    if (np.diff(annotations.starts) == 1).all():
        learned = _Learned(np.ones(models.shape[1]), np.ones(models.shape[1]), 1.0)
        average = calibrated(Block({"pred_probs": models}), np.empty(0)).mean(axis=1)
        quality = average[np.arange(len(average)), annotations.label]
        weight = np.ones(len(crowd.annotators))
    else:
        params = TASK.params(
            calibrate_probs=True, return_detailed_quality=False, return_annotator_stats=False, seed=seed
        )
        found = run(crowd, models, params, verbose=False)
        weights = weights_of("best_quality", found.stats)
        quality, weight = found.scores["consensus_quality_score"], weights.annotator
        learned = _Learned(found.stats["temperature"], weights.model, float(weight.mean()))
    voices = np.add.reduceat(weight[annotations.annotator], annotations.starts[:-1]) + learned.model_weight.sum()
    return (quality * voices + learned.mean_annotator_weight / k) / (voices + learned.mean_annotator_weight), learned


def _of_unlabeled(models: Array, learned: _Learned, seed: int, ensemble: bool) -> Floats:
    n, _, k = models.shape
    probabilities = calibrated(Block({"pred_probs": models}), learned.temperature)
    label = probabilities[:, 0].argmax(axis=1)
    if ensemble:
        votes = probabilities.argmax(axis=2)
        label = get_majority_vote_label(votes, probabilities.mean(axis=1), verbose=False, seed=seed)
    total = learned.model_weight.sum() + learned.mean_annotator_weight
    quality = probabilities[np.arange(n), :, label] @ learned.model_weight
    scores: Floats = (quality + learned.mean_annotator_weight / k) / total
    return scores

"""ActiveLab, block by block: what labelled examples tell of models and annotators, and the scores that follow.

Axes: n = examples, m = annotators, p = models, k = classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.ragged import Annotations
from labelqa_dask.core.task import Block, Stats
from labelqa_dask.multiannotator.states import Votes
from labelqa_dask.multiannotator.task import TASK, MultiannotatorParams, calibrated, weights_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Learned:
    """What labelled examples tell.

    Attributes
    ----------
    temperature, model_weight : (p,) of each model
    annotator_weight : (m,)
    mean_weight : of an annotator
    """

    temperature: Floats
    model_weight: Floats
    annotator_weight: Floats
    mean_weight: float


def params(seed: int) -> MultiannotatorParams:
    """How the consensus is found that is scored."""
    return TASK.params(calibrate_probs=True, return_detailed_quality=False, return_annotator_stats=False, seed=seed)


def nothing_learned(models: int, annotators: int = 0) -> Learned:
    """Where nobody can be compared, every voice counts the same, and predictions are taken as they are."""
    return Learned(np.ones(models), np.ones(models), np.ones(annotators), 1.0)


def learn(stats: Stats, models: int) -> Learned:
    """What the results of the passes tell."""
    votes: Votes = stats["votes"]
    if not votes.overlapping:
        return nothing_learned(models, len(votes.given))
    weights = weights_of("best_quality", stats)
    return Learned(stats["temperature"], weights.model, weights.annotator, float(weights.annotator.mean()))


def quality(block: Block, params: MultiannotatorParams, stats: Stats) -> Floats:
    """Quality of each consensus (n,); where nobody can be compared, the mean probability of the label."""
    if stats["votes"].overlapping:
        of_consensus: Floats = TASK.score(block, params, stats)["consensus_quality_score"]
        return of_consensus
    average = calibrated(block, np.empty(0)).mean(axis=1)
    of_label: Floats = average[np.arange(len(average)), _annotations(block).label]
    return of_label


def of_labeled(block: Block, quality: Floats, learned: Learned) -> Floats:
    """Scores of labelled examples (n,), each of which has an annotation."""
    annotations, k = _annotations(block), block["pred_probs"].shape[-1]
    of_annotators = np.add.reduceat(learned.annotator_weight[annotations.annotator], annotations.starts[:-1])
    voices = of_annotators + learned.model_weight.sum()
    scores: Floats = (quality * voices + learned.mean_weight / k) / (voices + learned.mean_weight)
    return scores


def votes_of_models(models: Array, start: int, learned: Learned) -> Votes:
    """State of the classes that models (n, p, k) hold most probable, taken as labels that they give."""
    probabilities = calibrated(_unlabeled(models, start), learned.temperature)
    return Votes.of(_as_annotations(probabilities), models.shape[2])


def of_unlabeled(models: Array, start: int, learned: Learned, votes: Votes, seed: int) -> Floats:
    """Scores of examples without labels (n,), the first of which has a number; `votes` are those of all of them."""
    n, _, k = models.shape
    probabilities = calibrated(_unlabeled(models, start), learned.temperature)
    label, _ = votes.majority(_as_annotations(probabilities), probabilities.mean(axis=1), seed, start)
    total = learned.model_weight.sum() + learned.mean_weight
    quality = probabilities[np.arange(n), :, label] @ learned.model_weight
    scores: Floats = (quality + learned.mean_weight / k) / total
    return scores


def check_same_models(others: tuple[int, ...], models: tuple[int, ...]) -> None:
    """Refuse predictions (u, p, k) that are of other models than (n, p, k)."""
    if others[1:] != models[1:]:
        raise InvalidInput(
            f"has {others[2]} classes and {others[1]} models, but pred_probs has {models[2]} and {models[1]}",
            "pred_probs_unlabeled",
            "Both must be of the same models.",
        )


def _unlabeled(models: Array, start: int) -> Block:
    return Block({"pred_probs": models}, {"example": start})


def _annotations(block: Block) -> Annotations:
    annotations = block["annotations"]
    assert isinstance(annotations, Annotations)
    return annotations


def _as_annotations(probabilities: Floats) -> Annotations:
    n, p, _ = probabilities.shape
    models, most_probable = np.arange(p, dtype=np.int32), probabilities.argmax(axis=2).astype(np.int32)
    return Annotations(np.arange(n + 1) * p, np.tile(models, n), most_probable.ravel(), models)

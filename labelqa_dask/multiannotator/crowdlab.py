"""The public functions that find consensus labels and score them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labelqa_dask.core import blocks
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.layout import ArrayInfo, check_layout
from labelqa_dask.core.task import merge_states
from labelqa_dask.multiannotator import forms, lazy
from labelqa_dask.multiannotator.forms import LONG_COLUMNS, Crowd
from labelqa_dask.multiannotator.states import ByClass, Consensus, Votes
from labelqa_dask.multiannotator.task import (
    TASK,
    ConsensusMethod,
    MultiannotatorParams,
    QualityMethod,
    annotator_table,
    by_class,
    weights_of,
)


def get_label_quality_multiannotator(
    labels_multiannotator: Any,
    pred_probs: Any,
    *,
    consensus_method: ConsensusMethod | Sequence[ConsensusMethod] = "best_quality",
    quality_method: QualityMethod = "crowdlab",
    calibrate_probs: bool = False,
    return_detailed_quality: bool = True,
    return_annotator_stats: bool = True,
    return_weights: bool = False,
    verbose: bool = True,
    label_quality_score_kwargs: Mapping[str, Any] = {},
    columns: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Find the consensus of several annotators, and how far it, each label and each annotator can be trusted.

    Parameters
    ----------
    labels_multiannotator : (n, m) array or DataFrame, or long DataFrame
        Wide: class numbers 0..k-1, NaN where annotator j did not label example i; NumPy, pandas (the columns are the
        annotators' ids) or Dask array. Long: pandas or Dask DataFrame with a row per annotation, in any order.
    pred_probs : (n, k) float array or DataFrame
        Predicted probabilities, out of sample; each row sums to 1. For the long form either a DataFrame whose index
        are the examples, or an array whose rows are the examples in ascending order (for Dask: an array whose row
        numbers are the examples).
    consensus_method : {"best_quality", "majority_vote"} or list of them
        The class of highest posterior, or the label given most often. Further ones in a list add columns
        ``consensus_label_SUFFIX``, ``consensus_quality_score_SUFFIX`` and ``annotator_agreement_SUFFIX``.
    quality_method : {"crowdlab", "agreement"}
        Quality by the posterior of model and annotators, or by the share of annotators who agree.
    calibrate_probs : bool
        Scale the probabilities by the temperature that fits the shares of labels best.
    return_detailed_quality, return_annotator_stats, return_weights : bool
        Which of the results below are made. Weights belong to the last consensus method of a list.
    verbose : bool
        Warn of annotators who cannot be compared with others, of classes that are no example's consensus, and of
        votes that had to be drawn.
    label_quality_score_kwargs : mapping
        ``method`` and ``adjust_pred_probs``, as of `labelqa_dask.multiclass.get_label_quality_scores`.
    columns : (str, str, str), optional
        The columns of a long DataFrame: example, annotator, label. A pandas DataFrame without them is wide; a Dask
        DataFrame is long, with columns task, annotator and label.
    seed : int
        Of the draws between labels that nothing else tells apart; they depend on it and on the row of the example.

    Returns
    -------
    dict
        ``label_quality``: DataFrame (n rows) with consensus_label, consensus_quality_score, annotator_agreement,
        num_annotations. ``detailed_label_quality``: DataFrame (n, m) with columns quality_annotator_ID, or, for the
        long form, its columns and ``quality``. ``annotator_stats``: DataFrame (m rows) with annotator_quality,
        agreement_with_consensus, worst_class, num_examples_labeled, worst annotator first. ``model_weight``: float.
        ``annotator_weight``: (m,). All scores lie in [0, 1], lower = more likely wrong.

        If an input is lazy, everything is: Dask DataFrames (long ones in order of examples), and Dask arrays for the
        weights.

    Raises
    ------
    InvalidInput
        A ValueError that names the place and the reason: an example without a label, an annotator without one, all
        examples with one label, a label that is no class, invalid probabilities. For Dask input, what concerns values
        is raised when a result is computed.

    Examples
    --------
    >>> import numpy as np
    >>> nan = np.nan
    >>> labels = np.array([[0, 0, nan], [1, nan, 1], [0, 1, 1], [nan, 0, 0]])
    >>> pred_probs = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.8, 0.2]])
    >>> found = get_label_quality_multiannotator(labels, pred_probs)
    >>> found["label_quality"]["consensus_label"].tolist()
    [0, 1, 1, 0]
    >>> int(found["annotator_stats"].index[0])
    0
    """
    params = TASK.params(
        consensus_method=consensus_method if isinstance(consensus_method, str) else tuple(consensus_method),
        quality_method=quality_method,
        calibrate_probs=calibrate_probs,
        return_detailed_quality=return_detailed_quality,
        return_annotator_stats=return_annotator_stats,
        label_quality_score_kwargs=dict(label_quality_score_kwargs),
        seed=seed,
    )
    if return_weights and quality_method != "crowdlab":
        raise InvalidInput(
            "weights belong to the crowdlab quality method only",
            "return_weights",
            "Set return_weights=False or quality_method='crowdlab'.",
        )
    labels_multiannotator, pred_probs = lazy.plain(labels_multiannotator), lazy.plain(pred_probs)
    if lazy.is_lazy(labels_multiannotator) or lazy.is_lazy(pred_probs):
        return lazy.label_quality(labels_multiannotator, pred_probs, params, columns, return_weights=return_weights)
    crowd, models = read_crowd(labels_multiannotator, pred_probs, columns)
    found = run(crowd, models, params, verbose=verbose)
    result = frames(labels_multiannotator, crowd, found, params, columns)
    if return_weights:
        weights = weights_of(params.consensus_method[-1], found.stats)
        result |= {"model_weight": float(weights.model[0]), "annotator_weight": weights.annotator}
    return result


def get_label_quality_multiannotator_ensemble(
    labels_multiannotator: Any,
    pred_probs: Any,
    *,
    calibrate_probs: bool = False,
    return_detailed_quality: bool = True,
    return_annotator_stats: bool = True,
    return_weights: bool = False,
    verbose: bool = True,
    label_quality_score_kwargs: Mapping[str, Any] = {},
    columns: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """As `get_label_quality_multiannotator`, with the predictions of several models, each with its own weight.

    Parameters
    ----------
    labels_multiannotator : (n, m) array or DataFrame, or long DataFrame
        As of `get_label_quality_multiannotator`.
    pred_probs : (p, n, k) float array
        Of p models; NumPy or Dask.
    calibrate_probs, return_detailed_quality, return_annotator_stats, return_weights, verbose,
    label_quality_score_kwargs, columns, seed
        As of `get_label_quality_multiannotator`. Each model is calibrated by a temperature of its own.

    Returns
    -------
    dict
        The same, lazy if an input is; ``model_weight`` is a (p,) array.

    Raises
    ------
    InvalidInput
    """
    params = TASK.params(
        calibrate_probs=calibrate_probs,
        return_detailed_quality=return_detailed_quality,
        return_annotator_stats=return_annotator_stats,
        label_quality_score_kwargs=dict(label_quality_score_kwargs),
        seed=seed,
    )
    labels_multiannotator, pred_probs = lazy.plain(labels_multiannotator), lazy.plain(pred_probs)
    if lazy.is_lazy(labels_multiannotator) or lazy.is_lazy(pred_probs):
        return lazy.label_quality(
            labels_multiannotator, pred_probs, params, columns, return_weights=return_weights, ensemble=True
        )
    crowd, models = read_crowd(labels_multiannotator, pred_probs, columns, ensemble=True)
    found = run(crowd, models, params, verbose=verbose)
    result = frames(labels_multiannotator, crowd, found, params, columns)
    if return_weights:
        weights = weights_of(params.consensus_method[-1], found.stats)
        result |= {"model_weight": weights.model, "annotator_weight": weights.annotator}
    return result


def get_majority_vote_label(
    labels_multiannotator: Any,
    pred_probs: Any = None,
    verbose: bool = True,
    *,
    columns: Sequence[str] | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """The label that most annotators gave each example.

    Of labels given equally often, the one of highest probability is taken; then the one given least often to all
    examples; then the one given by annotators who agree most with undisputed majorities; then one is drawn.

    Parameters
    ----------
    labels_multiannotator : (n, m) array or DataFrame, or long pandas DataFrame
    pred_probs : (n, k) float array, optional
    verbose : bool
        Refuse a crowd in which nobody can be compared, and warn of classes lost and votes drawn.
    columns : (str, str, str), optional
        The columns of a long DataFrame: example, annotator, label.
    seed : int
        Of the draws.

    Returns
    -------
    (n,) int array

    Raises
    ------
    InvalidInput

    Examples
    --------
    >>> import numpy as np
    >>> get_majority_vote_label(np.array([[0, 1, 1], [0, 0, 1]]))
    array([1, 0])
    """
    if pred_probs is not None:
        crowd, models = read_crowd(labels_multiannotator, pred_probs, columns)
        probabilities, k = np.ascontiguousarray(models[:, 0]), models.shape[2]
    else:
        crowd = forms.read(labels_multiannotator, columns)
        k = int(crowd.annotations.label.max(initial=-1)) + 1
        probabilities = np.empty((0, k))
        forms.check_labels(crowd, k)
    votes = Votes.of(crowd.annotations, k)
    if verbose:
        forms.check_crowd(votes.given, votes.sizes, crowd.annotators)
    labels, drawn = votes.majority(crowd.annotations, probabilities, seed)
    if verbose:
        _warn_of_draws(drawn)
        _warn_of_lost_classes(votes, np.unique(labels), "majority_vote")
    return labels


def convert_long_to_wide_dataset(labels_multiannotator_long: pd.DataFrame) -> pd.DataFrame:
    """The wide form of annotations: a row per example, a column per annotator, NaN where there is no label.

    Parameters
    ----------
    labels_multiannotator_long : DataFrame
        With columns ``task``, ``annotator`` and ``label``.

    Returns
    -------
    DataFrame (n, m)
        Examples and annotators in ascending order. It takes n·m values: the functions of this module take the long
        form as it is, in memory that grows with the annotations only.

    Raises
    ------
    InvalidInput
        Where an annotator labelled an example twice.

    Examples
    --------
    >>> rows = pd.DataFrame({"task": [1, 1, 2], "annotator": ["a", "b", "a"], "label": [0, 1, 1]})
    >>> convert_long_to_wide_dataset(rows)
         a    b
    1  0.0  1.0
    2  1.0  NaN
    """
    return forms.to_wide(labels_multiannotator_long, LONG_COLUMNS)


# -- In memory -----------------------------------------------------------------------------------------------------


# Enough examples to be worth a thread; few enough that what is made of a block stays small.
_FEWEST_ROWS = 1 << 12
_MOST_ROWS = 1 << 16


@dataclass(frozen=True)
class Found:
    """Results of a crowd in memory: of the passes, and of the scoring."""

    stats: Mapping[str, Any]
    scores: Mapping[str, Array]


def read_crowd(
    labels: Any, pred_probs: Any, columns: Sequence[str] | None, *, ensemble: bool = False
) -> tuple[Crowd, Array]:
    """Annotations, and the predictions (n, p, k) of one model or of an ensemble; both checked against each other."""
    labels, pred_probs = lazy.plain(labels), lazy.plain(pred_probs)
    examples = pred_probs.index if isinstance(pred_probs, pd.DataFrame) else None
    models = forms.models_first(np.asarray(pred_probs), ensemble, "pred_probs")
    crowd = forms.read(labels, columns, examples)
    n = len(crowd.annotations)
    infos = {
        "annotations": ArrayInfo((n,), np.dtype("V"), forms.NAME),
        "pred_probs": ArrayInfo((len(models), models.shape[2]), models.dtype, "pred_probs"),
    }
    check_layout(TASK, infos)
    forms.check_labels(crowd, models.shape[2])
    return crowd, models


def run(crowd: Crowd, models: Array, params: MultiannotatorParams, *, verbose: bool) -> Found:
    """All passes over a crowd in memory, and the scores of its examples and annotations."""
    n = len(models)
    arrays: dict[str, Any] = {"annotations": crowd.annotations, "pred_probs": models}
    rows = max(_FEWEST_ROWS, min(_MOST_ROWS, -(-n // (2 * blocks.available_cpus()))))
    whole = blocks.Whole(arrays, {"example": n}, rows=rows)
    stats: dict[str, Any] = {}
    for step in TASK.passes(params):
        if step.name != "annotators":
            states = whole.map_blocks(partial(step.reduce, params=params, stats=stats), range(n))
            stats[step.name] = step.result(reduce(merge_states, states), params, stats)
        if step.name == "votes":
            forms.check_crowd(stats["votes"].given, stats["votes"].sizes, crowd.annotators)

    def score(block: Any) -> tuple[dict[str, Array], ByClass | None]:
        scores = TASK.score(block, params, stats)
        return scores, by_class(block, params, stats, scores) if params.return_annotator_stats else None

    parts: list[dict[str, Array]] = []
    annotators: ByClass | None = None
    for scores, state in whole.map_blocks(score, range(n)):
        parts.append(scores)
        annotators = merge_states(annotators, state)
    stats["annotators"] = annotators
    scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    _warn(crowd, stats, scores, params, verbose=verbose)
    return Found(stats, scores)


def frames(
    labels: Any, crowd: Crowd, found: Found, params: MultiannotatorParams, columns: Sequence[str] | None
) -> dict[str, Any]:
    """Results as the frames that users get."""
    names = [spec.name for spec in TASK.written(params)]
    result: dict[str, Any] = {
        "label_quality": pd.DataFrame({name: found.scores[name] for name in names}, index=crowd.examples)
    }
    if params.return_detailed_quality:
        quality = found.scores["annotation_quality"]
        if crowd.order is not None and columns is not None:
            by_row = np.empty(len(quality))
            by_row[crowd.order] = quality
            result["detailed_label_quality"] = labels[[*columns]].assign(quality=by_row)
        else:
            result["detailed_label_quality"] = forms.spread(
                crowd.annotations, quality, crowd.examples, crowd.annotators
            )
    if params.return_annotator_stats:
        k = len(found.stats["votes"].frequency)
        result["annotator_stats"] = annotator_table(params, found.stats, crowd.annotators, k)
    return result


def _warn(
    crowd: Crowd, stats: Mapping[str, Any], scores: Mapping[str, Array], params: MultiannotatorParams, *, verbose: bool
) -> None:
    votes: Votes = stats["votes"]
    if not votes.same.any():
        warnings.warn("no two annotators agree on any example: are these labels right?", stacklevel=4)
    if not verbose:
        return
    alone = np.flatnonzero(votes.others == 0)
    if params.crowdlab and len(alone):
        warnings.warn(
            f"{len(alone):,} annotators share no example with others, the first is "
            f"{forms.name_of(crowd.annotators[alone[0]])}: "
            "they are taken to agree as much as others do on average",
            stacklevel=4,
        )
    if params.crowdlab:
        majority: Consensus = stats["majority_vote"]
        _warn_of_draws(int(majority.drawn[0]))
    for number, method in enumerate(params.consensus_method):
        _warn_of_lost_classes(
            votes, np.unique(scores[f"consensus_label_{method}" if number else "consensus_label"]), method
        )


def _warn_of_draws(drawn: int) -> None:
    if drawn:
        warnings.warn(f"{drawn:,} tied votes were settled by a draw; it depends on the seed", stacklevel=5)


def _warn_of_lost_classes(votes: Votes, kept: Array, method: str) -> None:
    lost = np.setdiff1d(np.flatnonzero(votes.frequency), kept)
    if len(lost):
        warnings.warn(
            f"no example has one of {len(lost):,} classes that annotators gave as its consensus ({method}): "
            f"{', '.join(map(str, lost[:10]))}. A model trained on the consensus never sees them",
            stacklevel=5,
        )

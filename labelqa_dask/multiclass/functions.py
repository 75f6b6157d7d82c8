"""Public functions of multiclass data, with the names, arguments and numbers of cleanlab's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core import public
from labelqa_dask.core.errors import InvalidInput, nearest
from labelqa_dask.multiclass.task import TASK, Method

Weighting = Literal["uniform", "accuracy", "log_loss_search", "custom"]
_TEMPERATURES = (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 2e2)
_LOWEST_PROBABILITY = 1e-6


def get_label_quality_scores(
    labels: Any, pred_probs: Any, *, method: Method = "self_confidence", adjust_pred_probs: bool = False
) -> Any:
    """Score how likely each given label is to be right.

    Parameters
    ----------
    labels : (n,) int array
        Given labels in 0..k-1; NumPy, Dask or xarray.
    pred_probs : (n, k) float array
        Predicted probabilities, out of sample; each row sums to 1.
    method : {"self_confidence", "normalized_margin", "confidence_weighted_entropy"}
    adjust_pred_probs : bool
        Adjust for class imbalance by confident thresholds; not for ``confidence_weighted_entropy``.

    Returns
    -------
    (n,) float array
        Scores in [0, 1], lower = more likely wrong, of the kind of the inputs. Dask input computes nothing yet.
        float64 for float64 probabilities, else float32.

    Raises
    ------
    InvalidInput
        A ValueError that names the array, the example and the reason. For Dask input, what concerns values is raised
        when the result is computed.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([0, 0, 1])
    >>> pred_probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.25, 0.75]])
    >>> get_label_quality_scores(labels, pred_probs)
    array([0.9 , 0.2 , 0.75])
    """
    params = TASK.params(method=method, adjust_pred_probs=adjust_pred_probs)
    outputs = public.run(TASK, {"labels": labels, "pred_probs": pred_probs}, params)
    return outputs["label_quality_score"]


def find_label_issues(
    labels: Any,
    pred_probs: Any,
    *,
    batch_size: int | None = None,
    n_jobs: int | None = None,
    verbose: bool = True,
    quality_score_kwargs: Mapping[str, Any] | None = None,
    num_issue_kwargs: Mapping[str, Any] | None = None,
    return_mask: bool = False,
) -> Any:
    """Find the examples that are probably labelled wrongly, by confident learning, as cleanlab does in batches.

    Parameters
    ----------
    labels : (n,) int array
        Given labels in 0..k-1; NumPy, Dask or xarray.
    pred_probs : (n, k) float array
        Predicted probabilities, out of sample; each row sums to 1.
    batch_size, n_jobs : int, optional
        Examples per block and number of threads, for arrays in memory; chosen by size and cores where not given.
    verbose : bool
        Accepted for compatibility; nothing is printed.
    quality_score_kwargs : mapping, optional
        ``method`` and ``adjust_pred_probs`` of the scores that candidates are chosen by.
    num_issue_kwargs : mapping, optional
        ``estimation_method`` of the number of issues: ``off_diagonal`` or ``off_diagonal_calibrated``.
    return_mask : bool
        Return a mask instead of indices.

    Returns
    -------
    int (m,) or bool (n,) array
        Indices of the issues in ascending order, or the mask, of the kind of the inputs. Dask input computes nothing
        yet.

    Raises
    ------
    InvalidInput
        A ValueError that names the array, the example and the reason.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([0, 0, 1])
    >>> pred_probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.25, 0.75]])
    >>> find_label_issues(labels, pred_probs)
    array([1])
    """
    settings = {**(quality_score_kwargs or {}), **(num_issue_kwargs or {})}
    params = TASK.params(find_label_issues=True, **settings)
    arrays = {"labels": labels, "pred_probs": pred_probs}
    mask = public.run(TASK, arrays, params, batch_size=batch_size, n_jobs=n_jobs)["is_issue"]
    return mask if return_mask else np.flatnonzero(public.plain(mask))


def order_label_issues(
    label_issues_mask: Any,
    labels: Any,
    pred_probs: Any,
    *,
    rank_by: Method = "self_confidence",
    rank_by_kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Indices of the examples of a mask, worst first.

    Parameters
    ----------
    label_issues_mask : (n,) bool array
    labels : (n,) int array
    pred_probs : (n, k) float array
    rank_by : {"self_confidence", "normalized_margin", "confidence_weighted_entropy"}
    rank_by_kwargs : mapping, optional
        Further arguments of `get_label_quality_scores`.

    Returns
    -------
    (m,) int array
        By ascending score, equal ones by index; lazy for Dask.
    """
    scores = get_label_quality_scores(labels, pred_probs, method=rank_by, **(rank_by_kwargs or {}))
    return public.call(_ordered, scores, label_issues_mask, dtype=np.int64)


def find_top_issues(quality_scores: Any, *, top: int | None = 10) -> Any:
    """Indices of the lowest scores, lowest first.

    Parameters
    ----------
    quality_scores : (n,) float array
    top : int, optional
        How many; all where None or more than there are.

    Returns
    -------
    (top,) int array
        Equal scores by index; lazy for Dask.

    Examples
    --------
    >>> import numpy as np
    >>> find_top_issues(np.array([0.9, 0.05, 0.5, 0.01]), top=2)
    array([3, 1])
    """
    return public.call(_lowest, quality_scores, top, dtype=np.int64)


def get_label_quality_ensemble_scores(
    labels: Any,
    pred_probs_list: Sequence[Any],
    *,
    method: Method = "self_confidence",
    adjust_pred_probs: bool = False,
    weight_ensemble_members_by: Weighting = "accuracy",
    custom_weights: Any = None,
    log_loss_search_T_values: Sequence[float] = _TEMPERATURES,
    verbose: bool = True,
) -> Any:
    """Score labels by the predictions of several models: the weighted mean of the scores by each.

    Parameters
    ----------
    labels : (n,) int array
    pred_probs_list : list of (n, k) float arrays
        One per model.
    method, adjust_pred_probs
        As for `get_label_quality_scores`.
    weight_ensemble_members_by : {"uniform", "accuracy", "log_loss_search", "custom"}
        Equal weights; by share of examples whose label is the most probable class; by `exp(-T · log loss)` with the T
        whose weighted mean of probabilities has the least log loss; or as given.
    custom_weights : (models,) array, optional
    log_loss_search_T_values : sequence of float
    verbose : bool
        Accepted for compatibility; nothing is printed.

    Returns
    -------
    (n,) float array
        Scores in [0, 1], lower = more likely wrong, of the kind of the inputs. Dask input computes nothing yet.

    Raises
    ------
    InvalidInput
        A ValueError that says what is missing or does not fit.
    """
    members = list(pred_probs_list)
    _check_members(members, weight_ensemble_members_by, custom_weights)
    given = public.plain(labels)
    probs = [public.plain(member) for member in members]
    if weight_ensemble_members_by == "custom":
        weights = list(custom_weights)
    elif weight_ensemble_members_by == "uniform":
        weights = [1 / len(members)] * len(members)
    elif weight_ensemble_members_by == "accuracy":
        right = [(p.argmax(axis=1) == given).mean() for p in probs]
        weights = [share / sum(right) for share in right]
    else:
        weights = _log_loss_weights(given, probs, log_loss_search_T_values)
    scores = (
        get_label_quality_scores(labels, member, method=method, adjust_pred_probs=adjust_pred_probs)
        for member in members
    )
    return sum(score * weight for score, weight in zip(scores, weights, strict=True))


def _check_members(members: Sequence[Any], weighting: str, custom_weights: Any) -> None:
    if not members:
        raise InvalidInput("pred_probs_list is empty")
    if len(members) == 1:
        warnings.warn("pred_probs_list has one element: get_label_quality_scores() does the same", stacklevel=3)
    if weighting not in get_args(Weighting):
        raise InvalidInput(
            f"weight_ensemble_members_by is {weighting!r}", mend=nearest(str(weighting), get_args(Weighting))
        )
    if (custom_weights is not None) != (weighting == "custom"):
        raise InvalidInput("custom_weights go with weight_ensemble_members_by='custom', and only with that")
    if custom_weights is not None and len(custom_weights) != len(members):
        raise InvalidInput(f"{len(custom_weights)} custom_weights for {len(members)} models")


def _log_loss_weights(labels: Any, members: Sequence[Any], temperatures: Sequence[float]) -> list[Any]:
    """Weights of the models by their log loss at the best temperature; scalars, lazy where the arrays are.

    The probability of a label under a weighted mean of models is the weighted mean of its probabilities under each, so
    that no mean of whole matrices is made.
    """
    probabilities = [get_label_quality_scores(labels, member) for member in members]
    losses = []
    for member, probability in zip(members, probabilities, strict=True):
        total = np.clip(member, _LOWEST_PROBABILITY, None).sum(axis=1)
        losses.append(_log_loss(np.clip(probability, _LOWEST_PROBABILITY, None) / total))
    best_loss: Any = np.inf
    best: list[Any] = [np.nan] * len(members)
    for temperature in temperatures:
        likelihoods = [np.exp(-temperature * loss) for loss in losses]
        weights = [likelihood / sum(likelihoods) for likelihood in likelihoods]
        loss = _log_loss(sum(w * p for w, p in zip(weights, probabilities, strict=True)))
        better = loss < best_loss
        best_loss = np.where(better, loss, best_loss)
        best = [np.where(better, new, old) for new, old in zip(weights, best, strict=True)]
    return best


def _log_loss(probability: Any) -> Any:
    """Mean of -ln p, with p clipped at the precision of its type as scikit-learn's log_loss does."""
    epsilon = np.finfo(probability.dtype).eps
    return -np.log(np.clip(probability, epsilon, 1 - epsilon)).mean()


def _lowest(scores: NDArray[np.floating[Any]], top: int | None) -> NDArray[np.int64]:
    return np.argsort(scores, kind="stable")[:top].astype(np.int64)


def _ordered(scores: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    chosen = np.flatnonzero(mask)
    return chosen[np.argsort(scores[chosen], kind="stable")].astype(np.int64)

"""The public functions of multilabel scores, by the names that the reference gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from labelqa_dask import multiclass
from labelqa_dask.core import public
from labelqa_dask.core.errors import InvalidInput, nearest
from labelqa_dask.core.kernels import Array, as_predictions, precision_of
from labelqa_dask.core.label_sets import LabelSets
from labelqa_dask.multilabel import kernels
from labelqa_dask.multilabel.task import (
    ALPHA,
    TEMPERATURE,
    BuiltIn,
    Multilabel,
    Overall,
    PerClass,
    alpha_of,
    average_unsorted,
)

_TASK = Multilabel()


class WrongType(InvalidInput, TypeError):
    """An argument of a type that cannot be used."""


class ClassLabelScorer(Enum):
    """How the label of one class is scored, as a binary problem with the probabilities ``1 - p`` and ``p``."""

    SELF_CONFIDENCE = "self_confidence"
    NORMALIZED_MARGIN = "normalized_margin"
    CONFIDENCE_WEIGHTED_ENTROPY = "confidence_weighted_entropy"

    def __call__(self, labels: Any, pred_probs: Any, *, adjust_pred_probs: bool = False) -> Any:
        """Score labels (n,) of 0 and 1 by pred_probs (n, 2), as the multiclass method of this name does."""
        return multiclass.get_label_quality_scores(
            labels, pred_probs, method=self.value, adjust_pred_probs=adjust_pred_probs
        )

    @classmethod
    def from_str(cls, method: str) -> ClassLabelScorer:
        """The scorer of a name, in upper or lower case.

        Raises
        ------
        InvalidInput
            For a name that is not known.

        Examples
        --------
        >>> ClassLabelScorer.from_str("self_confidence")
        <ClassLabelScorer.SELF_CONFIDENCE: 'self_confidence'>
        """
        try:
            return cls[method.upper()]
        except KeyError:
            names = [scorer.value for scorer in cls]
            raise InvalidInput(f"unknown method {method!r}", "method", nearest(method, names)) from None


def exponential_moving_average(s: Any, *, alpha: float | None = None, axis: int = 1, **_: Any) -> Any:
    """Exponential moving average of each row, from its highest score to its lowest, which weighs most.

    With the scores in descending order, ``e_1 = s_1``, ``e_t = alpha * s_t + (1 - alpha) * e_(t-1)``; the result
    is ``e_k``.

    Parameters
    ----------
    s : (n, k) float array
        NumPy, Dask or xarray.
    alpha : float in [0, 1], optional
        Weight of the lowest score; ``2 / (k + 1)`` where not given.
    axis : int
        1, the axis of the classes. Further keywords are accepted and have no effect, as in the reference.

    Returns
    -------
    (n,) float array
        Of the kind of the scores, NaN where one of a row's is.

    Raises
    ------
    InvalidInput

    Examples
    --------
    >>> import numpy as np
    >>> exponential_moving_average(np.array([[0.1, 0.2, 0.3]]), alpha=0.5)
    array([0.175])
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise InvalidInput(f"alpha must be in the interval [0, 1], got {alpha}")
    return _aggregate_rows(partial(_moving_averages, alpha=alpha), s, axis)


def softmin(s: Any, *, temperature: float = TEMPERATURE, axis: int = 1, **_: Any) -> Any:
    """Soft minimum of each row: ``sum(s * softmax((1 - s) / temperature))``.

    Parameters
    ----------
    s : (n, k) float array
        NumPy, Dask or xarray.
    temperature : float above 0
        The smaller it is, the closer is the result to the lowest score; none is too small.
    axis : int
        1, the axis of the classes. Further keywords are accepted and have no effect, as in the reference.

    Returns
    -------
    (n,) float array
        Of the kind of the scores, NaN where one of a row's is.

    Raises
    ------
    InvalidInput

    Examples
    --------
    >>> import numpy as np
    >>> softmin(np.array([[0.1, 0.9]])).round(6)
    array([0.100268])
    """
    if not 0 < temperature < float("inf"):
        raise InvalidInput(f"temperature must be above 0, got {temperature}")
    return _aggregate_rows(partial(_soft_minima, temperature=temperature), s, axis)


def _aggregate_rows(function: Callable[[Array], Array], s: Any, axis: int) -> Any:
    if axis not in (1, -1):
        raise InvalidInput(f"axis must be 1, the axis of the classes, got {axis}")
    return public.map_rows(function, s, precision_of(np.dtype(getattr(s, "dtype", float))))


def _moving_averages(scores: Array, alpha: float | None) -> Array:
    scores, out = _rows(scores)
    k = scores.shape[1]
    weight = alpha_of(alpha, k)
    if kernels.must_sort(k, weight):
        average_unsorted(scores, weight, out)
    else:
        network, lowest = kernels.network(min(k, kernels.LANES)), np.empty(kernels.selected(k, weight))
        kernels.aggregate(scores, kernels.MOVING_AVERAGE, weight, TEMPERATURE, network, lowest, out)
    return out


def _soft_minima(scores: Array, temperature: float) -> Array:
    scores, out = _rows(scores)
    kernels.aggregate(scores, kernels.SOFTMIN, ALPHA, temperature, kernels.network(1), np.empty(1), out)
    return out


def _rows(scores: Array) -> tuple[Array, Array]:
    scores = as_predictions(scores)
    if scores.shape[1] == 0:
        raise InvalidInput(f"there are no classes: scores have shape {scores.shape}")
    return scores, np.empty(len(scores), scores.dtype)


class Aggregator:
    """Makes one score of the scores of an example's classes.

    Parameters
    ----------
    method : str or callable
        ``"exponential_moving_average"``, ``"softmin"``, or a function that takes ``(scores, axis=1, **kwargs)``, scores
        (n, k), and makes (n,), such as ``np.min``. It must treat each row by itself: Dask arrays are given to it block
        by block.
    **kwargs
        Keywords of the method.

    Raises
    ------
    InvalidInput
        A ValueError for a name that is not known, a TypeError for what is neither a name nor a function.

    Examples
    --------
    >>> import numpy as np
    >>> Aggregator("softmin", temperature=0.01)(np.array([[0.1, 0.9]]))
    array([0.1])
    >>> Aggregator(np.mean)(np.array([[0.1, 0.9]]))
    array([0.5])
    """

    possible_methods: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "exponential_moving_average": exponential_moving_average,
        "softmin": softmin,
    }

    def __init__(self, method: str | Callable[..., Any], **kwargs: Any) -> None:
        if isinstance(method, str):
            if method not in self.possible_methods:
                raise InvalidInput(f"unknown aggregation {method!r}", "method", nearest(method, self.possible_methods))
            method = self.possible_methods[method]
        if not callable(method):
            raise WrongType(f"must be a name or a function, got {type(method).__name__}", "method")
        self.method = method
        self.kwargs = kwargs

    @property
    def name(self) -> BuiltIn | None:
        """Name of the method, where it is a built-in one."""
        return next((name for name in get_args(BuiltIn) if self.possible_methods[name] is self.method), None)

    def __call__(self, scores: Any, **kwargs: Any) -> Any:
        """Aggregate scores (n, k), NumPy, Dask or xarray; keywords replace those the aggregator was made with."""
        keywords = {**self.kwargs, **kwargs, "axis": 1}
        if getattr(scores, "ndim", 0) != 2:
            raise InvalidInput(f"must be an array of 2 dimensions, got {type(scores).__name__}", "scores")
        if self.name:
            return self.method(scores, **keywords)
        return public.map_rows(partial(_called, self.method, keywords), scores, precision_of(scores.dtype))

    def __repr__(self) -> str:
        return f"Aggregator(method={getattr(self.method, '__name__', self.method)}, kwargs={self.kwargs})"


def _called(method: Callable[..., Any], keywords: Mapping[str, Any], scores: Array) -> Array:
    found = np.asarray(method(scores, **keywords))
    if found.shape != scores.shape[:1]:
        raise InvalidInput(
            f"made an array of shape {found.shape} of scores of shape {scores.shape}",
            f"aggregator {getattr(method, '__name__', method)}",
            "It must make one score per row.",
        )
    return found


_BY_MOVING_AVERAGE = Aggregator(exponential_moving_average, alpha=ALPHA)


class MultilabelScorer:
    """Scores each label of an example, and aggregates the scores of its classes.

    Parameters
    ----------
    base_scorer : ClassLabelScorer
    aggregator : Aggregator or callable
    strict : bool
        Refuse data of a single class. That labels are 0 or 1 and shapes are equal is checked in any case.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([[0, 1, 0], [1, 0, 1]])
    >>> pred_probs = np.array([[0.1, 0.9, 0.1], [0.4, 0.1, 0.9]])
    >>> MultilabelScorer()(labels, pred_probs)
    array([0.9, 0.5])
    >>> MultilabelScorer(ClassLabelScorer.NORMALIZED_MARGIN, np.min)(labels, pred_probs)
    array([0.9, 0.4])
    """

    def __init__(
        self,
        base_scorer: ClassLabelScorer = ClassLabelScorer.SELF_CONFIDENCE,
        aggregator: Aggregator | Callable[..., Any] = _BY_MOVING_AVERAGE,
        *,
        strict: bool = True,
    ) -> None:
        self.base_scorer = base_scorer
        self.aggregator = aggregator if isinstance(aggregator, Aggregator) else Aggregator(aggregator)
        self.strict = strict

    def __call__(
        self,
        labels: Any,
        pred_probs: Any,
        base_scorer_kwargs: Mapping[str, Any] | None = None,
        **aggregator_kwargs: Any,
    ) -> Any:
        """Score examples; see `get_label_quality_scores`."""
        if self.strict and np.ndim(pred_probs) == 2 and np.shape(pred_probs)[1] == 1:
            raise InvalidInput(
                "there is only one class",
                "pred_probs",
                "Score it as a binary problem with the multiclass method, or with strict=False.",
            )
        keywords = {**self.aggregator.kwargs, **aggregator_kwargs}
        if self.aggregator.name is None:
            function = partial(_called, self.aggregator.method, {**keywords, "axis": 1})
            return self._run(Overall(function), labels, pred_probs, base_scorer_kwargs)
        settings = {"alpha": keywords.get("alpha")}
        if self.aggregator.name == "softmin":
            settings = {"temperature": keywords.get("temperature", TEMPERATURE)}
        return self._run(Overall(), labels, pred_probs, base_scorer_kwargs, aggregator=self.aggregator.name, **settings)

    def aggregate(self, class_label_quality_scores: Any, **kwargs: Any) -> Any:
        """One score per example (n,) of scores per example and class (n, k)."""
        return self.aggregator(class_label_quality_scores, **kwargs)

    def get_class_label_quality_scores(
        self, labels: Any, pred_probs: Any, base_scorer_kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Scores (n, k) of each label of each example; arguments as in `get_label_quality_scores`."""
        return self._run(PerClass(), labels, pred_probs, base_scorer_kwargs)

    def _run(
        self,
        task: Multilabel,
        labels: Any,
        pred_probs: Any,
        base_scorer_kwargs: Mapping[str, Any] | None,
        **settings: Any,
    ) -> Any:
        params = task.params(method=self.base_scorer.value, **dict(base_scorer_kwargs or {}), **settings)
        shape = np.shape(pred_probs)
        given = public.as_indicators(labels, shape[1]) if len(shape) == 2 else labels
        outputs = public.run(task, {"labels": given, "pred_probs": pred_probs}, params)
        return outputs[task.outputs[0].name]


_BY_SELF_CONFIDENCE = MultilabelScorer()


def get_label_quality_scores(
    labels: Any,
    pred_probs: Any,
    *,
    method: MultilabelScorer | str = _BY_SELF_CONFIDENCE,
    adjust_pred_probs: bool = False,
    aggregator_kwargs: Mapping[str, Any] | None = None,
    base_scorer_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Score how likely all the labels of each example are to be right.

    Parameters
    ----------
    labels : (n, k) array of 0 and 1, or class ids
        What applies to each example: 0 and 1 for each class (NumPy, Dask, xarray; scipy.sparse where most are 0), or a
        list of class ids per example (a list of lists, or a Series of lists, pandas or Dask).
    pred_probs : (n, k) float array
        Predicted probability of each class, out of sample; rows need not sum to 1.
    method : MultilabelScorer or str
        How classes are scored and aggregated, or the name of a `ClassLabelScorer`.
    adjust_pred_probs : bool
        Adjust for class imbalance by confident thresholds of each class; not for ``confidence_weighted_entropy``.
    aggregator_kwargs : mapping, optional
        ``method`` (a name or a function) and keywords of an `Aggregator` in place of the scorer's.
    base_scorer_kwargs : mapping, optional
        Keywords of the class scorer: ``adjust_pred_probs``.
    **kwargs
        Keywords of the aggregation, such as ``alpha`` or ``temperature``.

    Returns
    -------
    (n,) float array
        Scores in [0, 1], lower = more likely that some label is wrong or missing, of the kind of the inputs. Dask input
        computes nothing yet. float64 for float64 probabilities, else float32.

    Raises
    ------
    InvalidInput
        A ValueError that names the array, the example, the class and the reason. For Dask input, what concerns values
        is raised when the result is computed.

    Examples
    --------
    >>> import numpy as np
    >>> pred_probs = np.array([[0.1, 0.9, 0.1], [0.4, 0.1, 0.9]])
    >>> get_label_quality_scores([[1], [0, 2]], pred_probs)
    array([0.9, 0.5])
    """
    scorer = method if isinstance(method, MultilabelScorer) else MultilabelScorer(ClassLabelScorer.from_str(method))
    if aggregator_kwargs:
        scorer = MultilabelScorer(scorer.base_scorer, Aggregator(**aggregator_kwargs), strict=scorer.strict)
    keywords = {"adjust_pred_probs": adjust_pred_probs, **(base_scorer_kwargs or {})}
    return scorer(labels, pred_probs, base_scorer_kwargs=keywords, **kwargs)


def get_label_quality_scores_per_class(
    labels: Any, pred_probs: Any, *, method: str = "self_confidence", adjust_pred_probs: bool = False
) -> Any:
    """Score how likely each label of each example is to be right.

    Parameters
    ----------
    labels, pred_probs, method, adjust_pred_probs
        As in `get_label_quality_scores`.

    Returns
    -------
    (n, k) float array
        Scores in [0, 1], lower = more likely wrong, or missing where the label is not given.

    Raises
    ------
    InvalidInput

    Examples
    --------
    >>> import numpy as np
    >>> get_label_quality_scores_per_class([[1], [0, 2]], np.array([[0.1, 0.9, 0.1], [0.4, 0.1, 0.9]]))
    array([[0.9, 0.9, 0.9],
           [0.4, 0.9, 0.9]])
    """
    scorer = MultilabelScorer(ClassLabelScorer.from_str(method))
    return scorer.get_class_label_quality_scores(labels, pred_probs, {"adjust_pred_probs": adjust_pred_probs})


def count_issues_per_class(labels: Any, pred_probs: Any) -> Any:
    """Count the labels of each class that are confidently wrong, by confident learning on each class by itself.

    Parameters
    ----------
    labels, pred_probs
        As in `get_label_quality_scores`.

    Returns
    -------
    (k, 2) int array
        How many examples lack a class that they probably have, and how many have one that they probably lack; their sum
        is the number of issues that the reference's batched inspector estimates. Lazy for Dask; two walks over it.

    Raises
    ------
    InvalidInput

    Examples
    --------
    >>> import numpy as np
    >>> pred_probs = np.array([[0.9, 0.1], [0.8, 0.9], [0.1, 0.2], [0.95, 0.1]])
    >>> count_issues_per_class([[0], [0, 1], [], [1]], pred_probs)
    array([[1, 0],
           [0, 1]])
    """
    params = _TASK.params(count_issues=True)
    shape = np.shape(pred_probs)
    given = public.as_indicators(labels, shape[1]) if len(shape) == 2 else labels
    return public.statistic(_TASK, {"labels": given, "pred_probs": pred_probs}, params, "label_issues", 2)


def multilabel_py(y: Any) -> Any:
    """Share of the examples without and with each class.

    Parameters
    ----------
    y : (n, k) array of 0 and 1
        NumPy, Dask, xarray or scipy.sparse.

    Returns
    -------
    (k, 2) float64 array
        Of the kind of the labels, lazy for Dask.

    Examples
    --------
    >>> import numpy as np
    >>> multilabel_py(np.array([[0, 0], [0, 1], [1, 0], [1, 0], [1, 0]]))
    array([[0.4, 0.6],
           [0.8, 0.2]])
    """
    y = public.as_indicators(y, 0) if not hasattr(y, "ndim") or hasattr(y, "tocsr") else y
    if isinstance(y, LabelSets):
        without: Any = 1 - np.bincount(y.classes, minlength=y.k) / len(y)
    else:
        without = (y == 0).mean(axis=0)
    named = hasattr(without, "dims")
    without = without.expand_dims({"label": [0, 1]}, axis=-1) if named else without[:, np.newaxis]
    return without * np.array([1, -1]) + np.array([0, 1])


def get_cross_validated_multilabel_pred_probs(X: Any, labels: Any, *, clf: Any, cv: Any) -> NDArray[np.floating[Any]]:
    """Probabilities of each class out of sample, by training on the other folds.

    Parameters
    ----------
    X : (n, features) array
    labels : (n, k) array of 0 and 1
    clf : classifier with ``predict_proba``
        Of scikit-learn's interface for multilabel problems; one that makes a pair of columns per class will do as well.
    cv : splitter
        Such as ``KFold`` or ``StratifiedKFold``. Examples with the same labels in every class are one stratum.

    Returns
    -------
    (n, k) float array

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import StratifiedKFold
    >>> from sklearn.multiclass import OneVsRestClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = rng.random((40, 2))
    >>> labels = (X > 0.5).astype(int)
    >>> clf, cv = OneVsRestClassifier(LogisticRegression()), StratifiedKFold(2)
    >>> get_cross_validated_multilabel_pred_probs(X, labels, clf=clf, cv=cv).shape
    (40, 2)
    """
    from sklearn.model_selection import cross_val_predict

    given = np.asarray(labels)
    strata = np.unique(given, axis=0, return_inverse=True)[1].ravel()
    folds = list(cv.split(strata, strata))
    found = cross_val_predict(clf, X, given, cv=folds, method="predict_proba")
    if isinstance(found, list):
        return np.stack([pair[:, 1] for pair in found], axis=1)
    return np.asarray(found)

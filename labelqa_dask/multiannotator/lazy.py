"""CROWDLAB on Dask: blocks of examples with their annotations, states merged as trees, frames that stay lazy.

Wide arrays are cut along rows, as the probabilities are. Long frames are sent to the block of their example by one
shuffle, with divisions that are known beforehand, so nothing is computed to build the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import xarray as xr
from dask.delayed import Delayed, delayed

from labelqa_dask.core import graph
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.layout import ArrayInfo, check_layout
from labelqa_dask.core.task import Block
from labelqa_dask.multiannotator import activelab, forms
from labelqa_dask.multiannotator.states import Votes
from labelqa_dask.multiannotator.task import TASK, MultiannotatorParams, annotator_table, by_class, weights_of

_LOCAL_BLOCK_BYTES = 64 << 20


def plain(values: Any) -> Any:
    """An xarray object as the array that it holds; others as they are."""
    return values.data if isinstance(values, xr.DataArray) else values


def is_lazy(values: Any) -> bool:
    """Whether values are a Dask collection."""
    return isinstance(values, da.Array | dd.DataFrame)


@dataclass(frozen=True)
class _Part:
    """A block of examples and the rows that its annotations came from (long form only)."""

    block: Block
    examples: pd.Index[Any]
    rows: pd.DataFrame | None


@dataclass(frozen=True)
class _Parts:
    """All parts of a crowd, lazy; their divisions, where known; their annotators, lazy where they are not known.

    `lengths` are the numbers of examples of the parts, NaN where not known. `index`, `detailed` and `of_annotators` are
    empty, of the types of what the frames will hold.
    """

    parts: list[Delayed]
    lengths: tuple[float, ...]
    divisions: tuple[Any, ...] | None
    annotators: Any
    models: int
    k: int
    index: pd.Index[Any]
    detailed: pd.DataFrame
    of_annotators: pd.Index[Any]
    is_wide: bool


def label_quality(
    labels: Any,
    pred_probs: Any,
    params: MultiannotatorParams,
    columns: Sequence[str] | None,
    *,
    return_weights: bool,
    ensemble: bool = False,
) -> dict[str, Any]:
    """As `get_label_quality_multiannotator`, or, where predictions are an `ensemble`, as that for ensembles."""
    crowd = _parts(labels, pred_probs, columns, ensemble)
    states = _states(crowd, params, _checked, _reduce)
    stats = graph.results_of(TASK, params, states)
    scores = [delayed(_score)(part, params, stats) for part in crowd.parts]
    specs = TASK.written(params)
    empty = {spec.name: pd.Series(dtype=spec.score_dtype(np.dtype(float))) for spec in specs}
    result: dict[str, Any] = {
        "label_quality": _frame(
            [delayed(_examples)(part, found, list(empty)) for part, found in zip(crowd.parts, scores, strict=True)],
            pd.DataFrame(empty).set_index(crowd.index),
            crowd.divisions,
        )
    }
    if params.return_detailed_quality:
        details = [delayed(_details)(part, found) for part, found in zip(crowd.parts, scores, strict=True)]
        result["detailed_label_quality"] = _frame(details, crowd.detailed, crowd.divisions if crowd.is_wide else None)
    if params.return_annotator_stats:
        sums = [delayed(_by_class)(part, params, stats, found) for part, found in zip(crowd.parts, scores, strict=True)]
        stats = graph.results_of(TASK, params, {**states, "annotators": graph.merge_tree(sums)})
        table = delayed(annotator_table)(params, stats, crowd.annotators, crowd.k)
        meta = pd.DataFrame(
            {
                "annotator_quality": 0.0,
                "agreement_with_consensus": 0.0,
                "worst_class": 0,
                "num_examples_labeled": 0,
            },
            index=crowd.of_annotators,
        )
        result["annotator_stats"] = _frame([table], meta, None)
    if return_weights:
        weights = delayed(weights_of)(params.consensus_method[-1], stats)
        of_model, shape = (weights.model, (crowd.models,)) if ensemble else (delayed(_only)(weights.model), ())
        result["model_weight"] = da.from_delayed(of_model, shape, np.float64)
        size = len(crowd.annotators) if isinstance(crowd.annotators, pd.Index) else np.nan
        result["annotator_weight"] = da.from_delayed(weights.annotator, (size,), np.float64, meta=np.empty(0))
    return result


def active_learning_scores(
    labels: Any, pred_probs: Any, unlabeled: Any, columns: Sequence[str] | None, seed: int, *, ensemble: bool
) -> tuple[da.Array, da.Array]:
    """As `get_active_learning_scores`, or, where predictions are an `ensemble`, as that for ensembles."""
    others = None if unlabeled is None else _checked_probabilities(unlabeled, ensemble, "pred_probs_unlabeled")
    if pred_probs is None:
        assert others is not None, "refused before"
        return da.from_array(np.empty(0)), _of_unlabeled(others, activelab.nothing_learned(others.shape[1]), seed)
    params = activelab.params(seed)
    crowd = _parts(labels, pred_probs, columns, ensemble)
    if others is not None:
        activelab.check_same_models(others.shape, (0, crowd.models, crowd.k))
    stats = graph.results_of(TASK, params, _states(crowd, params, _checked_if_compared, _reduce_if_compared))
    learned = delayed(activelab.learn)(stats, crowd.models)
    scores = [delayed(_of_labeled)(part, params, stats, learned) for part in crowd.parts]
    return (
        _vector(scores, crowd.lengths),
        da.from_array(np.empty(0)) if others is None else _of_unlabeled(others, learned, seed),
    )


def _of_unlabeled(models: da.Array, learned: Any, seed: int) -> da.Array:
    """Scores of examples without labels, of predictions (u, p, k)."""
    starts = np.concatenate([[0], np.cumsum(models.chunks[0])]).tolist()
    parts = list(zip(_rows(models), starts, strict=False))
    votes = graph.merge_tree([delayed(activelab.votes_of_models)(part, start, learned) for part, start in parts])
    scores = [delayed(activelab.of_unlabeled)(part, start, learned, votes, seed) for part, start in parts]
    return _vector(scores, models.chunks[0])


def _vector(parts: list[Delayed], lengths: Sequence[float]) -> da.Array:
    pairs = zip(parts, lengths, strict=True)
    return da.concatenate([da.from_delayed(part, (n,), np.float64, meta=np.empty(0)) for part, n in pairs])


def _states(crowd: _Parts, params: MultiannotatorParams, check: Any, reduce: Any) -> dict[str, Any]:
    """Lazy states of all passes but that over annotators, which the scoring makes."""
    states: dict[str, Any] = {}
    for step in TASK.passes(params):
        if step.name == "annotators":
            continue
        stats = graph.results_of(TASK, params, states)
        state = graph.merge_tree([delayed(reduce)(step.of, part, params, stats) for part in crowd.parts])
        states[step.name] = delayed(check)(state, crowd.annotators) if step.name == "votes" else state
    return states


def _frame(parts: list[Delayed], meta: pd.DataFrame, divisions: tuple[Any, ...] | None) -> dd.DataFrame:
    return dd.from_delayed(parts, meta=meta, divisions=divisions, verify_meta=False)


# -- Parts ---------------------------------------------------------------------------------------------------------


def _parts(labels: Any, pred_probs: Any, columns: Sequence[str] | None, ensemble: bool) -> _Parts:
    if isinstance(labels, dd.DataFrame) or columns is not None:
        return _long_parts(labels, pred_probs, columns or forms.LONG_COLUMNS, ensemble)
    return _wide_parts(labels, pred_probs, ensemble)


def _wide_parts(labels: Any, pred_probs: Any, ensemble: bool) -> _Parts:
    labels = _as_dask(labels, forms.NAME)
    if labels.ndim != 2:
        raise InvalidInput(f"must have 2 dimensions (examples, annotators), got shape {labels.shape}", forms.NAME)
    probabilities = _checked_probabilities(pred_probs, ensemble, n=labels.shape[0])
    labels = labels.rechunk((probabilities.chunks[0], (labels.shape[1],)))
    starts = np.concatenate([[0], np.cumsum(probabilities.chunks[0])]).tolist()
    parts = [
        delayed(_wide_part)(wide, probs, start)
        for wide, probs, start in zip(labels.to_delayed().ravel(), _rows(probabilities), starts, strict=False)
    ]
    annotators = pd.RangeIndex(labels.shape[1])
    detailed = pd.DataFrame(np.empty((0, len(annotators))), columns=annotators).add_prefix("quality_annotator_")
    divisions = (*starts[:-1], starts[-1] - 1)
    index = pd.Index([], dtype=np.int64)
    lengths, (_, p, k) = probabilities.chunks[0], probabilities.shape
    return _Parts(parts, lengths, divisions, annotators, p, k, index, detailed.set_index(index), index, is_wide=True)


def _long_parts(labels: Any, pred_probs: Any, columns: Sequence[str], ensemble: bool) -> _Parts:
    if isinstance(labels, pd.DataFrame):
        labels = dd.from_pandas(labels, npartitions=1)
    if not isinstance(labels, dd.DataFrame):
        raise InvalidInput(f"must be a DataFrame in the long form, got {type(labels).__name__}", forms.NAME)
    example, annotator, label = forms.check_columns(labels.columns, columns)
    labels = labels[[example, annotator, label]]
    if isinstance(pred_probs, pd.DataFrame | dd.DataFrame) and not ensemble:
        probabilities = _as_frame(pred_probs)
        divisions = probabilities.divisions
        of_rows = probabilities.to_delayed()
        index, p, k = probabilities._meta.index, 1, len(probabilities.columns)
        lengths: tuple[float, ...] = (np.nan,) * len(of_rows)
        starts = delayed(_starts)([delayed(len)(part) for part in of_rows])
        origins: list[Any] = [starts[i] for i in range(len(of_rows))]
        bounds: tuple[Any, ...] = divisions
    else:
        array = _checked_probabilities(pred_probs, ensemble)
        (n, p, k), lengths = array.shape, array.chunks[0]
        of_rows, index = _rows(array), pd.Index([], dtype=np.int64)
        origins = np.concatenate([[0], np.cumsum(array.chunks[0])])[:-1].tolist()
        bounds, divisions = (*origins, n), (*origins, n - 1)
        if labels[example].dtype.kind not in "iu":
            raise InvalidInput(
                f"{example} must hold row numbers of pred_probs, got {labels[example].dtype}",
                forms.NAME,
                "Or give pred_probs as a DataFrame whose index are the examples.",
            )
        labels = labels.map_partitions(_check_rows, example, n, meta=labels._meta)
    ids = delayed(_ids_of)(graph.merge_tree([delayed(_find_ids)(part, annotator) for part in labels.to_delayed()]))
    grouped = labels.set_index(example, divisions=bounds).to_delayed()
    parts = [
        delayed(_long_part)(rows, probs, start, ids, (example, annotator, label))
        for rows, probs, start in zip(grouped, of_rows, origins, strict=True)
    ]
    detailed = labels._meta.assign(quality=np.empty(0))
    of_annotators = pd.Index([], dtype=labels._meta[annotator].dtype, name=None)
    return _Parts(parts, lengths, divisions, ids, p, k, index, detailed, of_annotators, is_wide=False)


def _as_dask(values: Any, name: str) -> da.Array:
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy(np.float64, na_value=np.nan)
    if isinstance(values, dd.DataFrame):
        raise InvalidInput("a Dask DataFrame is taken as the long form, but the labels are wide", name)
    values = values if isinstance(values, da.Array) else np.asarray(values)
    if not isinstance(values, da.Array):
        row_bytes = max(1, values.nbytes // max(1, len(values)))
        values = da.from_array(values, chunks=(max(1, _LOCAL_BLOCK_BYTES // row_bytes), *values.shape[1:]))
    if np.isnan(values.shape).any():
        raise InvalidInput("has chunks of unknown size", name, "Call compute_chunk_sizes() on it.")
    return values


def _as_frame(pred_probs: pd.DataFrame | dd.DataFrame) -> dd.DataFrame:
    if isinstance(pred_probs, pd.DataFrame):
        rows = max(1, _LOCAL_BLOCK_BYTES // max(1, 8 * len(pred_probs.columns)))
        lazy: dd.DataFrame = dd.from_pandas(pred_probs, chunksize=rows)
        return lazy
    if not pred_probs.known_divisions:
        raise InvalidInput(
            "its index has no known divisions",
            "pred_probs",
            "Call set_index on it with the examples, or give an array whose row numbers they are.",
        )
    return pred_probs


def _checked_probabilities(pred_probs: Any, ensemble: bool, name: str = "pred_probs", n: float = np.nan) -> da.Array:
    """Predictions (n, p, k), every model and class of an example in one chunk."""
    models = forms.models_first(_as_dask(pred_probs, name), ensemble, name)
    infos = {
        "annotations": ArrayInfo((n,), np.dtype("V"), forms.NAME),
        "pred_probs": ArrayInfo((models.shape[0], models.shape[2]), models.dtype, name),
    }
    check_layout(TASK, infos)
    return models.rechunk({1: -1, 2: -1})


def _rows(probabilities: da.Array) -> list[Delayed]:
    parts: list[Delayed] = probabilities.to_delayed().ravel().tolist()
    return parts


# -- What a task computes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ids:
    """Distinct identifiers of annotators; merges."""

    values: Array

    def merge(self, other: Self) -> Self:
        return type(self)(pd.unique(np.concatenate([self.values, other.values])))


def _find_ids(rows: pd.DataFrame, annotator: str) -> _Ids:
    found = rows[annotator].dropna()
    return _Ids(np.asarray(found.unique()) if found.dtype.kind in "iuf" else found.unique().astype(object))


def _ids_of(found: _Ids) -> pd.Index[Any]:
    return pd.Index(pd.factorize(found.values, sort=True)[1])


def _check_rows(rows: pd.DataFrame, example: str, n: int) -> pd.DataFrame:
    outside = rows[example][(rows[example] < 0) | (rows[example] >= n)]
    if len(outside):
        raise InvalidInput(
            f"{len(outside):,} annotations are of examples that pred_probs has not, the first of "
            f"{forms.name_of(outside.iloc[0])}",
            forms.NAME,
            f"{example} holds row numbers of pred_probs, which has {n:,}.",
        )
    return rows


def _starts(lengths: list[int]) -> list[int]:
    return [0, *np.cumsum(lengths).tolist()]


def _wide_part(wide: Array, probabilities: Array, start: int) -> _Part:
    examples = pd.RangeIndex(start, start + len(wide))
    crowd = forms.read_wide(wide, examples)
    return _part(crowd, probabilities, start, None)


def _long_part(
    rows: pd.DataFrame, probabilities: Any, start: int, annotators: pd.Index[Any], columns: tuple[str, str, str]
) -> _Part:
    is_frame = isinstance(probabilities, pd.DataFrame)
    examples = probabilities.index if is_frame else pd.RangeIndex(start, start + len(probabilities))
    rows = rows.reset_index(names=columns[0])
    crowd = forms.read_long(rows, columns, examples, annotators)
    assert crowd.order is not None
    values = probabilities.to_numpy() if is_frame else probabilities
    return _part(crowd, values, start, rows.iloc[crowd.order].reset_index(drop=True))


def _part(crowd: forms.Crowd, probabilities: Array, start: int, rows: pd.DataFrame | None) -> _Part:
    forms.check_labels(crowd, probabilities.shape[-1])
    arrays: dict[str, Any] = {"annotations": crowd.annotations, "pred_probs": probabilities}
    return _Part(Block(arrays, {"example": start}), crowd.examples, rows)


def _checked(votes: Votes, annotators: pd.Index[Any]) -> Votes:
    """Refuse a crowd in which nobody can be compared, or somebody is silent."""
    forms.check_crowd(votes.given, votes.sizes, annotators)
    return votes


def _checked_if_compared(votes: Votes, annotators: pd.Index[Any]) -> Votes:
    return _checked(votes, annotators) if votes.overlapping else votes


def _reduce(of: Any, part: _Part, params: MultiannotatorParams, stats: Any) -> Any:
    return of(part.block, params, stats)


def _reduce_if_compared(of: Any, part: _Part, params: MultiannotatorParams, stats: Any) -> Any:
    """As `_reduce`; nothing where it has turned out that no annotators can be compared."""
    return None if "votes" in stats and not stats["votes"].overlapping else of(part.block, params, stats)


def _of_labeled(part: _Part, params: MultiannotatorParams, stats: Any, learned: Any) -> Array:
    return activelab.of_labeled(part.block, activelab.quality(part.block, params, stats), learned)


def _score(part: _Part, params: MultiannotatorParams, stats: Any) -> dict[str, Array]:
    return TASK.score(part.block, params, stats)


def _by_class(part: _Part, params: MultiannotatorParams, stats: Any, scores: dict[str, Array]) -> Any:
    return by_class(part.block, params, stats, scores)


def _examples(part: _Part, scores: dict[str, Array], names: list[str]) -> pd.DataFrame:
    return pd.DataFrame({name: scores[name] for name in names}, index=part.examples)


def _details(part: _Part, scores: dict[str, Array]) -> pd.DataFrame:
    quality = scores["annotation_quality"]
    if part.rows is not None:
        return part.rows.assign(quality=quality)
    annotations: Any = part.block["annotations"]
    return forms.spread(annotations, quality, part.examples)


def _only(weights: Array) -> Array:
    return np.array(weights[0])

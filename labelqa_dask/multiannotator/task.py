"""CROWDLAB as a task: its parameters, its passes and how a block of examples is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from labelqa_dask.core.class_scores import ClassScores
from labelqa_dask.core.confident import MISSING_CLASS_THRESHOLD
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import PROBABILITY_TOLERANCE, Array, as_predictions
from labelqa_dask.core.ragged import Annotations
from labelqa_dask.core.task import ArraySpec, Block, Params, Pass, Stats, Task
from labelqa_dask.multiannotator import kernels
from labelqa_dask.multiannotator.example import Model, Scoring, Tiebreak, Weights
from labelqa_dask.multiannotator.states import (
    ByClass,
    Calibration,
    Consensus,
    Thresholds,
    Votes,
    coarse_temperatures,
    fine_temperatures,
    no_weights,
)
from labelqa_dask.multiclass.kernels import METHODS
from labelqa_dask.multiclass.task import Method, invalid_probabilities, sum_tolerance

ConsensusMethod = Literal["best_quality", "majority_vote"]
QualityMethod = Literal["crowdlab", "agreement"]


class ScoreParams(Params):
    """How a label is scored under a posterior, as in multiclass."""

    method: Method = "self_confidence"
    adjust_pred_probs: bool = False

    @model_validator(mode="after")
    def _entropy_is_not_adjusted(self) -> Self:
        if self.adjust_pred_probs and self.method == "confidence_weighted_entropy":
            raise ValueError("adjust_pred_probs is not supported for confidence_weighted_entropy")
        return self


_PLAIN = ScoreParams()


class MultiannotatorParams(Params):
    """Parameters of CROWDLAB."""

    consensus_method: tuple[ConsensusMethod, ...] = Field(default=("best_quality",), min_length=1)
    """How a consensus is found; the further ones make further columns."""
    quality_method: QualityMethod = "crowdlab"
    calibrate_probs: bool = False
    """Scale the probabilities to fit the shares of labels better."""
    return_detailed_quality: bool = True
    """Score each given label."""
    return_annotator_stats: bool = True
    """Score each annotator."""
    label_quality_score_kwargs: ScoreParams = _PLAIN
    """How a label is scored under the posterior: method and adjust_pred_probs, as of multiclass."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Of the draws that settle votes which nothing else does."""

    @field_validator("consensus_method", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("consensus_method")
    @classmethod
    def _each_once(cls, value: tuple[ConsensusMethod, ...]) -> tuple[ConsensusMethod, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a method twice")
        return value

    @property
    def crowdlab(self) -> bool:
        return self.quality_method == "crowdlab"

    @property
    def adjust(self) -> bool:
        return self.label_quality_score_kwargs.adjust_pred_probs


_EXAMPLE_OUTPUTS = (
    ArraySpec("consensus_label", ("example",), "labels"),
    ArraySpec("consensus_quality_score", ("example",), "scores", accumulated=True),
    ArraySpec("annotator_agreement", ("example",), "scores", accumulated=True),
)
_SIZE = ArraySpec("num_annotations", ("example",), "counts")

# A confusion of 100 classes is told whole; of more, the most frequent pairs.
_PAIRS_TOLD = 10_000


class Multiannotator(Task[MultiannotatorParams]):
    """Annotations (A,) of examples (n,), pred_probs (n, k) -> consensus labels and their quality (n,).

    Posteriors are not kept: each pass makes anew what it needs of a block, which costs less than to store it.
    """

    params_model = MultiannotatorParams
    inputs: ClassVar = (
        ArraySpec("annotations", ("example",), "annotations"),
        ArraySpec("pred_probs", ("example", "class"), "probabilities"),
    )
    outputs: ClassVar = (*_EXAMPLE_OUTPUTS, _SIZE)
    ranked_by = "consensus_quality_score"
    told_where: ClassVar = {"annotators": ("return_annotator_stats", True)}

    def written(self, params: MultiannotatorParams) -> tuple[ArraySpec, ...]:
        further = [
            ArraySpec(f"{spec.name}_{method}", spec.dims, spec.kind, spec.accumulated)
            for method in params.consensus_method[1:]
            for spec in _EXAMPLE_OUTPUTS
        ]
        return (*self.outputs, *further)

    def passes(self, params: MultiannotatorParams) -> tuple[Pass[MultiannotatorParams], ...]:
        steps = []
        if params.calibrate_probs:
            steps.append(Pass("coarse_temperature", Calibration, _coarse))
            steps.append(Pass("temperature", Calibration, _fine))
        steps.append(Pass("votes", Votes, _votes))
        if params.crowdlab:
            steps.append(Pass("majority_vote", Consensus, _majority_vote, by_row=True))
            if "best_quality" in params.consensus_method:
                steps.append(Pass("best_quality", Consensus, _best_quality, by_row=True))
        if params.adjust:
            steps.append(Pass("thresholds", Thresholds, _thresholds, by_row=True))
        if params.return_annotator_stats:
            steps.append(Pass("annotators", ByClass, _by_class, by_row=True))
        return tuple(steps)

    def scores_unseen(self, params: MultiannotatorParams) -> bool:
        """New annotations may be by annotators that have no weight yet."""
        return False

    def score(self, block: Block, params: MultiannotatorParams, stats: Stats) -> dict[str, Any]:
        """Score one block; beside what is written `annotation_quality` (A,), where it is asked for."""
        scores: dict[str, Any] = {}
        for number, method in enumerate(params.consensus_method):
            suffix = f"_{method}" if number else ""
            detailed = params.return_detailed_quality and number == 0
            *of_examples, quality = _score(
                block, params, stats, method, params.label_quality_score_kwargs, detailed=detailed
            )
            for spec, values in zip(_EXAMPLE_OUTPUTS, of_examples, strict=True):
                scores[f"{spec.name}{suffix}"] = values
            if number == 0:
                scores["num_annotations"] = np.diff(_annotations(block).starts)
            if detailed:
                scores["annotation_quality"] = quality
        return scores

    def statistics(self, params: MultiannotatorParams, stats: Stats) -> dict[str, Any]:
        votes: Votes = stats["votes"]
        told: dict[str, Any] = {"mean_annotations": votes.mean_size}
        if params.calibrate_probs:
            told["temperature"] = float(stats["temperature"][0])
        if params.crowdlab:
            weights = weights_of(params.consensus_method[0], stats)
            told["drawn_votes"] = int(stats["majority_vote"].drawn[0])
            told["consensus_likelihood"] = weights.likelihood
            told["model_weight"] = float(weights.model[0])
            told["mean_annotator_weight"] = float(weights.annotator.mean())
        return told

    def details(self, block: Block, scores: Mapping[str, Any]) -> dict[str, dict[str, Array]]:
        """The quality of each given label."""
        if "annotation_quality" not in scores:
            return {}
        annotations = _annotations(block)
        columns = {
            "row": annotations.example + block.origin["example"],
            "annotator": annotations.ids[annotations.annotator],
            "label": annotations.label.astype(np.int64),
            "quality": scores["annotation_quality"],
        }
        return {"annotations": columns}

    def tables(
        self, params: MultiannotatorParams, stats: Stats, first: Callable[[], Block]
    ) -> dict[str, dict[str, Array]]:
        """Statistics and weight of each annotator, worst first."""
        if not params.return_annotator_stats:
            return {}
        ids, votes = _annotations(first()).ids, stats["votes"]
        table = annotator_table(params, stats, np.arange(len(ids)), len(votes.frequency))
        number = table.index.to_numpy()
        columns = {"annotator": ids[number], **{str(name): table[name].to_numpy() for name in table}}
        if params.crowdlab:
            columns["weight"] = weights_of(params.consensus_method[0], stats).annotator[number]
        return {"annotators": columns}

    def crowd(self, stats: Stats) -> dict[str, Any]:
        """How many annotations there are, how they agree, and which labels are given in place of which."""
        votes: Votes = stats["votes"]
        told: dict[str, Any] = {
            "annotations": int(votes.given.sum()),
            "examples_by_annotations": votes.sizes.tolist(),
        }
        if "annotators" in stats:
            sums: ByClass = stats["annotators"]
            consensus, given, count = np.array(sums.confusion(len(votes.frequency))).reshape(-1, 3).T
            most = np.lexsort((given, consensus, -count))[:_PAIRS_TOLD]
            told["agreement"] = sums.agreement.tolist()
            told["confusion"] = {
                "consensus": consensus[most].tolist(),
                "given": given[most].tolist(),
                "count": count[most].tolist(),
            }
        return told

    def class_scores(self, block: Block, scores: Mapping[str, Any]) -> ClassScores:
        k = block["pred_probs"].shape[-1]
        return ClassScores.of(scores["consensus_label"], scores["consensus_quality_score"], k)

    def describe(self, block: Block, scores: Mapping[str, Any], examples: NDArray[np.intp]) -> dict[str, Array]:
        columns = {
            name: scores[name][examples] for name in ("consensus_label", "annotator_agreement", "num_annotations")
        }
        return {**columns, "predicted_label": block["pred_probs"][examples].argmax(axis=1).astype(np.int64)}


TASK = Multiannotator()


def by_class(block: Block, params: MultiannotatorParams, stats: Stats, scores: Mapping[str, Any]) -> ByClass:
    """State of the annotators of one block, of its scores."""
    quality = scores.get("annotation_quality")
    if quality is None:
        *_, quality = _score(block, params, stats, params.consensus_method[0], _PLAIN, detailed=True)
    return ByClass.of(
        _annotations(block),
        block["pred_probs"].shape[-1],
        scores["consensus_label"],
        scores["consensus_quality_score"],
        scores["annotator_agreement"],
        quality,
    )


def weights_of(method: ConsensusMethod, stats: Stats) -> Weights:
    """The weights that follow from the consensus labels of a method."""
    votes: Votes = stats["votes"]
    if votes.overlapping == 0:
        raise InvalidInput(
            "every example has one annotation only, so annotators cannot be compared",
            "annotations",
            "Score the labels by the multiclass task.",
        )
    weights: Weights = stats[method].weights(votes)
    return weights


def annotator_table(params: MultiannotatorParams, stats: Stats, ids: Array | pd.Index[Any], k: int) -> pd.DataFrame:
    """Statistics of each annotator, worst first; the index are their ids."""
    sums: ByClass = stats["annotators"]
    votes: Votes = stats["votes"]
    m = len(votes.given)
    annotator, label = sums.keys // k, sums.keys % k
    totals = np.stack([np.bincount(annotator, column, m) for column in sums.counts.T])
    given, right, overlapping, overlapping_right, _ = totals
    with np.errstate(invalid="ignore"):
        agreement = right / given
        overlapping_agreement = overlapping_right / overlapping
        mean_quality = np.bincount(annotator, sums.quality, m) / given
    quality = overlapping_agreement
    if params.crowdlab:
        weights = weights_of(params.consensus_method[0], stats)
        of_model = weights.model.mean()
        trust = of_model / (of_model + weights.annotator.sum() * (votes.mean_size / m))
        quality = trust * mean_quality + (1 - trust) * overlapping_agreement
    count, count_right, _, _, consensus_quality = sums.counts.T
    order = np.lexsort((label, -consensus_quality / count, -count, count_right / count, annotator))
    firsts = order[np.flatnonzero(np.diff(annotator[order], prepend=-1))]
    worst_class = np.zeros(m, np.int64)
    worst_class[annotator[firsts]] = label[firsts]
    table = pd.DataFrame(
        {
            "annotator_quality": quality,
            "agreement_with_consensus": agreement,
            "worst_class": worst_class,
            "num_examples_labeled": votes.given,
        },
        index=pd.Index(ids),
    )
    return table.sort_values(by=["annotator_quality", "agreement_with_consensus"])


# -- Blocks --------------------------------------------------------------------------------------------------------


def _annotations(block: Block) -> Annotations:
    annotations: Any = block["annotations"]
    checked: Annotations = annotations
    return checked


def _models(block: Block) -> Array:
    """Predictions (n, p, k): of one model where they have no dimension for it."""
    predictions = as_predictions(block["pred_probs"])
    return predictions if predictions.ndim == 3 else predictions[:, None, :]


def _model(block: Block, params: MultiannotatorParams, stats: Stats) -> Model:
    temperature = stats["temperature"] if params.calibrate_probs else np.empty(0)
    return Model(_models(block), temperature, sum_tolerance(block))


def _tiebreak(block: Block, params: MultiannotatorParams, votes: Votes) -> Tiebreak:
    return Tiebreak(votes.frequency, votes.skill(), params.seed, block.origin.get("example", 0))


def _check(block: Block, bad: int) -> None:
    """Refuse the first example with invalid probabilities, if there is one."""
    if bad < 0:
        return
    for number, row in enumerate(_models(block)[bad].astype(np.float64)):
        in_range = ((row >= -PROBABILITY_TOLERANCE) & (row <= 1 + PROBABILITY_TOLERANCE)).all()
        if not (in_range and abs(sum(row) - 1) <= sum_tolerance(block)):
            model = {"model": number} if _models(block).shape[1] > 1 else {}
            raise invalid_probabilities(block, row, example=bad, **model)


def calibrated(block: Block, temperature: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probabilities of a block, at the temperature of each model (n, p, k)."""
    model = Model(_models(block), temperature, sum_tolerance(block))
    result = np.empty(model.pred_probs.shape)
    _check(block, kernels.calibrate_all(model, result))
    return result


def _coarse(block: Block, params: MultiannotatorParams, stats: Stats) -> Calibration:
    return _at_temperatures(block, coarse_temperatures(_models(block).shape[1]))


def _fine(block: Block, params: MultiannotatorParams, stats: Stats) -> Calibration:
    return _at_temperatures(block, fine_temperatures(stats["coarse_temperature"]))


def _at_temperatures(block: Block, temperatures: NDArray[np.float64]) -> Calibration:
    model = Model(_models(block), np.empty(0), sum_tolerance(block))
    state, bad = Calibration.of(_annotations(block), model, temperatures)
    _check(block, bad)
    return state


def _votes(block: Block, params: MultiannotatorParams, stats: Stats) -> Votes:
    return Votes.of(_annotations(block), block["pred_probs"].shape[-1])


def _majority_vote(block: Block, params: MultiannotatorParams, stats: Stats) -> Consensus:
    model, votes = _model(block, params, stats), stats["votes"]
    nothing = no_weights(model.pred_probs.shape[1], len(votes.given))
    state, bad = Consensus.of(_annotations(block), model, _tiebreak(block, params, votes), nothing, best=False)
    _check(block, bad)
    return state


def _best_quality(block: Block, params: MultiannotatorParams, stats: Stats) -> Consensus:
    model, tiebreak = _model(block, params, stats), _tiebreak(block, params, stats["votes"])
    weights = weights_of("majority_vote", stats)
    state, bad = Consensus.of(_annotations(block), model, tiebreak, weights, best=True)
    _check(block, bad)
    return state


def _thresholds(block: Block, params: MultiannotatorParams, stats: Stats) -> Thresholds:
    k = block["pred_probs"].shape[-1]
    count, total = [], []
    main = None
    for method in params.consensus_method:
        label, quality, agreement, given = _score(block, params, stats, method, _PLAIN, detailed=main is None)
        labelled = label >= 0
        count.append(np.bincount(label[labelled], minlength=k))
        total.append(np.bincount(label[labelled], quality[labelled], k))
        if main is None:
            main = ByClass.of(_annotations(block), k, label, quality, agreement, given)
    assert main is not None
    return Thresholds(np.stack(count), np.stack(total), main.keys, main.counts[:, 0], main.quality)


def _by_class(block: Block, params: MultiannotatorParams, stats: Stats) -> ByClass:
    return by_class(block, params, stats, TASK.score(block, params, stats))


def _scoring(
    params: MultiannotatorParams, stats: Stats, method: ConsensusMethod, kind: ScoreParams, m: int, k: int
) -> Scoring:
    number = METHODS.index(kind.method)
    if not kind.adjust_pred_probs:
        nothing = np.zeros(0, np.int64)
        return Scoring(number, False, np.zeros(k), nothing, nothing, np.zeros(0), MISSING_CLASS_THRESHOLD)
    thresholds: Thresholds = stats["thresholds"]
    of_consensus = thresholds.consensus()[params.consensus_method.index(method)]
    return Scoring(number, True, of_consensus, *thresholds.of_annotators(m), MISSING_CLASS_THRESHOLD)


def _score(
    block: Block,
    params: MultiannotatorParams,
    stats: Stats,
    method: ConsensusMethod,
    kind: ScoreParams,
    *,
    detailed: bool,
) -> tuple[Array, Array, Array, Array]:
    """Consensus label, its quality and agreement (n,), and, if `detailed`, the quality of each label (A,)."""
    annotations = _annotations(block)
    model, votes = _model(block, params, stats), stats["votes"]
    n, p, k = model.pred_probs.shape
    m = len(annotations.ids)
    majority = weights = no_weights(p, m)
    if params.crowdlab:
        majority, weights = weights_of("majority_vote", stats), weights_of(method, stats)
    label = np.empty(n, np.int64)
    consensus_quality, agreement = np.empty(n), np.empty(n)
    quality = np.empty(len(annotations.label) if detailed else 0)
    bad = kernels.score_examples(
        annotations.starts,
        annotations.annotator,
        annotations.label,
        model,
        _tiebreak(block, params, votes),
        majority,
        weights,
        method == "best_quality",
        params.crowdlab,
        _scoring(params, stats, method, kind, m, k),
        label,
        consensus_quality,
        agreement,
        quality,
    )
    _check(block, bad)
    return label, consensus_quality, agreement, quality

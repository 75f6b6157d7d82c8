"""Scores of arrays in memory against cleanlab, on the same arrays, and against the floor that memory sets.

The floor is the bytes that must move (each prediction and label read once, each score written once) over the rate at
which this machine's cores read memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cleanlab.internal.multilabel_scorer
import cleanlab.multiannotator
import cleanlab.rank
import cleanlab.segmentation.rank
import numpy as np
import pandas as pd
from rich.table import Table

from benchmarks.measure import in_turn, read_bandwidth
from labelqa_dask import multiannotator, multiclass, multilabel, segmentation

Case = tuple[str, Callable[[], Any], Callable[[], Any], int, float]


def multiclass_cases(n: int = 2_000_000, k: int = 10) -> Iterator[Case]:
    """Every method on n examples of k classes, float64."""
    rng = np.random.default_rng(0)
    labels, pred_probs = rng.integers(0, k, n), rng.dirichlet(np.ones(k), n)
    nbytes = pred_probs.nbytes + labels.nbytes + 8 * n
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        for adjust in (False, True) if method != "confidence_weighted_entropy" else (False,):
            settings: dict[str, Any] = {"method": method, "adjust_pred_probs": adjust}
            yield (
                f"multiclass {method}{' adjusted' if adjust else ''}",
                lambda s=settings: multiclass.get_label_quality_scores(labels, pred_probs, **s),
                lambda s=settings: cleanlab.rank.get_label_quality_scores(labels, pred_probs, **s),
                nbytes * (2 if adjust else 1),
                5 if method == "self_confidence" else 8,
            )


def multilabel_cases(n: int = 500_000, k: int = 20) -> Iterator[Case]:
    """Every scorer and aggregator on n examples of k classes, float64."""
    theirs = cleanlab.internal.multilabel_scorer
    rng = np.random.default_rng(0)
    pred_probs = rng.random((n, k))
    labels = (rng.random((n, k)) < pred_probs).astype(np.int64)
    nbytes = pred_probs.nbytes + labels.nbytes + 8 * n
    for scorer in multilabel.ClassLabelScorer:
        for method in ("exponential_moving_average", "softmin", np.min):
            our_scorer = multilabel.MultilabelScorer(scorer, multilabel.Aggregator(method))
            their_scorer = theirs.MultilabelScorer(
                theirs.ClassLabelScorer[scorer.name], theirs.Aggregator(method), strict=False
            )
            name = method if isinstance(method, str) else method.__name__
            yield (
                f"multilabel {scorer.value}, {name}",
                lambda score=our_scorer: score(labels, pred_probs),
                lambda score=their_scorer: score(labels, pred_probs),
                nbytes,
                8,
            )


def segmentation_cases(n: int = 100, k: int = 21, side: int = 256) -> Iterator[Case]:
    """Both methods on n images: labels that change from pixel to pixel, and labels in areas, as real ones are."""
    rng = np.random.default_rng(0)
    pred_probs = rng.random((n, k, side, side), dtype=np.float32)
    pred_probs /= pred_probs.sum(axis=1, keepdims=True)
    coarse = rng.integers(0, k, (n, side // 32, side // 32))
    for kind, labels in (
        ("random labels", rng.integers(0, k, (n, side, side))),
        ("areas", coarse.repeat(32, axis=1).repeat(32, axis=2)),
    ):
        yield (
            f"segmentation softmin, {kind}",
            lambda given=labels: segmentation.get_label_quality_scores(given, pred_probs),
            lambda given=labels: cleanlab.segmentation.rank.get_label_quality_scores(given, pred_probs, verbose=False),
            pred_probs.nbytes + labels.nbytes + labels.size * 4,
            2,
        )
        settings: dict[str, Any] = {"method": "num_pixel_issues", "verbose": False}
        theirs = {**settings, "n_jobs": 1}
        yield (
            f"segmentation num_pixel_issues, {kind}",
            lambda given=labels, s=settings: segmentation.get_label_quality_scores(given, pred_probs, **s),
            lambda given=labels, s=theirs: cleanlab.segmentation.rank.get_label_quality_scores(given, pred_probs, **s),
            2 * (pred_probs.nbytes + labels.nbytes) + labels.size * 5,
            30,
        )


def crowd_cases(k: int = 10) -> Iterator[Case]:
    """CROWDLAB of a wide crowd with a tenth of all labels, and of a long one; the reference gets both wide."""
    rng = np.random.default_rng(0)
    for name, n, m, a, target in (("wide", 20_000, 200, 20, 50), ("long", 50_000, 750, 3, 300)):
        pred_probs = rng.dirichlet(np.full(k, 0.3), n)
        truth = (pred_probs.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
        example, annotator = np.repeat(np.arange(n), a), np.argsort(rng.random((n, m)), axis=1)[:, :a].ravel()
        label = np.where(rng.random(n * a) < 0.7, truth[example], rng.integers(0, k, n * a))
        rows = pd.DataFrame({"task": example, "annotator": annotator, "label": label})
        rows = rows.sample(frac=1, random_state=0)
        wide = multiannotator.convert_long_to_wide_dataset(rows)
        labels, columns = (wide, None) if name == "wide" else (rows, ("task", "annotator", "label"))
        nbytes = 3 * pred_probs.nbytes + 4 * 8 * len(rows) + (2 * wide.size * 8 if name == "wide" else 0)
        yield (
            f"crowdlab {name}, {n:,} × {m}, {a} labels each",
            lambda labels=labels, p=pred_probs, columns=columns: multiannotator.get_label_quality_multiannotator(
                labels, p, columns=columns, verbose=False
            ),
            lambda wide=wide, p=pred_probs: cleanlab.multiannotator.get_label_quality_multiannotator(
                wide, p, verbose=False
            ),
            nbytes,
            target,
        )


def table() -> Table:
    """Ratios to cleanlab and to the floor."""
    bandwidth = read_bandwidth()
    result = Table("in memory", "ours", "cleanlab", "ratio", "target", "× the floor")
    for cases in (multiclass_cases, multilabel_cases, segmentation_cases, crowd_cases):
        for name, ours, theirs, nbytes, target in cases():
            pairs = in_turn(ours, theirs, runs=5 if target < 30 else 2)
            mine, other = pairs.median
            floor = mine / (nbytes / bandwidth)
            result.add_row(
                name, f"{mine:.3f} s", f"{other:.3f} s", f"{pairs.ratio:.1f}", f"≥ {target:g}", f"{floor:.1f}"
            )
    result.caption = f"floor: bytes read and written once at {bandwidth / 1e9:.1f} GB/s"
    return result

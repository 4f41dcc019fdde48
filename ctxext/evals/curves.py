"""Intervals for several numbers at once: a band for a whole curve, and a mean over tasks."""

from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import TypeVar

import numpy as np

from ctxext.evals.stats import (
    Interval,
    Numbers,
    cluster_index,
    ratio_influences,
    student_t,
    wilson,
)

K = TypeVar("K", bound=Hashable)


def simultaneous_band(
    differences: Numbers,
    at: Sequence[K],
    clusters: Sequence[Hashable],
    *,
    samples: int = 4000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[K, Interval]:
    """The mean difference at each place of a curve, with bounds that hold for all places (max-t).

    differences: -1 to 1 per pair. at: the place of each, such as a length. The band is mean -+ c s
    with the jackknife's standard errors s (`ratio_influences`) and c the `level` quantile of the
    largest |t| of all places: Student's t with the correlations that the clusters show, and the
    fewest degrees of freedom of any place (arXiv 0804.3274 has the method; c is simulated). A place
    where all pairs agree has Wilson's bound of 0 of its clusters, for its share of the level; one
    with a single cluster has no bounds.

    Raises ValueError if the lengths differ or nothing is there.
    """
    places, means, influences, degrees, num_clusters = _by_place(differences, at, clusters)
    errors = np.linalg.norm(influences, axis=0)
    varies = errors > 1e-12
    half_widths = np.zeros(len(places))
    if varies.any():
        rng = np.random.default_rng(seed)
        normal = rng.standard_normal((samples, len(influences)))
        fewest = degrees[varies].min()
        scale = (rng.chisquare(fewest, size=samples) / fewest) ** 0.5
        largest = abs(normal @ influences[:, varies] / errors[varies]).max(1) / scale
        half_widths = np.quantile(largest, level) * errors
    z = NormalDist().inv_cdf(1 - (1 - level) / len(places) / 2)
    band = {}
    for place, mean, half, agrees, n in zip(
        places, means.tolist(), half_widths.tolist(), ~varies, num_clusters.tolist(), strict=True
    ):
        if n < 2:
            band[place] = Interval(mean, None, None)
            continue
        margin = wilson(0, n, z).high or 0 if agrees else half
        band[place] = Interval(mean, mean - margin, mean + margin).clipped(-1, 1)
    return band


def mean_band(
    values: np.ndarray, *, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> list[Interval]:
    """The mean over clusters at each place, with bounds that hold for all places together (max-t).

    values: [clusters, places], one of every cluster at every place. The band is mean -+ c s with
    the usual standard errors s and c the `level` quantile of the largest |t| of all places, of
    simulated clusters with the correlations of these. Every place has its own standard error in the
    simulation too: of few clusters they differ so much that one for all would be too narrow. A
    single cluster, and places where all are equal, have no bounds.
    """
    num_clusters, num_places = values.shape
    means = values.mean(0)
    if num_clusters < 2:
        return [Interval(float(mean), None, None) for mean in means]
    errors = values.std(0, ddof=1) / num_clusters**0.5
    varies = errors > 1e-12
    centred = (values - means)[:, varies] / (errors[varies] * num_clusters**0.5)
    rng = np.random.default_rng(seed)
    # Rows with the covariance centred^T centred, that of the clusters.
    noise = rng.standard_normal((samples, num_clusters, num_clusters))
    drawn = noise @ centred
    spread = drawn.std(1, ddof=1) / num_clusters**0.5
    half_widths = np.full(num_places, np.nan)
    if varies.any():
        largest = abs(drawn.mean(1) / spread).max(1)
        half_widths[varies] = np.quantile(largest, level) * errors[varies]
    return [
        Interval(mean, mean - half, mean + half) if half == half else Interval(mean, None, None)
        for mean, half in zip(means.tolist(), half_widths.tolist(), strict=True)
    ]


def mean_of_means(
    scores: Numbers,
    tasks: Sequence[Hashable],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
) -> tuple[Interval, float | None]:
    """The mean over tasks of their mean scores (0 to 1), with its t interval and standard error.

    All tasks have the same weight, however many questions they have. The influences of a cluster on
    the means of tasks (`ratio_influences`) add up, so that a cluster that several tasks share
    counts once. The degrees of freedom are K (1 - mean over tasks of sum(w^2)), with w the shares
    of a task's clusters: K - 1 where all tasks share all K clusters, less one for every task where
    they share none. Scores without any spread have Wilson's bounds. Where a task has one cluster,
    there is neither interval nor error.
    """
    _, means, influences, degrees, num_clusters = _by_place(scores, tasks, clusters)
    value = float(means.mean())
    if num_clusters.min() < 2:
        return Interval(value, None, None), None
    error = float(np.linalg.norm(influences.mean(1)))
    if error < 1e-12:
        return wilson(value * len(influences), len(influences)), 0.0
    half = student_t(level, len(influences) * (1 - (1 / (degrees + 1)).mean())) * error
    return Interval(value, value - half, value + half).clipped(0, 1), error


def _by_place(
    values: Numbers, at: Sequence[K], clusters: Sequence[Hashable]
) -> tuple[list[K], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places, and at each its mean, `ratio_influences` [clusters, places], number of clusters."""
    if not len(values) == len(at) == len(clusters) or not len(values):
        raise ValueError(
            f"{len(values)} values at {len(at)} places of {len(clusters)} clusters: all must be "
            "equally many, and at least one"
        )
    column, num_places = cluster_index(at)
    row, num_clusters = cluster_index(clusters)
    sums, counts = np.zeros((2, num_clusters, num_places))
    np.add.at(sums, (row, column), np.asarray(values, np.float64))
    np.add.at(counts, (row, column), 1.0)
    means, influences, degrees = ratio_influences(sums, counts)
    return list(dict.fromkeys(at)), means, influences, degrees, (counts > 0).sum(0)

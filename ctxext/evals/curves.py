"""Intervals for several numbers at once: a band for a whole curve, and a mean over tasks."""

from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import TypeVar

import numpy as np

from ctxext.evals.stats import Interval, Numbers, cluster_index, wilson

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

    differences: -1 to 1 per pair. at: the place of each, such as a length. Each draw weights whole
    clusters by Exponential(1) numbers (Bayesian bootstrap). With s the deviations of the drawn
    means and c the `level` quantile of max |drawn - mean| / s, the band is mean -+ c s. A place
    where all pairs agree has Wilson's bound of 0 of n, for its share of the level. Bounds are None
    with one cluster.

    Raises ValueError if the lengths differ or nothing is there.
    """
    places, means, drawn, num_clusters = _draw(differences, at, clusters, samples, seed)
    if num_clusters < 2:
        return {
            place: Interval(float(mean), None, None)
            for place, mean in zip(places, means, strict=True)
        }
    spread = drawn.std(0) * _spread_correction(num_clusters)
    varies = spread > 1e-12
    farthest = (abs(drawn - means)[:, varies] / drawn.std(0)[varies]).max(1, initial=0)
    half_widths = np.quantile(farthest, level) * spread
    z = NormalDist().inv_cdf(1 - (1 - level) / len(places) / 2)
    for i in np.flatnonzero(~varies):
        half_widths[i] = wilson(0, sum(place == places[i] for place in at), z).high or 0
    return {
        place: Interval(float(mean), float(max(-1, mean - half)), float(min(1, mean + half)))
        for place, mean, half in zip(places, means, half_widths, strict=True)
    }


def mean_of_means(
    scores: Numbers,
    tasks: Sequence[Hashable],
    clusters: Sequence[Hashable],
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Interval, float | None]:
    """The mean over tasks of their mean scores (0 to 1), with its interval and standard error.

    All tasks have the same weight, however many questions they have. A cluster that several tasks
    share is redrawn for all of them at once (Bayesian bootstrap). Scores that are all 0 or all 1
    have Wilson's bounds. With one cluster there is neither interval nor error.
    """
    _, means, drawn, num_clusters = _draw(scores, tasks, clusters, samples, seed)
    value = float(means.mean())
    if num_clusters < 2:
        return Interval(value, None, None), None
    if value in (0, 1):
        return wilson(round(value * num_clusters), num_clusters), 0.0
    wider = _spread_correction(num_clusters)
    quantiles = np.quantile(drawn.mean(1), [(1 - level) / 2, (1 + level) / 2])
    low, high = value + wider * (quantiles - value)
    interval = Interval(value, max(0.0, float(low)), min(1.0, float(high)))
    return interval, float(drawn.mean(1).std() * wider)


def _spread_correction(num_clusters: int) -> float:
    """Drawn means have (k - 1) / (k + 1) of the variance that means of k clusters have."""
    return ((num_clusters + 1) / (num_clusters - 1)) ** 0.5


def _draw(
    values: Numbers, at: Sequence[K], clusters: Sequence[Hashable], samples: int, seed: int
) -> tuple[list[K], np.ndarray, np.ndarray, int]:
    """Places, means [places], drawn means [samples, places], number of clusters."""
    if not len(values) == len(at) == len(clusters) or not len(values):
        raise ValueError(
            f"{len(values)} values at {len(at)} places of {len(clusters)} clusters: all must be "
            "equally many, and at least one"
        )
    places = list(dict.fromkeys(at))
    column, num_places = cluster_index(at)
    row, num_clusters = cluster_index(clusters)
    sums, counts = np.zeros((2, num_clusters, num_places))
    np.add.at(sums, (row, column), np.asarray(values, np.float64))
    np.add.at(counts, (row, column), 1.0)
    weights = np.random.default_rng(seed).exponential(size=(samples, num_clusters))
    means = sums.sum(0) / counts.sum(0)
    return places, means, (weights @ sums) / (weights @ counts), num_clusters

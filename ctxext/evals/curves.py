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
NO_SPREAD = 1e-12
"""Standard errors up to this are rounding errors."""


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
    varies = np.linalg.norm(influences, axis=0) > NO_SPREAD
    half_widths = max_t_half_widths(influences, degrees, samples=samples, seed=seed, level=level)
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


def max_t_half_widths(
    influences: np.ndarray,
    degrees: np.ndarray,
    *,
    samples: int = 4000,
    seed: int = 0,
    level: float = 0.95,
) -> np.ndarray:
    """Half widths [places] of a band that holds at all places together, see `simultaneous_band`.

    influences: [clusters, places], and degrees: [places], as `ratio_influences` gives them. The
    half width is 0 where nothing varies.
    """
    errors = np.linalg.norm(influences, axis=0)
    varies = errors > NO_SPREAD
    if not varies.any():
        return np.zeros(len(errors))
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((samples, len(influences)))
    fewest = degrees[varies].min()
    scale = (rng.chisquare(fewest, size=samples) / fewest) ** 0.5
    largest = abs(normal @ influences[:, varies] / errors[varies]).max(1) / scale
    return np.quantile(largest, level) * errors


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
    if error < NO_SPREAD:
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

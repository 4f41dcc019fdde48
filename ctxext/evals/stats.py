"""Intervals for rates, differences and ratios; everything random is seeded, and the unit of chance is the cluster."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

Numbers = Sequence[float | int] | np.ndarray
Z95 = 1.959963984540054


class Interval(NamedTuple):
    """An estimate and its bounds; the bounds are None where the data (one cluster) cannot give any."""

    value: float
    low: float | None
    high: float | None


def wilson(successes: int, trials: int, z: float = Z95) -> Interval:
    """Rate k/n with the Wilson score interval: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = k/n.

    Raises ValueError unless 0 <= k <= n and n > 0.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials is not a rate")
    p, n = successes / trials, trials
    centre = p + z * z / (2 * n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    # at k = 0 and k = n one bound is exactly 0 or 1, which rounding must not hide
    return Interval(p, 0.0 if successes == 0 else low, 1.0 if successes == trials else high)


def ratio_bootstrap(
    numerators: Numbers,
    denominators: Numbers,
    clusters: Sequence[Hashable] | None = None,
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """sum(numerators) / sum(denominators) with a percentile bootstrap interval that redraws whole clusters.

    Example: summed nats and token counts per window, clusters = documents. None: every entry is its own cluster.
    Raises ValueError if the lengths differ or nothing is there.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    keys = range(len(top)) if clusters is None else clusters
    if not len(top) == len(bottom) == len(keys) or not len(top):
        raise ValueError(f"{len(top)} numerators, {len(bottom)} denominators and {len(keys)} clusters: "
                         "all must be equally many, and at least one")  # fmt: skip
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    index = [number[key] for key in keys]
    tops, bottoms = np.bincount(index, top), np.bincount(index, bottom)
    value = float(tops.sum() / bottoms.sum())
    if len(number) < 2:
        return Interval(value, None, None)
    drawn = np.random.default_rng(seed).multinomial(len(number), np.full(len(number), 1 / len(number)), size=samples)
    low, high = np.quantile((drawn @ tops) / (drawn @ bottoms), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def paired_bootstrap(
    a: Numbers,
    b: Numbers,
    clusters: Sequence[Hashable] | None = None,
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """mean(b) - mean(a) over the same items in the same order, with a bootstrap interval that redraws clusters."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} items are not pairs: compare the items that both have")
    difference = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    ones = np.ones(len(difference))
    return ratio_bootstrap(difference, ones, clusters, samples=samples, seed=seed, level=level)

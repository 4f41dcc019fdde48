"""Intervals for rates, differences and ratios; everything random is seeded, and the unit of chance is the cluster."""

import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np

Numbers = Sequence[float | int] | np.ndarray
Z95 = 1.959963984540054


class Interval(NamedTuple):
    """An estimate and its bounds; the bounds are None where the data (one cluster) cannot give any.

    A format specification applies to each number: `f"{interval:.1f}"` is "3.4 [3.0, 4.0]".
    """

    value: float
    low: float | None
    high: float | None

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} {self.bounds(spec)}".rstrip()

    def bounds(self, spec: str, missing: str = "") -> str:
        """The bounds alone, such as "[3.0, 4.0]"; `missing` where there are none."""
        if self.low is None or self.high is None:
            return missing
        return f"[{self.low:{spec}}, {self.high:{spec}}]"

    def scaled(self, factor: float) -> "Interval":
        """The interval of `factor` (positive) times the quantity, such as percent of a share."""
        low = None if self.low is None else factor * self.low
        high = None if self.high is None else factor * self.high
        return Interval(factor * self.value, low, high)


def wilson(successes: int, trials: int, z: float = Z95, *, worth: float | None = None) -> Interval:
    """Rate k/n with the Wilson score interval: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = k/n.

    worth: how many independent trials they are worth, n in the interval. Raises ValueError unless 0 <= k <= n, n > 0.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials is not a rate")
    p, n = successes / trials, trials if worth is None else worth
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
        raise ValueError(
            f"{len(top)} numerators, {len(bottom)} denominators and {len(keys)} clusters: "
            "all must be equally many, and at least one"
        )
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    index = [number[key] for key in keys]
    tops, bottoms = np.bincount(index, top), np.bincount(index, bottom)
    value = float(tops.sum() / bottoms.sum())
    if len(number) < 2:
        return Interval(value, None, None)
    drawn = np.random.default_rng(seed).multinomial(
        len(number), np.full(len(number), 1 / len(number)), size=samples
    )
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
        raise ValueError(
            f"{len(a)} and {len(b)} items are not pairs: compare the items that both have"
        )
    difference = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    ones = np.ones(len(difference))
    return ratio_bootstrap(difference, ones, clusters, samples=samples, seed=seed, level=level)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar p-value: 2 P(X <= min(b, c)), X ~ binomial(b + c, 1/2), at most 1.

    only_a, only_b: items that one method has right and the other wrong. Raises ValueError for negative counts.
    """
    if min(only_a, only_b) < 0:
        raise ValueError(
            f"counts of discordant pairs cannot be negative, got {only_a} and {only_b}"
        )
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n)


def sign_flip(differences: Sequence[int], clusters: Sequence[Hashable]) -> float:
    """Exact two-sided p of paired differences if neither side is better: every cluster's sum is as often negative.

    P(|sum of +-D_k| >= |sum D_k|) over all signs; D_k: the sum of a cluster's differences (arXiv 2411.00640 wants the
    cluster to be the unit). With clusters of one and differences of -1, 0, 1 it is McNemar's exact test.
    """
    sums: dict[Hashable, int] = {}
    for difference, key in zip(differences, clusters, strict=True):
        sums[key] = sums.get(key, 0) + int(difference)
    sizes = [abs(value) for value in sums.values() if value]
    chance = np.ones(1)  # chance[i] is that of the sum i - len(chance) // 2
    for size in sizes:
        step = np.zeros(2 * size + 1)
        step[[0, -1]] = 0.5
        chance = np.convolve(chance, step)
    reach = np.abs(np.arange(len(chance)) - len(chance) // 2)
    return min(1.0, float(chance[reach >= abs(sum(sums.values()))].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order: the k-th smallest of m times m - k + 1, made increasing.

    Raises ValueError for what is no probability.
    """
    p, m = np.asarray(p_values, np.float64), len(p_values)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in 0..1, got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(m, 0, -1)))
    return adjusted.tolist()


class Effective(NamedTuple):
    """An effective length and its 95 % bounds, tokens.

    censored: ">" if the longest length tried is still above the bar, "<" if the shortest is already below it.
    """

    value: float
    low: float
    high: float
    censored: Literal["", ">", "<"]

    def __format__(self, spec: str) -> str:
        return f"{self.estimate(spec)} {self.bounds(spec)}"

    def estimate(self, spec: str) -> str:
        """The value alone, such as "> 4.0"."""
        return f"{self.censored} {self.value:{spec}}".lstrip()

    def bounds(self, spec: str) -> str:
        """The bounds alone, such as "[3.0, > 4.0]": open on the side that the lengths tried leave open."""
        low = "< " if self.censored == "<" else ""
        high = "> " if self.censored == ">" else ""
        return f"[{low}{self.low:{spec}}, {high}{self.high:{spec}}]"

    def in_units_of(self, length: float) -> "Effective":
        """The same in units of `length` tokens, such as windows of pre-training."""
        return Effective(self.value / length, self.low / length, self.high / length, self.censored)


def effective_length(
    lengths: Sequence[int],
    correct: Numbers,
    clusters: Sequence[Hashable],
    home: Numbers,
    home_clusters: Sequence[Hashable],
    *,
    tau: float = 0.85,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Effective:
    """The length up to which the rate stays at tau x the rate at home or above.

    Rates by length are made non-increasing (isotonic regression); `value` is where they cross the bar, interpolated in
    log2 length. Between two lengths that were tried nothing is known of the curve, so the bounds are lengths that were
    tried: each redraw of the clusters (of home, too, which may be another model) gives the last length above the bar
    and the first below it; `low` is a low quantile of the former, `high` a high one of the latter. Every redrawn rate
    has a Gamma(1/2)-weighted right and wrong answer added (Jeffreys), or else 40 of 40 would count as certain.
    lengths: tokens, an entry per item like `correct` and `clusters`; home: right or wrong per item of the comparison.
    With one cluster the bounds are all that was tried. Raises ValueError if the sequences do not fit each other or are
    empty, if nothing is right at home, and for a tau that is no part.
    """
    if not len(lengths) == len(correct) == len(clusters) or not len(home) == len(home_clusters):
        raise ValueError(
            "lengths, correct and clusters must be equally many, home and home_clusters too"
        )
    if not len(lengths) or not np.any(home):
        raise ValueError("an effective length needs answers, and right answers at home")
    if not 0 < tau <= 1:
        raise ValueError(
            f"tau is the part of the rate at home that counts as reading, 0 < tau <= 1; got {tau}"
        )
    tried = np.unique(lengths)
    right, asked = _by_cluster(clusters, np.searchsorted(tried, lengths), correct, len(tried))
    home_right, home_asked = _by_cluster(home_clusters, np.zeros(len(home), int), home, 1)
    rate = _non_increasing(right.sum(0)[None], asked.sum(0)[None])[0]
    bar = tau * home_right.sum() / home_asked.sum()
    above = int((rate >= bar).sum())
    if above in (0, len(tried)):
        value, censored = float(tried[0 if above == 0 else -1]), "<" if above == 0 else ">"
    else:
        share = (rate[above - 1] - bar) / (rate[above - 1] - rate[above])
        value, censored = (
            float(np.exp2(np.interp(share, [0, 1], np.log2(tried[above - 1 : above + 1])))),
            "",
        )
    if len(right) < 2 or len(home_right) < 2:
        return Effective(value, float(tried[0]), float(tried[-1]), censored)
    rng = np.random.default_rng(seed)

    def redraw(right: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        drawn = rng.multinomial(len(right), np.full(len(right), 1 / len(right)), size=samples)
        yes, no = rng.gamma(0.5, size=(2, samples, right.shape[1]))
        return drawn @ right + yes, drawn @ asked + yes + no

    there, here = redraw(right, asked), redraw(home_right, home_asked)
    counts = (_non_increasing(*there) >= tau * here[0] / here[1]).sum(-1)
    last, first = tried[np.maximum(counts - 1, 0)], tried[np.minimum(counts, len(tried) - 1)]
    low = np.quantile(last, (1 - level) / 2, method="lower")
    high = np.quantile(first, (1 + level) / 2, method="higher")
    return Effective(value, float(low), float(high), censored)


def _by_cluster(
    clusters: Sequence[Hashable], column: np.ndarray, correct: Numbers, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Right and asked, [clusters, lengths]."""
    number = {key: i for i, key in enumerate(dict.fromkeys(clusters))}
    right, asked = np.zeros((2, len(number), width))
    index = np.array([number[key] for key in clusters]), column
    np.add.at(right, index, np.asarray(correct, np.float64))
    np.add.at(asked, index, 1.0)
    return right, asked


def _non_increasing(right: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Isotonic rates [..., lengths]: at i, the least over j <= i of the greatest mean over j .. k, k >= i."""
    lengths = right.shape[-1]
    yes, total = (
        np.concatenate([np.zeros((*x.shape[:-1], 1)), np.cumsum(x, -1)], -1) for x in (right, asked)
    )
    out = np.full(right.shape, np.inf)
    for j in range(lengths):
        means = (yes[..., j + 1 :] - yes[..., j, None]) / (
            total[..., j + 1 :] - total[..., j, None]
        )
        greatest = np.maximum.accumulate(means[..., ::-1], -1)[..., ::-1]
        out[..., j:] = np.minimum(out[..., j:], greatest)
    return out

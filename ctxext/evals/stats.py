"""Intervals for rates, differences and ratios.

Clusters are the unit: items about one document are not independent. Whatever is random is seeded.
The few formulas that scipy has as well (Wilson, McNemar, isotonic regression) are written out:
scipy's versions know neither clusters nor effective sample sizes, and importing scipy.stats takes
longer than most reports. Tests hold ours to scipy's, and simulate how often each interval covers.
"""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

Numbers = Sequence[float | int] | np.ndarray
Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


class Interval(NamedTuple):
    """An estimate and its bounds, which are None where the data (one cluster) cannot give any.

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

    def clipped(self, least: float, most: float = math.inf) -> "Interval":
        """The interval of a quantity that cannot be below `least` or above `most`."""
        low = None if self.low is None else max(least, self.low)
        high = None if self.high is None else min(most, self.high)
        return Interval(self.value, low, high)

    def scaled(self, factor: float) -> "Interval":
        """The interval of `factor` (positive) times the quantity, such as percent of a share."""
        low = None if self.low is None else factor * self.low
        high = None if self.high is None else factor * self.high
        return Interval(factor * self.value, low, high)


def wilson(
    successes: float, trials: int, z: float = Z95, *, effective_trials: float | None = None
) -> Interval:
    """Rate p = k/n with the Wilson score interval.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). effective_trials: n in the interval,
    if the trials are not independent. k may be a sum of scores between 0 and 1: they vary less than
    right and wrong answers of the same mean. Raises ValueError unless 0 <= k <= n and n > 0.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials is not a rate")
    p = successes / trials
    n = trials if effective_trials is None else effective_trials
    centre = p + z * z / (2 * n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low = (centre - half) / (1 + z * z / n)
    high = (centre + half) / (1 + z * z / n)
    # At k = 0 and k = n one bound is exactly 0 or 1, which rounding must not hide.
    return Interval(p, 0.0 if successes == 0 else low, 1.0 if successes == trials else high)


def ratio_interval(
    numerators: Numbers,
    denominators: Numbers,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
) -> Interval:
    """R = sum(numerators) / sum(denominators), with a t interval over whole clusters.

    For example summed nats and token counts per window, with documents as clusters. None: every
    entry is its own cluster. The standard error and the degrees of freedom are those of
    `ratio_influences`. It covers with four clusters, where a percentile bootstrap holds the true
    value in 4 of 5 cases. A single cluster gives no bounds.

    Raises ValueError if the lengths differ or nothing is there.
    """
    top = np.asarray(numerators, np.float64)
    bottom = np.asarray(denominators, np.float64)
    keys = range(len(top)) if clusters is None else clusters
    if not len(top) == len(bottom) == len(keys) or not len(top):
        raise ValueError(
            f"{len(top)} numerators, {len(bottom)} denominators and {len(keys)} clusters: "
            "all must be equally many, and at least one"
        )
    index, _ = cluster_index(keys)
    tops = np.bincount(index, top)
    bottoms = np.bincount(index, bottom)
    value, influences, degrees = ratio_influences(tops, bottoms)
    if np.count_nonzero(bottoms) < 2:
        return Interval(float(value), None, None)
    half = student_t(level, float(degrees)) * float(np.linalg.norm(influences))
    return Interval(float(value), float(value) - half, float(value) + half)


def fieller_interval(
    numerators: Numbers,
    denominators: Numbers,
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
) -> Interval:
    """R = mean(numerators) / mean(denominators) of the same items, with Fieller's interval.

    The denominators are measured with an error too, so that an interval around R itself would be
    too narrow where they are small. The bounds are the ratios r at which mean(y - r x) is t
    standard errors from 0 (Fieller 1954): with variances and covariance over whole clusters
    (`ratio_influences`), those of (Y - r X)^2 = t^2 (Vyy - 2 r Vxy + r^2 Vxx).

    A ratio of means, since a mean of ratios is ruled by the items whose denominators are near 0. No
    bounds where the mean denominator is not significantly different from 0, or with one cluster.
    Raises ValueError if the lengths differ or nothing is there.
    """
    if not len(numerators) == len(denominators) == len(clusters) or not len(numerators):
        raise ValueError(
            f"{len(numerators)} numerators, {len(denominators)} denominators and {len(clusters)} "
            "clusters: all must be equally many, and at least one"
        )
    index, num_clusters = cluster_index(clusters)
    counts = np.bincount(index)[:, None].repeat(2, 1).astype(np.float64)
    sums = np.stack([np.bincount(index, np.asarray(x, float)) for x in (numerators, denominators)])
    (y, x), influences, (degrees, _) = ratio_influences(sums.T, counts)
    value = float(y / x) if x else math.nan
    if num_clusters < 2:
        return Interval(value, None, None)
    (yy, xy), (_, xx) = student_t(level, float(degrees)) ** 2 * (influences.T @ influences)
    square = x * x - xx
    root = (x * y - xy) ** 2 - square * (y * y - yy)
    if square <= 0 or root < 0:
        return Interval(value, None, None)
    centre, half = (x * y - xy) / square, root**0.5 / square
    return Interval(value, float(centre - half), float(centre + half))


def ratio_difference(
    a: tuple[Numbers, Numbers],
    b: tuple[Numbers, Numbers],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
) -> Interval:
    """R_b - R_a for (numerators, denominators) of the same items, with a t interval over clusters.

    R is a ratio of means. The influences of a cluster on both ratios (`ratio_influences`) are
    subtracted, so that what it does to both alike is in neither the difference nor its interval. No
    bounds with one cluster.
    """
    index, num_clusters = cluster_index(clusters)

    def summed(which: int) -> np.ndarray:
        columns = (np.bincount(index, np.asarray(side[which], float)) for side in (a, b))
        return np.stack(list(columns), 1)

    (of_a, of_b), influences, degrees = ratio_influences(summed(0), summed(1))
    value = float(of_b - of_a)
    if num_clusters < 2:
        return Interval(value, None, None)
    error = float(np.linalg.norm(influences[:, 1] - influences[:, 0]))
    half = student_t(level, float(degrees.min())) * error
    return Interval(value, value - half, value + half)


def ratio_influences(
    tops: np.ndarray, bottoms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratios R = sum(tops) / sum(bottoms), by how much each cluster moves them, degrees of freedom.

    tops, bottoms: [clusters, ...], summed along the first dimension. With w_k the share of cluster
    k in sum(bottoms), its influence is sqrt((K - 1) / K) (y_k - R x_k) / sum(x) / (1 - w_k): the
    root of their summed squares is the jackknife's standard error. There are 1 / sum(w_k^2) - 1
    degrees of freedom (Kish), so that a few large clusters count as the few that they are, but at
    least 1, which is enough for two clusters of any size. Clusters without a denominator do not
    count, and a single one has an influence of 0, as none is known.
    """
    total = bottoms.sum(0)
    ratios = tops.sum(0) / total
    shares = bottoms / total
    num_clusters = (bottoms != 0).sum(0)
    others = np.where(shares < 1, 1 - shares, 1)
    correction = ((num_clusters - 1) / num_clusters) ** 0.5
    influences = correction * (tops - ratios * bottoms) / total / others
    return ratios, influences, np.maximum(1, 1 / (shares**2).sum(0) - 1)


def student_t(level: float, degrees: float) -> float:
    """The two-sided quantile of Student's t at `level`, for any positive degrees of freedom."""
    from scipy.special import stdtrit  # a third of a second

    return float(stdtrit(degrees, (1 + level) / 2))


def cluster_index(keys: Sequence[Hashable] | range) -> tuple[np.ndarray, int]:
    """The number of each key's cluster, in order of appearance, and how many clusters there are."""
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], int), len(number)


def mean_difference(
    a: Numbers, b: Numbers, clusters: Sequence[Hashable] | None = None, *, level: float = 0.95
) -> Interval:
    """mean(b) - mean(a) over the same items in the same order, with a t interval over clusters.

    For scores of any kind; for right and wrong answers see `rate_difference`. Items that all differ
    by the same do not show how much items can differ, and give no bounds.
    """
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} and {len(b)} items are not pairs: compare the items that both have"
        )
    difference = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    interval = ratio_interval(difference, np.ones(len(difference)), clusters, level=level)
    return interval if np.ptp(difference) else Interval(interval.value, None, None)


def rate_difference(
    only_a: int, only_b: int, pairs: int, *, z: float = Z95, effective_pairs: float | None = None
) -> Interval:
    """The rate of b minus that of a over the same questions, with Tango's score interval.

    only_a, only_b: pairs of which only one is right. The bounds are the differences d at which
    |only_b - only_a - n d| = z sqrt(n (2 q + d (1 - d))), where q is the likeliest share of only_a
    given d (Tango 1998, 10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B). It
    covers with few discordant pairs, or none, for which it is -+ z^2 / (n + z^2). effective_pairs:
    n in the interval, if the pairs are not independent.

    Raises ValueError for negative counts and for more discordant pairs than pairs.
    """
    if min(only_a, only_b) < 0 or pairs < 1 or only_a + only_b > pairs:
        raise ValueError(f"{only_a} and {only_b} of {pairs} pairs are not discordant counts")
    n = pairs if effective_pairs is None else effective_pairs
    losses = only_a * n / pairs
    gains = only_b * n / pairs

    def standardized(d: float) -> float:
        linear = (2 * n - gains + losses) * d - gains - losses
        share = ((linear**2 + 8 * n * losses * d * (1 - d)) ** 0.5 - linear) / (4 * n)
        variance = n * (2 * share + d * (1 - d))
        distance = gains - losses - n * d
        return distance / max(variance, 1e-300) ** 0.5

    def root(target: float, low: float, high: float) -> float:
        for _ in range(60):  # it decreases with d
            middle = (low + high) / 2
            if standardized(middle) > target:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    value = (only_b - only_a) / pairs
    return Interval(value, root(z, -1.0, value), root(-z, value, 1.0))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar p-value: 2 P(X <= min(b, c)), X ~ binomial(b + c, 1/2), at most 1.

    only_a, only_b: items that one method has right and the other wrong. Raises ValueError for
    negative counts.
    """
    if min(only_a, only_b) < 0:
        raise ValueError(
            f"counts of discordant pairs cannot be negative, got {only_a} and {only_b}"
        )
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n)


def sign_flip(differences: Sequence[int], clusters: Sequence[Hashable]) -> float:
    """Exact two-sided p-value of paired differences, by flipping the sign of each cluster's sum.

    P(|sum of +-D_k| >= |sum D_k|) over all signs, where D_k is the sum of a cluster's differences:
    if neither side is better, it is as often negative (arXiv 2411.00640 asks for clusters as the
    unit). With clusters of one and differences of -1, 0 and 1 it is McNemar's exact test.
    """
    sums: dict[Hashable, int] = {}
    for difference, key in zip(differences, clusters, strict=True):
        sums[key] = sums.get(key, 0) + int(difference)
    probability = np.ones(1)  # [i]: that of the sum i - len(probability) // 2
    for size in (abs(value) for value in sums.values() if value):
        step = np.zeros(2 * size + 1)
        step[[0, -1]] = 0.5
        probability = np.convolve(probability, step)
    totals = np.abs(np.arange(len(probability)) - len(probability) // 2)
    return min(1.0, float(probability[totals >= abs(sum(sums.values()))].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order.

    The k-th smallest of m times m - k + 1, made increasing. Raises ValueError for a value that is
    not a probability.
    """
    p = np.asarray(p_values, np.float64)
    m = len(p_values)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be within 0 to 1, got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(m, 0, -1)))
    return adjusted.tolist()


class EffectiveLength(NamedTuple):
    """An effective length and its 95 % bounds, in tokens.

    censored: ">" if the longest length tried is still above the threshold, "<" if the shortest is
    already below it.
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
        """The bounds alone, such as "[3.0, > 4.0]": open where the lengths tried leave it open."""
        low = "< " if self.censored == "<" else ""
        high = "> " if self.censored == ">" else ""
        return f"[{low}{self.low:{spec}}, {high}{self.high:{spec}}]"

    def in_units_of(self, length: float) -> "EffectiveLength":
        """The same in units of `length` tokens, such as windows of pre-training."""
        return EffectiveLength(
            self.value / length, self.low / length, self.high / length, self.censored
        )


def effective_length(
    lengths: Sequence[int],
    correct: Numbers,
    clusters: Sequence[Hashable],
    baseline: Numbers,
    baseline_clusters: Sequence[Hashable],
    *,
    tau: float = 0.85,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> EffectiveLength:
    """The length up to which the rate of right answers stays above tau x that of the baseline.

    lengths: tokens, one entry per item like `correct` and `clusters`. baseline: right or wrong per
    item of the comparison, such as the base model in its own window.

    Rates by length are made non-increasing (isotonic regression); `value` is where they cross the
    threshold, interpolated in log2 length. Between two lengths that were tried nothing is known
    about the curve, so the bounds are lengths that were tried: each redraw of the clusters (also
    of the baseline, which may be another model) has a last length above the threshold and a first
    one below; `low` is a low quantile of the former, `high` a high one of the latter. Every
    redrawn rate has a Gamma(1/2)-weighted right and wrong answer added (Jeffreys), as otherwise 40
    of 40 would count as certain. The quantiles are further out the fewer clusters there are
    (`_expanded_tail`). With one cluster the bounds are the shortest and longest length.

    Raises ValueError if the sequences do not fit each other or are empty, if the baseline has
    nothing right, and for a tau outside (0, 1].
    """
    if not len(lengths) == len(correct) == len(clusters):
        raise ValueError("lengths, correct and clusters must be equally many")
    if len(baseline) != len(baseline_clusters):
        raise ValueError("baseline and baseline_clusters must be equally many")
    if not len(lengths) or not np.any(baseline):
        raise ValueError("an effective length needs answers, and right answers of the baseline")
    if not 0 < tau <= 1:
        raise ValueError(f"tau is a share of the baseline's rate, 0 < tau <= 1; got {tau}")
    tried = np.unique(lengths)
    column = np.searchsorted(tried, lengths)
    counts = _by_cluster(clusters, column, correct, len(tried))
    base_counts = _by_cluster(baseline_clusters, np.zeros(len(baseline), int), baseline, 1)
    right, total = counts
    base_right, base_total = base_counts
    rate = non_increasing(right.sum(0)[None], total.sum(0)[None])[0]
    value, censored = _crossing(tried, rate, tau * base_right.sum() / base_total.sum())
    if len(right) < 2 or len(base_right) < 2:
        return EffectiveLength(value, float(tried[0]), float(tried[-1]), censored)
    rng = np.random.default_rng(seed)
    drawn_right, drawn_total = _redraw(rng, *counts, samples)
    drawn_base_right, drawn_base_total = _redraw(rng, *base_counts, samples)
    thresholds = tau * drawn_base_right / drawn_base_total
    num_above = (non_increasing(drawn_right, drawn_total) >= thresholds).sum(-1)
    last_above = tried[np.maximum(num_above - 1, 0)]
    first_below = tried[np.minimum(num_above, len(tried) - 1)]
    tail = _expanded_tail(level, min(len(right), len(base_right)))
    low = np.quantile(last_above, tail, method="lower")
    high = np.quantile(first_below, 1 - tail, method="higher")
    return EffectiveLength(value, float(low), float(high), censored)


def _expanded_tail(level: float, num_clusters: int) -> float:
    """The tail to cut on each side of a percentile bootstrap, to make it as wide as Student's t.

    Phi(-t sqrt(k / (k - 1))) for k clusters: redrawn means vary less than means by a factor of
    (k - 1) / k, and a quantile takes that variance for known (arXiv 1411.5279, section 5.3).
    """
    quantile = student_t(level, num_clusters - 1) * (num_clusters / (num_clusters - 1)) ** 0.5
    return NormalDist().cdf(-quantile)


def _redraw(
    rng: np.random.Generator, right: np.ndarray, total: np.ndarray, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and questions [samples, lengths] of redrawn clusters, with Jeffreys' prior."""
    uniform = np.full(len(right), 1 / len(right))
    drawn = rng.multinomial(len(right), uniform, size=samples)
    more_right, more_wrong = rng.gamma(0.5, size=(2, samples, right.shape[1]))
    return drawn @ right + more_right, drawn @ total + more_right + more_wrong


def _crossing(
    tried: np.ndarray, rate: np.ndarray, threshold: float
) -> tuple[float, Literal["", ">", "<"]]:
    """Where non-increasing rates cross the threshold, and whether it is outside what was tried."""
    num_above = int((rate >= threshold).sum())
    if num_above == 0:
        return float(tried[0]), "<"
    if num_above == len(tried):
        return float(tried[-1]), ">"
    above, below = rate[num_above - 1], rate[num_above]
    share = (above - threshold) / (above - below)
    log_lengths = np.log2(tried[num_above - 1 : num_above + 1])
    return float(np.exp2(np.interp(share, [0, 1], log_lengths))), ""


def _by_cluster(
    clusters: Sequence[Hashable], column: np.ndarray, correct: Numbers, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of right answers and of questions, [clusters, lengths]."""
    row, num_clusters = cluster_index(clusters)
    right, total = np.zeros((2, num_clusters, width))
    np.add.at(right, (row, column), np.asarray(correct, np.float64))
    np.add.at(total, (row, column), 1.0)
    return right, total


def non_increasing(right: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Isotonic regression of the rates [..., lengths], non-increasing, for many draws at once.

    At i: the least over j <= i of the greatest mean over j .. k, k >= i.
    """
    lengths = right.shape[-1]
    zero = np.zeros((*right.shape[:-1], 1))
    sum_right = np.concatenate([zero, np.cumsum(right, -1)], -1)
    sum_total = np.concatenate([zero, np.cumsum(total, -1)], -1)
    out = np.full(right.shape, np.inf)
    for j in range(lengths):
        num_right = sum_right[..., j + 1 :] - sum_right[..., j, None]
        num_total = sum_total[..., j + 1 :] - sum_total[..., j, None]
        means = num_right / num_total
        greatest = np.maximum.accumulate(means[..., ::-1], -1)[..., ::-1]
        out[..., j:] = np.minimum(out[..., j:], greatest)
    return out

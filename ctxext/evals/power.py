"""Power: which differences a number of questions can show, and what shared texts cost."""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

from ctxext.evals.stats import Numbers, cluster_index

LEVEL = 0.05
"""Of significance, two-sided."""


def required_pairs(
    effect: float, *, discordant: float = 0.1, power: float = 0.8, level: float = 0.05
) -> int:
    """Pairs that McNemar's test needs to detect a difference d in rate.

    (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2 (Connor 1987). effect: d, 0 < d <= 1. discordant:
    the share psi of pairs of which one is right and the other wrong, raised to d if it is less, as
    no difference is larger. level: two-sided. It is the normal approximation: where it gives a
    power of 0.8, the exact test has 0.74 to 0.8.

    Raises ValueError for an effect or a share outside its range.
    """
    if not 0 < effect <= 1 or not 0 <= discordant <= 1:
        raise ValueError(
            f"effect must be in (0, 1] and discordant in [0, 1], got {effect} and {discordant}"
        )
    return math.ceil(_pairs(effect, discordant, power, level) - 1e-9)


def detectable(
    n: float, *, discordant: float = 0.1, power: float = 0.8, level: float = 0.05
) -> float:
    """The smallest difference in rate that `n` independent pairs show, inverse of `required_pairs`.

    inf where even a difference of 1 would not be shown.
    """
    if not 0 <= discordant <= 1:
        raise ValueError(f"discordant must be in [0, 1], got {discordant}")
    if n <= 0 or _pairs(1.0, discordant, power, level) > n:
        return math.inf
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _pairs(middle, discordant, power, level) <= n:
            high = middle
        else:
            low = middle
    return high


def _pairs(effect: float, discordant: float, power: float, level: float) -> float:
    psi = max(discordant, effect)
    z_level = NormalDist().inv_cdf(1 - level / 2)
    z_power = NormalDist().inv_cdf(power)
    return ((z_level * math.sqrt(psi) + z_power * math.sqrt(psi - effect**2)) / effect) ** 2


def icc(values: Numbers, clusters: Sequence[Hashable]) -> float:
    """Intra-cluster correlation: how alike the values of one cluster are, by the ANOVA estimator.

    (MSB - MSW) / (MSB + (m - 1) MSW) with m = (N - sum n_i^2 / N) / (k - 1) for k clusters of n_i
    values. 0 where it has no meaning: a single cluster, clusters of one, values that are all equal.
    Raises ValueError if the lengths differ.
    """
    x, index, sizes = _clustered(values, clusters)
    k = len(sizes)
    if not 1 < k < len(x):
        return 0.0
    means = np.bincount(index, x) / sizes
    between = (sizes * (means - x.mean()) ** 2).sum() / (k - 1)
    within = ((x - means[index]) ** 2).sum() / (len(x) - k)
    m = (len(x) - (sizes**2).sum() / len(x)) / (k - 1)
    whole = between + (m - 1) * within
    return float((between - within) / whole) if whole > 0 else 0.0


def design_effect(size: float, rho: float) -> float:
    """Kish's design effect, 1 + (K - 1) rho: the variance of a mean over clusters of K values,
    relative to independent values."""
    return 1 + (size - 1) * max(0.0, rho)


def effective_sample_size(values: Numbers, clusters: Sequence[Hashable]) -> float:
    """The number of independent values that are as informative: N / design effect.

    The cluster size in it is the mean that a value sees. A single cluster counts as one.
    """
    x, _, sizes = _clustered(values, clusters)
    if len(sizes) == 1:
        return 1.0
    return len(x) / design_effect((sizes**2).sum() / len(x), icc(values, clusters))


def effective_trials(hits: Numbers, texts: Sequence[Hashable]) -> float:
    """The number of independent questions that are as informative, where some share a text.

    If all are right or all are wrong, nothing shows how alike they are: each text counts as one.
    """
    num_texts = len(set(texts))
    if num_texts == len(texts):
        return num_texts
    return num_texts if len(set(hits)) == 1 else effective_sample_size(hits, texts)


def _clustered(
    values: Numbers, clusters: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, the cluster's number of each, and the sizes of the clusters."""
    if len(values) != len(clusters) or not len(values):
        raise ValueError(
            f"{len(values)} values and {len(clusters)} clusters: as many of both, and at least one"
        )
    index, _ = cluster_index(clusters)
    return np.asarray(values, np.float64), index, np.bincount(index)


def least_p(num_texts: int) -> float:
    """The smallest p-value of the exact test that flips the signs of so many texts: 2 / 2^n."""
    return 2.0 ** (1 - num_texts)


def plan_sentence(num_items: int, num_texts: int, *, depths: int = 1) -> str:
    """Say which differences `num_items` questions per length about `num_texts` texts can show.

    For example: 20 questions per depth, 100 per length, can tell methods apart that differ by 9
    points or more (80 % power, if 10 % of the answers differ). Where questions share texts, both
    extremes are given: all independent, and all answers about a text the same. Of five texts or
    fewer no test can show anything, which is said instead.
    """
    counts = f"{num_items} questions per length"
    if depths > 1:
        counts = f"{num_items // depths} questions per depth, {num_items} per length"
    is_shared = num_texts != num_items
    if is_shared:
        counts += f" about {num_texts} texts"
    if_independent = detectable(num_items)
    if_together = detectable(num_texts)
    if least_p(num_texts) > LEVEL or not math.isfinite(if_independent):
        too_few = f"{counts}: too few{' texts' * is_shared} to tell any two methods apart"
        if not is_shared:
            return f"{too_few}."
        return (
            f"{too_few} by a test, whose p is at least {least_p(num_texts):.2g} then; the "
            "intervals say what can be said."
        )
    points = f"{_points(if_independent)} points or more"
    if is_shared:
        points += " if the questions about one text are independent"
    differ = "10 % of the answers differ"
    if if_independent > 0.1 or (is_shared and if_together > 0.1):
        differ += ", or as many as it takes"
    sentence = f"{counts}, can tell methods apart that differ by {points}"
    if not is_shared:
        return f"{sentence} (80 % power, if {differ})."
    together = "no difference is detectable"
    if math.isfinite(if_together) and _points(if_together) < 100:
        together = f"it takes {_points(if_together)} points"
    return f"{sentence} (80 % power, if {differ}); {together} if all answers about a text agree."


def _points(share: float) -> int:
    return math.ceil(100 * share - 1e-9)

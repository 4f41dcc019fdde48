"""What a number of questions can show: the smallest difference, the questions it takes, and what shared texts cost."""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

from ctxext.evals.stats import Numbers


def needed(
    effect: float, *, discordant: float = 0.1, power: float = 0.8, level: float = 0.05
) -> int:
    """Pairs for McNemar's test to find a difference in rate: (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2.

    effect: d, 0 < d <= 1; discordant: the share psi of pairs of which one is right and the other wrong, raised to d if
    it is less, as no difference is larger; level: two-sided. The normal approximation (Connor 1987): the exact test
    finds such a difference in 0.74 to 0.8 of all cases where this says 0.8. Raises ValueError for what is no share.
    """
    if not 0 < effect <= 1 or not 0 <= discordant <= 1:
        raise ValueError(
            f"the effect must lie in (0, 1] and discordant in [0, 1], got {effect} and {discordant}"
        )
    return math.ceil(_pairs(effect, discordant, power, level) - 1e-9)


def detectable(
    n: float, *, discordant: float = 0.1, power: float = 0.8, level: float = 0.05
) -> float:
    """The smallest difference in rate that `n` independent pairs show: what `needed` is the inverse of.

    inf where even all against none would not be shown.
    """
    if not 0 <= discordant <= 1:
        raise ValueError(f"discordant must lie in [0, 1], got {discordant}")
    if n <= 0 or _pairs(1.0, discordant, power, level) > n:
        return math.inf
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if _pairs(middle, discordant, power, level) <= n else (middle, high)
        )
    return high


def _pairs(effect: float, discordant: float, power: float, level: float) -> float:
    psi = max(discordant, effect)
    alpha, beta = NormalDist().inv_cdf(1 - level / 2), NormalDist().inv_cdf(power)
    return ((alpha * math.sqrt(psi) + beta * math.sqrt(psi - effect**2)) / effect) ** 2


def intra_cluster(values: Numbers, clusters: Sequence[Hashable]) -> float:
    """How alike values of one cluster are: the ANOVA estimator (MSB - MSW) / (MSB + (m - 1) MSW) of the correlation.

    m = (N - sum n_i^2 / N) / (k - 1) for k clusters of n_i values. 0 where it has no meaning: one cluster, clusters of
    one, values that are all equal. Raises ValueError if the lengths differ.
    """
    x, k, sizes, index = _clustered(values, clusters)
    if not 1 < k < len(x):
        return 0.0
    means = np.bincount(index, x) / sizes
    between = (sizes * (means - x.mean()) ** 2).sum() / (k - 1)
    within = ((x - means[index]) ** 2).sum() / (len(x) - k)
    m = (len(x) - (sizes**2).sum() / len(x)) / (k - 1)
    whole = between + (m - 1) * within
    return float((between - within) / whole) if whole > 0 else 0.0


def design_effect(size: float, rho: float) -> float:
    """By how much `size` questions about one text vary more than as many independent ones: 1 + (K - 1) rho (Kish)."""
    return 1 + (size - 1) * max(0.0, rho)


def independent(values: Numbers, clusters: Sequence[Hashable]) -> float:
    """How many independent values these are worth: N / design effect, with the mean size that a value sees."""
    x, k, sizes, _ = _clustered(values, clusters)
    return (
        1.0
        if k == 1
        else len(x) / design_effect((sizes**2).sum() / len(x), intra_cluster(values, clusters))
    )


def worth(hits: Numbers, texts: Sequence[Hashable]) -> float:
    """How many independent questions these are worth, where some share a text.

    Where all are right or all are wrong nothing tells how alike they are: each text counts as one.
    """
    if len(set(texts)) == len(texts):
        return len(texts)
    return len(set(texts)) if len(set(hits)) == 1 else independent(hits, texts)


def _clustered(
    values: Numbers, clusters: Sequence[Hashable]
) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
    if len(values) != len(clusters) or not len(values):
        raise ValueError(
            f"{len(values)} values and {len(clusters)} clusters: as many of both, and at least one"
        )
    number = {key: i for i, key in enumerate(dict.fromkeys(clusters))}
    index = np.array([number[key] for key in clusters])
    return np.asarray(values, np.float64), len(number), np.bincount(index), index


def plan_sentence(n_items: int, n_texts: int, *, depths: int = 1) -> str:
    """What `n_items` questions at a length about `n_texts` texts will be able to show.

    As in: 20 questions a cell, 100 a length, tell methods apart that differ by 9 points or more at a length (80 %
    power, if 10 % of the answers differ). Where questions share texts both ends are said: independent, and one unit.
    """
    alone, together = detectable(n_items), detectable(n_texts)
    cell = (
        f"{n_items // depths} questions a cell, {n_items} a length"
        if depths > 1
        else f"{n_items} questions a length"
    )
    if not math.isfinite(together if n_texts == n_items else alone):
        return f"{cell}: too few to tell any two methods apart."
    about = "" if n_texts == n_items else f" about {n_texts} texts"
    shared = (
        ""
        if n_texts == n_items
        else (
            " if the questions about one text are independent, by "
            f"{_points(together)} if they are right or wrong together"
            if math.isfinite(together)
            else " if the questions about one text are independent, none if they are right or wrong together"
        )
    )
    differ = "10 % of the answers differ" + (
        ", or as many as it takes" if max(alone, together) > 0.1 else ""
    )
    return (
        f"{cell}{about}, tell methods apart that differ by {_points(alone)} points or more at a length{shared} "
        f"(80 % power, if {differ})."
    )


def _points(share: float) -> int:
    return math.ceil(100 * share - 1e-9)

"""How often 95 % intervals hold the true value, by simulation: the table of docs/evaluation.md.

`python tests/evals/test_coverage.py` prints it.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

from ctxext.evals.curves import mean_band, mean_of_means, simultaneous_band
from ctxext.evals.power import effective_trials
from ctxext.evals.record import AnswerRecord
from ctxext.evals.stats import (
    Interval,
    effective_length,
    fieller_interval,
    ratio_interval,
    wilson,
)
from ctxext.report.analysis.comparisons import paired_points
from support.planted import passkey_record
from support.records import changed

DOCUMENTS = (4, 8, 16, 32)
PAGE = Path(__file__).parents[2] / "docs/evaluation.md"
PER_DOCUMENT = 5
"""Questions per document, right or wrong together to a degree."""
Rng = np.random.Generator


def alike(rng: Rng, *shape: int, correlation: float = 0.4) -> np.ndarray:
    """Uniform numbers [..., documents, questions], correlated within a document."""
    shared = rng.standard_normal((*shape[:-1], 1))
    own = rng.standard_normal(shape)
    return ndtr(correlation**0.5 * shared + (1 - correlation) ** 0.5 * own)


def holds(interval: Interval, truth: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


def losses(rng: Rng, num_documents: int, spread_of_lengths: float) -> tuple[np.ndarray, np.ndarray]:
    """Summed losses and tokens of documents whose mean losses are skewed, with a mean of 1.4."""
    tokens = np.exp(rng.normal(6, spread_of_lengths, num_documents)).round() + 1
    means = 1.4 * np.exp(rng.normal(-(0.25**2) / 2, 0.25, num_documents))
    return tokens * means, tokens


def loss(rng: Rng, num_documents: int) -> bool:
    return holds(ratio_interval(*losses(rng, num_documents, 0)), 1.4)


def loss_of_different_lengths(rng: Rng, num_documents: int) -> bool:
    return holds(ratio_interval(*losses(rng, num_documents, 1)), 1.4)


def percentile_bootstrap(rng: Rng, num_documents: int) -> bool:
    """Not used: what the first row would be."""
    tops, bottoms = losses(rng, num_documents, 0)
    drawn = rng.multinomial(num_documents, np.full(num_documents, 1 / num_documents), size=500)
    low, high = np.quantile((drawn @ tops) / (drawn @ bottoms), [0.025, 0.975])
    return low <= 1.4 <= high


def rate(rng: Rng, num_documents: int) -> bool:
    """80 % right."""
    hits = (alike(rng, num_documents, PER_DOCUMENT) < 0.8).ravel()
    texts = np.repeat(np.arange(num_documents), PER_DOCUMENT).tolist()
    trials = effective_trials(hits.tolist(), texts)
    return holds(wilson(int(hits.sum()), hits.size, effective_trials=trials), 0.8)


ANSWERS: dict[tuple[int, int, bool], AnswerRecord] = {}


def answer(document: int, question: int, correct: bool) -> AnswerRecord:
    """A record of that question; made once, as making records takes longer than the statistics."""
    key = (document, question, correct)
    if key not in ANSWERS:
        record = passkey_record("", 0, 1024, 0.5, PER_DOCUMENT * document + question, correct)
        ANSWERS[key] = changed(record, document=document)
    return ANSWERS[key]


def difference(rng: Rng, num_documents: int, only_a: float, only_b: float) -> bool:
    uniform = alike(rng, num_documents, PER_DOCUMENT)
    signs = (uniform > 1 - only_b).astype(int) - (uniform < only_a)
    pairs = [
        (answer(document, question, sign < 0), answer(document, question, sign > 0))
        for (document, question), sign in np.ndenumerate(signs)
    ]
    return holds(paired_points(pairs), 100 * (only_b - only_a))


def large_difference(rng: Rng, num_documents: int) -> bool:
    """10 % of the answers differ one way and 30 % the other."""
    return difference(rng, num_documents, 0.1, 0.3)


def few_differ(rng: Rng, num_documents: int) -> bool:
    """2 % of the answers differ, all the same way."""
    return difference(rng, num_documents, 0.0, 0.02)


def band(rng: Rng, num_documents: int) -> bool:
    """Differences at four lengths, all held together."""
    truth = (0.0, 0.1, 0.2, 0.3)
    uniform = alike(rng, num_documents, len(truth) * PER_DOCUMENT)
    places = np.tile(np.repeat(np.arange(len(truth)), PER_DOCUMENT), num_documents)
    where = np.repeat(np.arange(num_documents), len(truth) * PER_DOCUMENT).tolist()
    half = np.array(truth)[places] / 2
    flat = uniform.ravel()
    signs = (flat > 0.75 - half).astype(int) - (flat < 0.25 - half)
    intervals = simultaneous_band(signs, places.tolist(), where, samples=500)
    return all(holds(intervals[place], value) for place, value in enumerate(truth))


def suite_mean(rng: Rng, num_documents: int) -> bool:
    """Four tasks over the same documents."""
    rates = np.array([0.3, 0.6, 0.8, 0.95])
    hits = alike(rng, num_documents, 4) < rates
    tasks = list(range(4)) * num_documents
    where = np.repeat(np.arange(num_documents), 4).tolist()
    interval, _ = mean_of_means(hits.ravel(), tasks, where)
    return holds(interval, float(rates.mean()))


def length(rng: Rng, num_documents: int) -> bool:
    """A rate of 90 % that falls with the length, and is 0.85 of that between two lengths asked."""
    lengths = np.array([256, 512, 768, 1024])
    rates = 0.9 / (1 + np.exp(4 * (np.log2(lengths) - 9.7)))
    truth = 2 ** (9.7 + np.log(1 / 0.85 - 1) / 4)
    hits = alike(rng, num_documents, 4 * PER_DOCUMENT) < np.repeat(rates, PER_DOCUMENT)
    baseline = alike(rng, num_documents, PER_DOCUMENT) < 0.9
    at = np.tile(np.repeat(lengths, PER_DOCUMENT), num_documents).tolist()
    where = np.repeat(np.arange(num_documents), 4 * PER_DOCUMENT).tolist()
    base_where = np.repeat(np.arange(num_documents), PER_DOCUMENT).tolist()
    effective = effective_length(at, hits.ravel(), where, baseline.ravel(), base_where, samples=300)
    return effective.low <= truth <= effective.high


def recovery(rng: Rng, num_documents: int) -> bool:
    """What a needle alone gives differs between texts, and what is left of it between needles."""
    shape = (num_documents, PER_DOCUMENT)
    of_text = rng.standard_normal((num_documents, 1))
    alone = np.exp(rng.normal(2.2, 0.25, shape) + 0.15 * of_text)
    left = 0.85 + 0.15 * rng.standard_normal(shape) + 0.05 * of_text
    clusters = np.repeat(np.arange(num_documents), PER_DOCUMENT).tolist()
    interval = fieller_interval((left * alone).ravel(), alone.ravel(), clusters)
    # E[left alone] / E[alone], of which E[z exp(a z)] / E[exp(a z)] = a.
    return holds(interval, 0.85 + 0.05 * 0.15)


def books(rng: Rng, num_documents: int) -> bool:
    """Chapters differ in difficulty, and those of one book are alike."""
    of_book = 0.1 * rng.standard_normal((num_documents, 1))
    rises = 0.05 + of_book + 0.1 * rng.standard_normal((num_documents, 8))
    return all(holds(interval, 0.05) for interval in mean_band(rises))


ROWS: dict[str, Callable[[Rng, int], bool]] = {
    "a loss, a perplexity: Student's t over documents": loss,
    "the same, of documents of very different lengths": loss_of_different_lengths,
    "a rate, 80 %: Wilson's": rate,
    "a difference of rates, +20 points: Tango's": large_difference,
    "the same where 2 % of the answers differ": few_differ,
    "a curve of differences, four lengths together: max-t": band,
    "a mean over four tasks: Student's t": suite_mean,
    "an effective context length: bootstrap, expanded": length,
    "a recovery, 86 %: Fieller's": recovery,
    "books, eight positions together: max-t": books,
    "*not used:* percentile bootstrap of a loss": percentile_bootstrap,
}


def coverage(row: str, num_documents: int, draws: int) -> float:
    rng = np.random.default_rng(num_documents)
    return float(np.mean([ROWS[row](rng, num_documents) for _ in range(draws)]))


def documented() -> dict[str, list[float]]:
    """The rows of the table in docs/evaluation.md."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|")
    ]
    return {first: [float(x) for x in others] for first, *others in lines if first in ROWS}


def test_the_documented_coverage_is_that_of_intervals_of_95_percent():
    table = documented()
    assert list(table) == list(ROWS)
    for row, shares in table.items():
        assert len(shares) == len(DOCUMENTS)
        if not row.startswith("*not used"):
            assert min(shares) >= 0.9
            assert min(shares[1:]) >= 0.92


TAKES_LONG = "books, eight positions together: max-t"


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=pytest.mark.slow if row == TAKES_LONG else pytest.mark.check)
        for row in ROWS
    ],
)
def test_simulated_coverage_is_as_documented(row: str):
    simulated = [coverage(row, n, 1000) for n in DOCUMENTS]
    assert simulated == pytest.approx(documented()[row], abs=0.021)


if __name__ == "__main__":
    for row in ROWS:
        print(f"| {row} |", " | ".join(f"{coverage(row, n, 1500):.2f}" for n in DOCUMENTS), "|")

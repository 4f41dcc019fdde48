"""The band for a whole curve and the mean over tasks: compared with scipy, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from ctxext.evals.curves import mean_of_means, simultaneous_band
from ctxext.evals.stats import mean_difference, wilson


def planted(rng, *, clusters=40, per=3, truth=(0.0, 0.1, 0.25, 0.4)):
    """Differences of -1, 0 and 1 at four lengths, correlated within each document."""
    document = np.repeat(np.arange(clusters), per)
    luck = rng.normal(size=clusters)[document] * 0.5**0.5
    values = []
    places = []
    where = []
    for place, mean in enumerate(truth):
        u = stats.norm.cdf(luck + rng.normal(size=len(document)) * 0.5**0.5)
        values += [(u > 0.75 - mean / 2).astype(int) - (u < 0.25 - mean / 2)]
        places += [place] * len(document)
        where += document.tolist()
    return np.concatenate(values), places, where


def test_the_band_covers_the_whole_curve_and_single_intervals_do_not():
    rng = np.random.default_rng(0)
    covered = 0
    alone = 0
    truth = (0.0, 0.1, 0.25, 0.4)
    for trial in range(300):
        values, places, where = planted(rng)
        band = simultaneous_band(values, places, where, seed=trial, samples=500)
        covered += all(band[i].low <= truth[i] <= band[i].high for i in range(4))
        single = []
        for i in range(4):
            here = np.array(places) == i
            documents = np.array(where)[here].tolist()
            zeros = np.zeros(here.sum())
            single.append(mean_difference(zeros, values[here], documents))
        alone += all(x.low <= t <= x.high for x, t in zip(single, truth, strict=True))
    assert 0.92 <= covered / 300 <= 0.98
    assert alone / 300 < covered / 300 - 0.05


def test_one_place_is_the_usual_interval_of_a_mean():
    values = np.random.default_rng(1).integers(-1, 2, size=200)
    interval = simultaneous_band(values, [7] * 200, list(range(200)), samples=20000)[7]
    low, high = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    np.testing.assert_allclose(interval, [values.mean(), low, high], atol=0.004)


def test_pairs_that_all_agree_are_not_certain():
    band = simultaneous_band([0] * 30 + [1, 0] * 15, [1] * 30 + [2] * 30, list(range(30)) * 2)
    # The level is shared by two places.
    z = stats.norm.isf(0.0125)
    np.testing.assert_allclose(band[1], [0, -wilson(0, 30, z).high, wilson(0, 30, z).high])
    assert simultaneous_band([1, 0], [1, 1], ["a", "a"])[1] == (0.5, None, None)
    assert simultaneous_band([1, 1], [1, 1], ["a", "b"])[1].high == 1
    with pytest.raises(ValueError, match="equally many"):
        simultaneous_band([], [], [])


def test_a_mean_over_tasks_by_hand():
    scores = [1, 1, 0, 0, 1, 0.5]
    tasks = ["a", "a", "a", "a", "b", "b"]
    mean, error = mean_of_means(scores, tasks, list(range(6)))
    assert mean.value == pytest.approx((0.5 + 0.75) / 2)
    assert error is not None
    assert mean_of_means(scores, tasks, [0] * 6) == ((pytest.approx(0.625), None, None), None)
    assert mean_of_means([1] * 6, tasks, list(range(6))) == (wilson(6, 6), 0)


def test_the_standard_error_over_thirteen_tasks_has_its_known_value():
    """Thirteen tasks at 90 %: 1.9 points with 20 questions each, 0.8 with 100 (binomial)."""
    rng = np.random.default_rng(2)
    for n in (20, 100):
        scores = rng.random(13 * n) < 0.9
        tasks = np.repeat(np.arange(13), n).tolist()
        p = scores.reshape(13, n).mean(1)
        expected = np.sqrt((p * (1 - p) / (n - 1)).sum()) / 13
        _, error = mean_of_means(scores, tasks, list(range(13 * n)))
        assert error == pytest.approx(expected, rel=0.08)
        assert error == pytest.approx((0.09 / n / 13) ** 0.5, rel=0.3)


def test_a_mean_over_tasks_that_share_nothing_is_that_of_their_variances():
    """Three questions per task: sqrt(sum of s^2 / n) / tasks, whatever the number of tasks."""
    scores = np.random.default_rng(4).random((5, 3))
    _, error = mean_of_means(scores.ravel(), np.repeat(np.arange(5), 3).tolist(), list(range(15)))
    assert error == pytest.approx(np.sqrt((stats.sem(scores, axis=1) ** 2).sum()) / 5)


def test_a_mean_over_tasks_that_share_all_documents_is_a_t_interval():
    scores = np.random.default_rng(5).random((2, 6))
    where = [*range(6), *range(6)]
    interval, _ = mean_of_means(scores.ravel(), [0] * 6 + [1] * 6, where)
    expected = stats.ttest_1samp(scores.mean(0), 0).confidence_interval()
    np.testing.assert_allclose(interval[1:], [expected.low, expected.high])


def test_the_band_of_few_documents_is_wide():
    """With one place it is the t interval of its documents, however few there are."""
    values = [-1, 0, 0, 1]
    interval = simultaneous_band(values, [7] * 4, list(range(4)), samples=40000)[7]
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    np.testing.assert_allclose(interval[1:], [-1, 1])
    spread = simultaneous_band(np.array(values) / 10, [7] * 4, list(range(4)), samples=40000)[7]
    np.testing.assert_allclose(spread[1:], [expected.low / 10, expected.high / 10], rtol=0.03)


def test_the_mean_over_tasks_covers_where_tasks_share_documents():
    rng = np.random.default_rng(3)
    covered = 0
    naive = 0
    rates = np.array([0.3, 0.6, 0.8, 0.95])
    for _ in range(300):
        luck = rng.normal(size=30)
        quantiles = np.array(
            [stats.norm.cdf(0.7 * luck + 0.51**0.5 * rng.normal(size=30)) for _ in rates]
        )
        scores = (stats.norm.cdf(stats.norm.ppf(quantiles), scale=1) < rates[:, None]).ravel()
        tasks = np.repeat(np.arange(4), 30).tolist()
        where = np.tile(np.arange(30), 4).tolist()
        for i, clusters in enumerate((where, list(range(120)))):
            mean, _ = mean_of_means(scores, tasks, clusters)
            hit = mean.low <= rates.mean() <= mean.high
            if i == 0:
                covered += hit
            else:
                naive += hit
    assert 0.91 <= covered / 300 <= 0.98
    assert naive / 300 < covered / 300 - 0.05

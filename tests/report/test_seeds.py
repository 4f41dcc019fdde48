"""Several training seeds in one table: counts by hand, intervals by scipy, refusals."""

import json

import numpy as np
import pytest
from statsmodels.regression.linear_model import OLS

from ctxext.cli.main import main
from ctxext.evals.record import read_records
from ctxext.evals.stats import sign_flip
from ctxext.files import write_json
from ctxext.report import repeated_seeds
from ctxext.report.analysis.results import Results
from ctxext.report.analysis.runs import read_runs
from ctxext.report.analysis.seeds import across_seeds
from ctxext.report.pages.seeds import seed_tables
from support.planted import chance, passkey_record, write_records
from support.records import changed

RATES = {"none": 0.2, "yarn(factor=4)": 0.7}


def run_of(path, seed, *, n=40, ropes=RATES, prompt=""):
    """Write the records of a run with this training seed, and return its directory."""
    records = []
    for rope, rate in ropes.items():
        for seq_len in (256, 1024):
            for i in range(n):
                correct = chance(rope, i // 2, i % 2 and seed) < rate
                records.append(passkey_record(rope, 48, seq_len, 0.5, i, correct))
    records = [changed(r, prompt_sha256=r.question.prompt_sha256 + prompt) for r in records]
    # Zero-shot: no seed decides it.
    records += [passkey_record("none", 0, 1024, 0.5, i, True) for i in range(n)]
    write_records(path, records)
    write_json(path / "config.json", {"seed": seed})
    return path


def answers(seed, rope, n=40):
    return np.array([chance(rope, i // 2, i % 2 and seed) < RATES[rope] for i in range(n)])


def test_counts_rates_and_paired_differences(tmp_path):
    (results,) = across_seeds([run_of(tmp_path / str(seed), seed) for seed in (3, 1, 2)])
    assert results.seeds == (1, 2, 3)
    best, unscaled = results.variants
    assert (best.name, unscaled.name) == (
        "yarn(factor=4), 48 steps at 1024",
        "none, 48 steps at 1024",
    )
    assert best.correct[1024] == {seed: answers(seed, "yarn(factor=4)").sum() for seed in (1, 2, 3)}
    assert best.num_asked == {256: 40, 1024: 40}
    assert unscaled.over_plain is None
    yarn = np.concatenate([answers(seed, "yarn(factor=4)") for seed in (1, 2, 3)])
    none = np.concatenate([answers(seed, "none") for seed in (1, 2, 3)])
    difference = yarn * 100.0 - none * 100.0
    document = np.tile([int(12 * chance("d", 1024, 0.5, i)) for i in range(40)], 3)
    fit = OLS(difference, np.ones(len(difference))).fit(
        cov_type="cluster", cov_kwds={"groups": document}, use_t=True
    )
    ((low, high),) = fit.conf_int()
    assert best.over_plain.value == pytest.approx(difference.mean())
    # A score interval is not symmetric, and leans towards 0.
    assert low - 8 < best.over_plain.low < low
    assert high - 2 < best.over_plain.high < high + 2


def test_one_method_trained_in_two_ways(tmp_path):
    long = [run_of(tmp_path / str(seed), seed) for seed in (1, 2)]
    short = [tmp_path / f"short-{seed}" for seed in (1, 2)]
    for seed, path, short_path in zip((1, 2), long, short, strict=True):
        records = read_records(path / "records.jsonl")
        trained_shorter = [
            changed(record, train_seq_len=256, correct=False, failure="made up")
            for record in records
            if record.model.rope != "none"
        ]
        write_records(short_path, trained_shorter)
        write_json(short_path / "config.json", {"seed": seed})
    (results,) = across_seeds([*long, *short])
    (twins,) = results.twins
    rate = 50 * sum(answers(seed, "yarn(factor=4)").mean() for seed in (1, 2))
    assert twins.a == "yarn(factor=4), 48 steps at 1024"
    assert twins.b == "yarn(factor=4), 48 steps at 256"
    assert twins.points.value == pytest.approx(-rate)
    table = seed_tables(results)[1].to_text()
    assert f"{twins.a}  -{rate:.0f} [" in table


def test_one_method_trained_with_two_losses(tmp_path):
    """What is called the same is told apart by the names of its runs."""
    runs = [run_of(tmp_path / f"plain-{seed}", seed) for seed in (1, 2)]
    for seed in (1, 2):
        other = run_of(tmp_path / f"long-ce-{seed}", seed, ropes={"yarn(factor=4)": 0.0})
        write_json(other / "config.json", {"seed": seed, "loss": {"type": "loss/long-ce"}})
        runs.append(other)
    (results,) = across_seeds(runs)
    label = "yarn(factor=4), 48 steps at 1024"
    names = [f"{label} (plain)", "none, 48 steps at 1024", f"{label} (long-ce)"]
    assert [variant.name for variant in results.variants] == names
    assert results.variants[2].correct[1024] == {1: 0, 2: 0}
    assert [(twins.a, twins.b) for twins in results.twins] == [(names[0], names[2])]


def test_text_data_and_chart(tmp_path, capsys):
    runs = [str(run_of(tmp_path / str(seed), seed)) for seed in (1, 2)]
    assert main(["report", *runs, "--seeds", "--plot", str(tmp_path / "seeds.svg")]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("yarn"))
    counts = ", ".join(str(answers(seed, "yarn(factor=4)").sum()) for seed in (1, 2))
    assert f"  {counts} of 40" in line
    assert line.endswith("]")
    assert "yarn(factor=4), 48 steps at 1024" in (tmp_path / "seeds.svg").read_text()
    assert main(["report", *runs, "--seeds", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["seeds"] == [1, 2]


@pytest.mark.parametrize(
    ("seeds", "changes", "message"),
    [
        ((1,), {}, "only have the training seed 1"),
        ((1, 1), {}, "both have 'none, 48 steps at 1024' with seed 1"),
        ((1, 2), {"prompt": "other"}, "was asked the same questions"),
        ((1, 2), {"n": 20}, "was asked the same questions"),
        ((1, 2), {"ropes": {"none": 0.2}}, "not every one of the seeds 1, 2"),
    ],
)
def test_runs_that_cannot_be_combined_are_refused(tmp_path, seeds, changes, message):
    first, *others = seeds
    runs = [run_of(tmp_path / "0", first)]
    runs += [run_of(tmp_path / str(i), seed, **changes) for i, seed in enumerate(others, 1)]
    with pytest.raises(ValueError, match=message):
        across_seeds(runs)


def test_a_plain_variant_is_needed(tmp_path):
    runs = [run_of(tmp_path / str(seed), seed, ropes={"yarn(factor=4)": 0.7}) for seed in (1, 2)]
    with pytest.raises(ValueError, match="add Unscaled"):
        across_seeds(runs)


def test_seeds_of_one_arm_are_one_variant(tmp_path, capsys):
    """Neither verdict nor tables see the best of several seeds; each seed is in a table."""
    runs = [run_of(tmp_path / f"long-seed{seed}", seed) for seed in (1, 2, 3)]
    records = read_runs(runs)
    results = Results(record for run in records for record in run.records)
    (study,) = results.studies
    assert [variant.name for variant in study.task.variants] == [
        "none, 48 steps at 1024",
        "yarn(factor=4), 48 steps at 1024",
        "none, zero-shot",
    ]
    none, yarn, zero_shot = study.task.variants
    right = {seed: answers(seed, "yarn(factor=4)") for seed in (1, 2, 3)}
    at_longest = study.task.select(yarn, 1024)
    assert len(at_longest) == 120
    assert sum(r.scores.correct for r in at_longest) == sum(x.sum() for x in right.values())
    # Against the same training every seed has its own pair; against zero-shot, the one answer.
    comparisons = {(c.a, c.b): c for c in study.comparisons()}
    of_training = comparisons[none, yarn]
    assert of_training.n == 120
    assert of_training.p == pytest.approx(
        sign_flip(
            [
                int(y) - int(x)
                for seed in (1, 2, 3)
                for x, y in zip(answers(seed, "none"), right[seed], strict=True)
            ],
            [f"{i}" for _ in range(3) for i in range(40)],
        )
    )
    assert comparisons[zero_shot, none].n == 120
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "page.html")]) == 0
    text = capsys.readouterr().out
    by_seed = ", ".join(str(right[seed].sum()) for seed in (1, 2, 3))
    assert f"{by_seed} of 40" in text
    assert "variants pool the training seeds 1, 2, 3" in text


def test_runs_that_differ_in_more_than_the_seed_stay_apart(tmp_path):
    runs = [run_of(tmp_path / f"r{seed}", seed) for seed in (1, 2)]
    write_json(runs[1] / "config.json", {"seed": 2, "train": {"batch_size": 2}})
    same_seed = [run_of(tmp_path / f"s{i}", 1) for i in (1, 2)]
    assert repeated_seeds(runs) == []
    assert repeated_seeds([*same_seed, *runs]) == [
        f"{same_seed[0]} and {same_seed[1]} and {runs[0]} have the same settings and the same seed "
        "1: the 3 runs with these settings are not pooled; leave one of them out"
    ]
    for pair in (runs, same_seed):
        results = Results(record for run in read_runs(pair) for record in run.records)
        yarn = [v.name for v in results.variants if v.model.rope.startswith("yarn")]
        assert len(set(yarn)) == 2

"""What a run is estimated to take, by stage, against its own counts and rates that are known."""

import dataclasses
import json
import types
from pathlib import Path

import pytest

from ctxext.cli.main import main
from ctxext.data.sources import Files, Stdlib
from ctxext.evals import Perplexity, Retrieval, evaluated_model
from ctxext.evals.base import Eval
from ctxext.evals.oracle import PerfectReader
from ctxext.evals.timing import TimedModel
from ctxext.evaluate import evaluate
from ctxext.experiment import Experiment, Export
from ctxext.files import write_json
from ctxext.methods import NTK
from ctxext.plan.flops import step_flops
from ctxext.plan.job import Job
from ctxext.price import Speed
from ctxext.rope import Unscaled
from ctxext.rundir import RunDir
from ctxext.stages import budget, speeds
from ctxext.stages.clock import StageClock
from ctxext.stages.estimate import COMPILING_A_STEP, DONE, Estimate, Plan, Stage
from ctxext.stages.speeds import Speeds, read_speeds, without_weights
from support import tiny
from support.tiny_train import tiny_experiment
from support.toy_tokenizer import toy_source, toy_tokenizer

CONFIG = tiny.config(vocab_size=512)
SPEED = Speed(matrices=1e9, attention=5e8, step=0.01, token=0.001, compiling=2.0)
SPEEDS = Speeds(SPEED, dataclasses.replace(SPEED, matrices=2e9), "measured in a test")
PASSKEY = Retrieval((128, 256), n=2, source=toy_source())
EVALS: tuple[Eval, ...] = (
    PASSKEY,
    Perplexity((64,), num_documents=2, target_tokens=32, source=toy_source()),
)


def base():
    return dataclasses.replace(tiny.lm(CONFIG), tokenizer=toy_tokenizer())


def experiment(**changes) -> Experiment:
    whole = tiny_experiment(Stdlib("train"), remat="full", accumulate=2)
    changes = {"model": CONFIG, "zero_shot": (Unscaled(),), "baselines": (NTK(2.0),), **changes}
    return dataclasses.replace(whole, evals=EVALS, export=Export(), **changes)


def kinds(plan: Plan) -> list[str]:
    return [stage.kind for stage in plan.planned]


def test_the_stages_are_those_of_a_run_and_their_times_add_up():
    plan = Plan.of(experiment(), base(), EVALS)
    trained = ["train", "evaluate"]
    assert kinds(plan) == ["prepare", "evaluate", *trained, "export", "prove", *trained, "report"]
    estimate = plan.estimate(SPEEDS)
    seconds = [stage.seconds or 0 for stage in estimate.stages]
    assert estimate.seconds == pytest.approx(sum(seconds))
    assert estimate.total.endswith(" on this device (measured in a test)")
    # Six steps of two times four rows, at the rates of training.
    job = Job.of(dataclasses.replace(experiment(), baselines=()), CONFIG, 1)
    flops = step_flops(job)
    step = (flops.total - flops.attention) / 2e9 + flops.attention / 5e8
    assert seconds[2] == pytest.approx(COMPILING_A_STEP * 2.0 + 6 * step)
    assert plan.planned[2].amount.startswith("6 steps, 3,072 tokens, ")
    # Every model is asked the same; only the first one compiles.
    works = plan.planned[1].works
    calls = sum(work.seconds(SPEED) for work in works)
    shapes = set().union(*(work.shapes() for work in works))
    assert seconds[1] == pytest.approx(calls + 2.0 * len(shapes))
    assert seconds[3] == seconds[7] == pytest.approx(calls)
    text = "\n".join(estimate.lines())
    assert "memory of training: " in text and "memory of evaluations: " in text


def test_what_a_stage_says_it_reads_is_what_the_evaluation_reads():
    lm = base()
    plan = Plan.of(experiment(zero_shot=()), lm, EVALS)
    stage = next(stage for stage in plan.planned if stage.kind == "evaluate")
    reader = PerfectReader(toy_tokenizer())
    timed = TimedModel(reader)
    for evaluation in EVALS:
        for _ in evaluation.records(timed, evaluation.items(), evaluated_model(reader)):
            pass
    assert stage.amount == f"2 x 64, 10 x 96, 10 x 224 tokens; {timed.tokens:,} in all"


def test_a_resumed_run_counts_what_remains(tmp_path):
    lm = base()
    run = RunDir(tmp_path / "run").open(experiment())
    plain = lm.with_method(Unscaled())
    described = evaluated_model(plain, train_seq_len=64)
    evaluate(plain, EVALS[1:], model=described, sink=run.records_file, progress=False)
    (run.checkpoints / "4").mkdir(parents=True)
    plan = Plan.of(experiment(), lm, EVALS, run)
    assert plan.planned[1].amount.startswith("10 x 96, 10 x 224 tokens")
    assert plan.planned[2].amount.startswith("2 of 6 steps, 1,024 tokens")
    (run.checkpoints / "6").mkdir()
    assert Plan.of(experiment(), lm, EVALS, run).planned[2].amount == DONE
    # Of the same device, an earlier start knows the speed, and how fast it trained.
    assert read_speeds(run) is None
    write_json(run.stages_file, {"speeds": SPEEDS.data()})
    rows = [{"step": step, "tokens_per_second": 512.0} for step in (2, 3, 4)]
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = read_speeds(run)
    assert known is not None and (known.reading, known.training) == (SPEED, SPEEDS.training)
    assert known.basis == "measured at an earlier start of this run"
    (run.checkpoints / "6").rmdir()
    two_steps = Plan.of(experiment(), lm, EVALS, run).estimate(known).stages[2]
    assert two_steps.seconds == pytest.approx(COMPILING_A_STEP * 2.0 + 2 * 512 / 512)
    write_json(run.stages_file, {"speeds": {**SPEEDS.data(), "device": "another"}})
    assert read_speeds(run) is None


def test_what_cannot_be_timed_says_why(monkeypatch):
    monkeypatch.setattr(speeds, "measure_now", lambda lm, longest: (SPEED, "measured by a test"))
    plan = Plan.of(experiment(), base(), EVALS)
    assert plan.speeds() == (None, "as it is too little work to time this device for")
    text = plan.estimate(*plan.speeds()).total
    assert text == "time: not estimated, as it is too little work to time this device for"
    large = dataclasses.replace(experiment().train, steps=10**6)
    plan = Plan.of(dataclasses.replace(experiment(), train=large), base(), EVALS)
    assert plan.speeds()[0] == Speeds(SPEED, SPEED, "measured by a test")
    # Without a tokenizer the steps are still counted.
    plan = Plan.of(dataclasses.replace(experiment(), train=large), None, EVALS)
    assert "1,000,000 steps" in plan.planned[2].amount
    assert plan.estimate(*plan.speeds()).total.startswith("time: not estimated, as there is no to")
    # Nor does text for evaluations during training that is not there yet stop an estimate.
    during = dataclasses.replace(large, eval_every=2)
    missing = dataclasses.replace(experiment(), train=during, data=Files("nowhere"))
    (train,) = (x for x in Plan.of(missing, base(), ()).planned if x.name == "train tiny")
    assert train.amount.startswith("1,000,000 steps, ") and not train.is_countable
    assert train.amount.endswith("; evaluations during it are not counted: nowhere is not there")
    monkeypatch.setattr(speeds, "usable_bytes", lambda mesh: 10)
    timed, reason = without_weights(base(), experiment().mesh)
    assert timed is None and "too many to be timed on this machine" in reason


def test_minutes_are_divided_over_all_models_of_a_run(monkeypatch, tmp_path, capsys):
    # The time that building prompts takes is part of an estimate, and differs from count to count.
    monkeypatch.setattr("ctxext.evaluate.time", types.SimpleNamespace(perf_counter=lambda: 0.0))
    recipe = experiment()
    evals = (dataclasses.replace(PASSKEY, n=20), EVALS[1])
    plan = Plan.of(recipe, base(), evals)

    def seconds(texts: int) -> float:
        within = budget.scale("1", evals, texts=texts).evals
        stages = Plan.of(recipe, base(), within).estimate(SPEEDS).stages
        return sum(stage.seconds or 0 for stage in stages if stage.kind == "evaluate")

    texts = budget.texts_within("0.5", plan, SPEEDS)
    assert 5 < texts < 100
    # Compiling is counted for every model, where some share it, so that there is some room.
    assert seconds(texts) <= 30 < 2.5 * seconds(texts)
    # Where there is time for all, all is asked.
    everything = budget.texts_within("1000", plan, SPEEDS)
    assert budget.scale("1000", evals, texts=everything).evals == evals
    with pytest.raises(ValueError, match=r"--budget 0.01: one text of every length takes about"):
        budget.texts_within("0.01", plan, SPEEDS)
    # Which is explained: compiling at 2 s for each shape, in the mean of the two evaluations.
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert lines[0][:9] == "one text of every length (measured in a test);".split()
    assert lines[1] == ["stage", "reads", "compiles"]
    stages = [stage for stage in plan.planned if stage.kind == "evaluate"]
    assert [" ".join(line[:-4]) for line in lines[2:]] == [*(x.name for x in stages), "together"]
    shapes = sum(len(work.shapes()) for work in stages[0].works)
    assert [line[-2:] for line in lines[2:5]] == [[f"{shapes}", "s"]] * 3
    assert lines[5][-2:] == [f"{3 * shapes}", "s"]
    # The number of an earlier start is kept, on whatever device it is resumed.
    run = RunDir(tmp_path)
    budget.record(run, budget.scale("0.5", evals, texts=texts))
    assert budget.known_texts(run, "0.5") == texts
    assert budget.known_texts(run, "2") is None
    # Records that were asked before are there, however little is asked now.
    budget.record(run, budget.scale("small", evals))
    budget.record(run, budget.scale("full", evals))
    budget.record(run, budget.scale("small", evals))
    assert json.loads(run.budget_file.read_text())["budget"] == "full"


def test_the_clock_says_what_is_left_and_what_was_right(tmp_path, monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr("ctxext.stages.clock.time.monotonic", lambda: now)
    stages = [
        Stage("prepare", "prepare", "weights", 2.0),
        Stage("evaluate", "evaluate a", "10 of 64", 10.0),
        Stage("train", "train", "6 steps", 60.0),
        Stage("evaluate", "evaluate b", "10 of 64", 10.0),
        Stage("export", "export", DONE, 5.0),
    ]
    clock = StageClock(Estimate(tuple(stages), "a test", (), SPEEDS), RunDir(tmp_path))
    clock.passed("prepare", 2.0)
    assert clock.left() == 80
    with clock.stage("evaluate"):
        now += 20
    # All takes as much longer than estimated as the first evaluation.
    assert clock.left() == 2 * 60 + 20
    with clock.stage("train"):
        now += 30
    with clock.stage("evaluate"):
        now += 20
    assert clock.left() == 0
    assert capsys.readouterr().err.splitlines() == [
        "stage 2 of 5, evaluate a: about 10 s, 1 min left in all",
        "stage 3 of 5, train: about 2 min, 2 min left in all",
        "stage 4 of 5, evaluate b: about 20 s, 20 s left in all",
    ]
    assert [" ".join(line.split()) for line in clock.summary()] == [
        "stage estimated took",
        "prepare 2 s 2 s",
        "evaluate a 10 s 20 s",
        "train 1 min 30 s",
        "evaluate b 10 s 20 s",
        "in all 1 min 1 min, 0.88 times the estimate",
    ]
    not_timed = tuple(dataclasses.replace(stage, seconds=None) for stage in stages)
    clock.estimate = Estimate(not_timed, "too little work")
    assert [" ".join(line.split()) for line in clock.summary()] == [
        "stage took",
        "prepare 2 s",
        "evaluate a 20 s",
        "train 30 s",
        "evaluate b 20 s",
        "in all 1 min",
    ]
    written = json.loads((tmp_path / "stages.json").read_text())
    assert [stage["took"] for stage in written["stages"]] == [2, 20, 30, 20, None]
    assert written["speeds"]["training"]["matrices"] == 2e9


RECIPE = """
from ctxext.data import Stdlib
from ctxext.evals import Retrieval
from ctxext.experiment import Experiment, Train
from ctxext.methods import Linear
from ctxext.optim import Optim
from ctxext.tasks import Passkey

experiment = Experiment(
    name="recipe", init="tiny-llama", rope=Linear(2.0), data=Stdlib("train"), export=None,
    optim=Optim(learning_rate=1e-3), train=Train(steps=0, seq_len=128, batch_size=1),
    evals=(Retrieval((64,), n=14, task=Passkey(wording="code")),),
)
"""


def test_a_budget_asks_less_and_says_so_until_all_is_asked(tmp_path: Path, capsys):
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE)
    run = tmp_path / "run"
    command = ["run", str(file), "--run-dir", str(run), "--no-wandb"]
    left_out = "--budget small asked only a part of what the experiment declares: 60 of 70 passkey."
    assert main([*command, "--budget", "small", "--dry-run", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    (reads,) = (stage for stage in stages if stage["kind"] == "evaluate")
    assert reads["amount"].startswith("60 x 64 tokens; ")
    assert reads["texts"] == {"64": 60} and 0 < reads["tokens"] <= 60 * 64
    assert not run.exists()
    assert main([*command, "--budget", "small"]) == 0
    said = capsys.readouterr()
    assert left_out in said.out and "60 x 64 tokens" in said.err
    assert left_out in (run / "report.html").read_text()
    assert len((run / "records.jsonl").read_text().splitlines()) == 60
    assert json.loads((run / "config.json").read_text())["budget"] == "small"
    # The same run, asked the rest.
    assert main(command) == 0
    said = capsys.readouterr()
    assert "10 x 64 tokens" in said.err and "asked only a part" not in said.out
    assert len((run / "records.jsonl").read_text().splitlines()) == 70
    # Everything is there: nothing is left to be read.
    assert main([*command, "--dry-run", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["amount"] for stage in stages if stage["kind"] == "evaluate"] == [DONE]
    assert main([*command, "--budget", "soon"]) == 2
    assert "--budget soon: give small, medium, full, or a number" in capsys.readouterr().err

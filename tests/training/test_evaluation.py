"""Evaluations during training: their numbers, what they choose, and how they resume."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import ctxext
from ctxext import pipeline
from ctxext.assets import TINY_LLAMA
from ctxext.attention import Causal
from ctxext.data import Files, Split
from ctxext.evals import Perplexity, Retrieval, evaluated_model
from ctxext.evals.record import AnswerRecord, LossRecord
from ctxext.evaluate import evaluate
from ctxext.experiment import Experiment, Export, Train
from ctxext.files import read_jsonl
from ctxext.methods import Linear, S2Attn
from ctxext.model.context import DeclaredContext
from ctxext.model.decoder import init_params
from ctxext.model.lm import LM
from ctxext.model.trainable import LoRA
from ctxext.optim import Optim
from ctxext.rope import Unscaled
from ctxext.rundir import RunDir
from ctxext.tasks import KeyValue, Passkey
from ctxext.tokenization.tokenizer import load_tokenizer
from ctxext.tracking import JsonlSink, Sink
from ctxext.training.checkpoint import find_step, load_params
from ctxext.training.curve import Evaluated, Watch, best, over_at
from ctxext.training.evaluation_set import EvaluationSet, check, measures
from ctxext.training.evaluator import Evaluation, Evaluator, accuracy, nats_per_token
from ctxext.training.loop import train
from ctxext.training.stopping import Request
from support import tiny

TOKENIZER = load_tokenizer(TINY_LLAMA)
CONFIG = tiny.config(
    vocab_size=TOKENIZER.vocab_size, tie_word_embeddings=True, max_position_embeddings=64
)
CONTEXT = DeclaredContext.of(64, Unscaled())


def words(i: int) -> str:
    rng = np.random.default_rng(i)
    return " ".join(f"word{n}" for n in rng.integers(0, 50, 60))


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    for i in range(24):
        (root / f"{i}.txt").write_text(words(i))
    return root


def experiment_of(texts: Path, **changes: Any) -> Experiment:
    settings: dict[str, Any] = {
        "steps": 4,
        "seq_len": 128,
        "batch_size": 1,
        "log_every": 1,
        "checkpoint_every": 3,
        "monitor_every": 0,
        "held_out": 0.4,
        "eval_every": 2,
        "eval_set": ("loss",),
        **changes,
    }
    return Experiment(
        name="evaluated",
        data=Files(str(texts)),
        model=CONFIG,
        rope=Linear(2.0),
        optim=Optim(learning_rate=3e-3),
        train=Train(**settings),
        evals=(Retrieval((64, 128), n=3, task=Passkey(), source=Files(str(texts))),),
    )


def base() -> LM:
    return LM(CONFIG, init_params(CONFIG, 0), TOKENIZER)


def run_of(experiment: Experiment, path: Path, sinks: tuple[Sink, ...] = (), **options) -> RunDir:
    run = RunDir(path).open(experiment)
    every = [JsonlSink(run.metrics_file), *sinks]
    train(experiment, run, base(), sinks=every, progress=False, **options)
    return run


def rows(run: RunDir) -> list[dict]:
    """The evaluations of a run, without their time."""
    every = [row for row in read_jsonl(run.metrics_file) if "eval_seconds" in row]
    return [{k: v for k, v in row.items() if k != "eval_seconds"} for row in every]


class Answers(Sink):
    def __init__(self) -> None:
        self.wrong: list = []

    def wrong_answers(self, step: int, answers: Any) -> None:
        self.wrong += [(step, answer) for answer in answers]


def test_the_numbers_are_those_of_the_saved_checkpoint(texts, tmp_path):
    """Retrieval and perplexity, asked again of the run as it is opened from its directory.

    It trains with the groups of S2-Attn; both are with full attention, as LongLoRA is evaluated.
    """
    experiment = experiment_of(
        texts, eval_set=("retrieval", "loss"), eval_lengths=(128,), steps=1, eval_every=5
    )
    experiment = dataclasses.replace(experiment, attention=S2Attn(32))
    sink = Answers()
    run = run_of(experiment, tmp_path / "run", (sink,))
    first, last = rows(run)
    assert (first["step"], last["step"]) == (0, 1)
    chosen = EvaluationSet.of(experiment, CONTEXT, TOKENIZER)
    (retrieval,) = chosen.retrieval
    assert retrieval.n * len(retrieval.depths) == 10
    assert not {*retrieval.items()} & {*experiment.evals[0].items()}
    lm = ctxext.load(run.path)
    assert lm.attention == Evaluator(experiment, base(), chosen).model({}, {}).attention == Causal()
    records = evaluate(lm, chosen.evals, progress=False)
    assert last["eval/passkey@128"] == accuracy(records, 128)
    assert last["eval/loss@128"] == nats_per_token(records, 128)
    assert last["eval/retrieval@128"] == last["eval/passkey@128"]
    assert last["eval/loss@128"] != first["eval/loss@128"]
    losses = [r.scores.nll / r.scores.count for r in records if isinstance(r, LossRecord)]
    assert last["eval/loss@128"] == pytest.approx(np.mean(losses))  # as many tokens of each
    wrong = [answer for step, answer in sink.wrong if step == 1]
    mistakes = [r for r in records if isinstance(r, AnswerRecord) and not r.scores.correct]
    assert [(w.seq_len, w.got, w.mistake) for w in wrong] == [
        (r.seq_len, r.scores.text, r.scores.failure) for r in mistakes
    ]
    assert wrong, "after one step, a model finds no passkey"
    for answer, record in zip(wrong, mistakes, strict=True):
        assert answer.expected.strip() == TOKENIZER.decode(list(record.question.gold)).strip()
        assert answer.prompt_end.rstrip().endswith(
            TOKENIZER.decode(
                retrieval.examples_of(TOKENIZER, [record.item])[record.item].prompt[-6:].tolist()
            ).strip()
        )


def test_the_set_is_two_lengths_of_held_out_text_and_of_a_few_questions(texts):
    chosen = EvaluationSet.of(
        experiment_of(texts, eval_set=("retrieval", "loss")), CONTEXT, TOKENIZER
    )
    assert [e.seq_lens for e in chosen.retrieval] == [(64, 128)]
    assert chosen.loss == Perplexity(
        (64, 128),
        num_documents=4,
        target_tokens=32,
        source=Split(Files(str(texts)), "heldout", 0.4),
    )
    assert not chosen.notes
    assert chosen.sentence(3) == (
        "during training, 3 times: passkey at 64 and 128 tokens, 10 questions about 10 texts each; "
        f"loss of 4 held-out documents at 64 and 128 tokens ({texts})"
    )


@pytest.mark.check
def test_adapters_are_evaluated_as_they_are_trained(texts):
    experiment = experiment_of(texts, eval_lengths=(128,))
    experiment = dataclasses.replace(experiment, trainable=LoRA(rank=2))
    params = init_params(CONFIG, 0)
    adapted = experiment.trainable.init(params, 0)
    adapted = jax.tree.map(lambda x: x + 0.02, adapted)
    evaluator = Evaluator.of(experiment, base())
    assert evaluator
    found = evaluator.evaluate(2, adapted, {}).values.values
    merged = LM(CONFIG, experiment.trainable.merge(adapted), TOKENIZER, scaling=Linear(2.0))
    loss = EvaluationSet.of(experiment, CONTEXT, TOKENIZER).loss
    assert loss
    records = list(loss.records(merged, loss.items(), evaluated_model(merged)))
    assert found["loss@128"] == pytest.approx(nats_per_token(records, 128), rel=1e-5)


def test_an_interrupted_run_keeps_its_best_and_stops_at_the_same_step(
    texts, tmp_path, monkeypatch, capsys
):
    """The measure is planted: best after step 4, and no progress after it for three steps."""
    planted = {0: 9.0, 1: 5.0, 2: 4.0, 3: 4.5, 4: 3.0, 5: 3.2, 6: 3.1, 7: 3.0, 8: 1.0}

    def plant(self, step, params, frozen):
        return Evaluation(Evaluated(step, {"loss@128": planted[step]}), [], 0.0)

    monkeypatch.setattr(Evaluator, "evaluate", plant)
    experiment = experiment_of(
        texts,
        steps=8,
        eval_every=1,
        eval_lengths=(128,),
        keep=1,
        checkpoint_every=3,
        keep_best="loss@128",
        stop_by="loss@128",
    )
    whole = run_of(experiment, tmp_path / "whole")
    assert (
        "stopped after step 7 of 8, early: loss@128 has not become better in 3 evaluations "
        "(train.stop_by); best 3 after step 4"
    ) in capsys.readouterr().err
    assert [row["step"] for row in rows(whole)] == list(range(8))
    assert sorted(path.name for path in whole.checkpoints.iterdir()) == ["4", "7"]
    assert find_step(whole.checkpoints, "best") == 4

    class StopAt(Sink):
        def __init__(self, step: int) -> None:
            self.step = step
            self.event = threading.Event()

        def log(self, row: dict) -> None:
            if row["step"] == self.step:
                self.event.set()

    for step in (2, 5):
        stopping = StopAt(step)
        run_of(experiment, tmp_path / "parts", (stopping,), stop=stopping.event)
    parts = run_of(experiment, tmp_path / "parts")
    again = run_of(experiment, tmp_path / "parts")  # it is over, and nothing more happens
    for run in (parts, again):
        assert rows(run) == rows(whole)
        assert sorted(path.name for path in run.checkpoints.iterdir()) == ["4", "7"]
        assert find_step(run.checkpoints, "best") == 4
    for which in ("best", "latest"):
        ours, _ = load_params(parts.checkpoints, which=which)
        theirs, _ = load_params(whole.checkpoints, which=which)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.check
def test_a_run_evaluates_and_exports_the_checkpoint_of_its_choice(texts, tmp_path, monkeypatch):
    planted = {0: 9.0, 1: 3.0, 2: 4.0, 3: 5.0}

    def plant(self, step, params, frozen):
        return Evaluation(Evaluated(step, {"loss@128": planted[step]}), [], 0.0)

    monkeypatch.setattr(Evaluator, "evaluate", plant)
    experiment = experiment_of(
        texts, steps=3, eval_every=1, keep=1, keep_best="loss@128", result="best"
    )
    perplexity = Perplexity((64,), num_documents=2, target_tokens=8, source=Files(str(texts)))
    experiment = dataclasses.replace(
        experiment, tokenizer=str(TINY_LLAMA), evals=(perplexity,), export=Export(dtype="float32")
    )
    result = pipeline.run(experiment, run_dir=tmp_path / "run", track=())
    assert {record.model.steps for record in result.records} == {1}
    assert result.proof and result.proof["equal"]
    exported = ctxext.load(result.path / "export").params
    best_params, step = load_params(result.path / "checkpoints", which="best")
    assert step == 1
    for a, b in zip(jax.tree.leaves(exported), jax.tree.leaves(best_params), strict=True):
        np.testing.assert_array_equal(a, b)


def curve(values: list[float], measure: str) -> list[Evaluated]:
    return [Evaluated(step, {measure: value}) for step, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "patience", "min_difference", "stops"),
    [
        ([0.9, 0.1, 0.2, 0.2, 0.2], 2, 0.0, 4),  # step 0 does not count
        ([0.0, 0.1, 0.2, 0.2, 0.3, 0.3], 2, 0.0, None),
        ([0.0, 0.5, 0.55, 0.6, 0.65], 2, 0.1, 3),  # 0.6 is 0.1 above 0.5, which is not more
        ([0.0, 0.5, 0.55, 0.61, 0.65], 2, 0.1, None),
        ([0.0, 0.5, 0.4], 1, 0.0, 2),
        ([0.0], 1, 0.0, None),
    ],
)
def test_a_run_stops_where_its_measure_stops_growing(values, patience, min_difference, stops):
    options = {"patience": patience, "min_difference": min_difference}
    assert over_at(curve(values, "passkey@64"), "passkey@64", **options) == stops
    falling = curve([-value for value in values], "loss@64")
    assert over_at(falling, "loss@64", **options) == stops


def test_the_best_is_the_first_of_equal_ones_and_not_the_base():
    found = best(curve([1.0, 0.5, 0.7, 0.7, 0.6], "kv@64"), "kv@64")
    assert found == (2, 0.7)
    assert best(curve([0.1, 0.5, 0.2, 0.3], "loss@64"), "loss@64") == (2, 0.2)
    assert best(curve([1.0], "kv@64"), "kv@64") is None
    settings = Train(steps=9, seq_len=8, batch_size=1, eval_every=1, keep_best="kv@64")
    asked = [Watch(settings, curve([1.0, 0.5, 0.7, 0.7], "kv@64")[:n]).request for n in range(1, 5)]
    assert asked == [Request.NOTHING, Request.SAVE, Request.SAVE, Request.NOTHING]


def test_measures_are_named_by_task_and_length(texts):
    tasks = (Retrieval((16,), task=Passkey()), Retrieval((16,), task=KeyValue()))
    experiment = dataclasses.replace(
        experiment_of(texts, eval_set=("retrieval", "loss")), evals=tasks
    )
    assert measures(experiment, CONTEXT) == [
        f"{name}@{n}" for name in ("passkey", "kv", "retrieval", "loss") for n in (64, 128)
    ]
    only = dataclasses.replace(experiment.train, eval_set=("kv",), eval_lengths=(96,))
    chosen = dataclasses.replace(experiment, train=only)
    assert measures(chosen, CONTEXT) == ["kv@96", "retrieval@96"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_best": "loss@129"}, "train.keep_best: 'loss@129' is not measured .*'loss@128'?"),
        (
            {"stop_by": "passkey@128"},
            "train.stop_by: 'passkey@128' is not measured .* Known: loss@",
        ),
        ({"eval_set": ("paskey",)}, "train.eval_set: 'paskey' .* did you mean 'passkey'?"),
    ],
)
def test_a_wrong_measure_is_refused_with_the_nearest_that_there_is(texts, changes, message):
    with pytest.raises(ValueError, match=message):
        check(experiment_of(texts, **changes), CONTEXT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eval_every": 0, "stop_by": "loss@64"},
            "train.stop_by 'loss@64' is measured .*eval_every",
        ),
        ({"result": "best"}, "train.result best needs train.keep_best"),
        ({"stop_patience": 0}, "train.stop_patience must be at least 1"),
        ({"eval_set": ()}, "train.eval_set is empty"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(texts, changes, message):
    with pytest.raises(ValueError, match=message):
        experiment_of(texts, **changes)


def test_text_that_is_too_short_is_said_and_no_choice_depends_on_it(texts):
    far = {"eval_lengths": (64, 1 << 20), "eval_set": ("loss",)}
    chosen = EvaluationSet.of(experiment_of(texts, **far), CONTEXT, TOKENIZER)
    assert chosen.loss and chosen.loss.seq_lens == (64,)
    (note,) = chosen.notes
    assert "the loss at 1,048,576 tokens is not measured during training" in note
    with pytest.raises(ValueError, match="train.stop_by is loss@1048576, but the loss at"):
        EvaluationSet.of(experiment_of(texts, stop_by="loss@1048576", **far), CONTEXT, TOKENIZER)

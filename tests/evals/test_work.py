"""Work and price of evaluations before they are done, against what evaluations then do."""

import dataclasses
import json
import re
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ctxext import price
from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.data.sources import Stdlib
from ctxext.evals import evaluated_model
from ctxext.evals.budget import (
    BUDGETS,
    Budget,
    affordable,
    most_texts,
    of_texts,
    questions_per_text,
    read_budget,
)
from ctxext.evals.document_eval import DocumentEval
from ctxext.evals.key_tokens import ContrastiveKeys
from ctxext.evals.longppl import LongPPL
from ctxext.evals.oracle import PerfectReader
from ctxext.evals.perplexity import Perplexity
from ctxext.evals.retrieval import Retrieval
from ctxext.evals.rolling_perplexity import RollingPerplexity
from ctxext.evals.suite import SuiteConfig, evaluations
from ctxext.evals.timing import TimedModel
from ctxext.evals.work import Call, CountingModel, calls_of, num_tokens, readings
from ctxext.evaluate import NamedModel, Questions, evaluate, questions_within
from ctxext.loading import load as load_model
from ctxext.methods import S2AttnAsReleased, Yarn
from ctxext.plan.flops import step_flops
from ctxext.plan.job import Job
from support import tiny
from support.tiny_train import tiny_experiment
from support.toy_tokenizer import toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()
CONFIG = SuiteConfig((256, 512), source=toy_source())


@pytest.mark.parametrize("name", ["passkey", "kv", "ppl", "ppl:yarn", "recovery"])
def test_what_is_counted_is_what_is_read(name):
    model = PerfectReader(TOKENIZER)
    (evaluation,) = evaluations([name], CONFIG)
    if isinstance(evaluation, DocumentEval):
        evaluation = dataclasses.replace(evaluation, num_documents=2)
    items = evaluation.items()[:3]
    timed = TimedModel(model)
    done = list(evaluation.records(timed, items, evaluated_model(model)))
    calls = calls_of(evaluation, model, items, evaluated_model(model))
    assert done
    assert num_tokens(calls) == timed.tokens
    assert sum(rows * length for rows, length in (call.padded for call in calls)) == (
        timed.padded_tokens
    )
    assert any(call.continuations for call in calls) == evaluation.continues_prompts
    assert calls_of(evaluation, model, [], evaluated_model(model)) == []


def test_attention_that_cannot_write_is_refused_before_any_question_is_asked(monkeypatch):
    def begin(self, tokens):
        raise AssertionError("an evaluation began")

    model = PerfectReader(TOKENIZER)
    monkeypatch.setattr(type(model), "attention", S2AttnAsReleased(1024, 256))
    monkeypatch.setattr(type(model), "loss", begin)
    losses, passkey = evaluations(["ppl", "passkey"], CONFIG)
    assert isinstance(losses, DocumentEval)
    evals = [dataclasses.replace(losses, num_documents=2), passkey]
    with pytest.raises(ValueError, match="passkey: S2AttnAsReleased shows tokens that come later"):
        evaluate(model, evals, progress=False)


def test_questions_about_one_text_read_it_once():
    (passkey,) = evaluations(["passkey"], dataclasses.replace(CONFIG, budget=of_texts(4, 4)))
    model = PerfectReader(TOKENIZER)
    calls = calls_of(passkey, model, passkey.items(), evaluated_model(model))
    # 16 questions at each length.
    assert len(passkey.items()) == 2 * 16
    assert sum(readings(calls).values()) == 2 * 4
    (unshared,) = evaluations(["passkey"], CONFIG)
    assert isinstance(unshared, Retrieval)
    calls = calls_of(unshared, model, unshared.items(), evaluated_model(model))
    assert sum(readings(calls).values()) == len(unshared.items()) == 120


def test_another_model_is_not_asked_when_its_work_is_counted():
    def load(name: str):
        raise AssertionError(f"{name} was opened")

    keys = ContrastiveKeys(trunc_len=64, stride=32, evaluator="other", load=load)
    evaluation = LongPPL((128,), num_documents=1, keys=keys, source=Stdlib("heldout"))
    lm = load_model("tiny-llama")
    calls = calls_of(evaluation, lm, evaluation.items(), evaluated_model(lm))
    # The whole text twice, for its keys and for its loss, and windows of 96 tokens and fewer.
    assert readings(calls)[lm.padded([127])[1]] == 2
    assert sum(readings(calls).values()) > 2


def test_the_operations_of_a_reading_are_those_of_the_plan(tmp_path):
    lm = tiny.lm()
    experiment = tiny_experiment(tmp_path, batch_size=2)
    job = dataclasses.replace(Job.of(experiment, lm.config, 1), seq_len=64, accumulate=1)
    assert price.reading(lm, Call((64, 64), (2, 64))).total == step_flops(job).forward


def test_rates_are_those_that_both_readings_had():
    short, long = price.Operations(1e9, 1e8), price.Operations(4e9, 1.6e9)
    timed = [(x, x.matrices / 4e11 + x.attention / 1e11) for x in (short, long)]
    assert price.rates(*timed, uneven=6) == pytest.approx((4e11, 1e11))
    # A reading that was slowed down by something else has no such rates.
    of_long = (long.total / timed[1][1],) * 2
    assert price.rates((short, 1.0), timed[1], uneven=6) == of_long
    assert price.rates(timed[1], timed[1], uneven=6) == of_long
    assert price.rates(*timed, uneven=3) == of_long


def test_seconds_add_up():
    lm = tiny.lm()
    speed = price.Speed(matrices=1e9, attention=5e8, step=0.01, token=0.001, compiling=2.0)
    asked, scored = Call((60, 60), (2, 64), 3, 5), Call((64,), (1, 64))
    work = price.Work("w", lm, [asked, asked, scored])
    operations = work.operations
    expected = operations.matrices / 1e9 + operations.attention / 5e8
    # Five steps for each of two calls, of six tokens each.
    expected += 2 * 5 * (0.01 + 6 * 0.001)
    # Each of the 6 x 5 tokens attends to the 64 of its prompt and 5 of its continuation: 4 N H L
    # operations per pair.
    per_pair = 4 * lm.config.num_attention_heads * lm.config.head_dim * lm.config.num_hidden_layers
    expected += 2 * 6 * 5 * (64 + 5) * per_pair / 5e8
    assert work.seconds(speed) == pytest.approx(expected)
    # Two shapes, in three calls.
    assert price.Price([work], speed).seconds == pytest.approx(expected + 2 * 2.0)
    assert price.Price([work]).seconds is None
    assert price.Price([work]).sentence() == "to read: 5 texts, 304 tokens"
    assert price.Price([price.Work("w", lm, [])]).sentence().startswith("nothing left to read")
    keys_and_values = 2 * lm.config.num_hidden_layers * lm.config.num_key_value_heads
    slots = 2 * (64 + 3 * 5)
    assert work.cache_bytes() == keys_and_values * lm.config.head_dim * 4 * slots


def test_what_continuations_share_is_counted_once():
    """Two questions of three tokens with two answers of two each."""
    counting = CountingModel(tiny.lm())
    prefixes = [[[1, 2, 3, 4, 5], [1, 2, 3, 6, 7], [8, 9, 10, 4, 5], [8, 9, 10, 6, 7]]]
    prefixes[0] = [ids[:length] for ids in prefixes[0] for length in (3, 5)]
    counting.continuations([np.arange(60)], prefixes, max_new_tokens=5)
    (call,) = counting.calls
    assert (call.continuations, call.beginnings, call.shared_tokens) == (8, 2, 3)
    assert call.steps() == [(3, 2), (2, 8)]


def test_durations_are_in_the_unit_that_fits():
    assert [price.duration(x) for x in (40.2, 720, 13300)] == [
        "40 s",
        "12 min",
        "3.7 h",
    ]


def test_minutes_buy_texts_in_proportion():
    assert most_texts(10, lambda texts: 60 + 20 * texts) == 27
    assert most_texts(1000, lambda texts: 60 + 20 * texts) == 60
    with pytest.raises(
        ValueError, match="--budget 1: one text of every length takes about 1.3 min"
    ):
        most_texts(1, lambda texts: 60 + 20 * texts)


@dataclasses.dataclass(frozen=True)
class Asked:
    """Questions of which each text of an evaluation takes as many minutes as `COSTS` says."""

    budget: Budget
    names: tuple[str, ...]
    of_base: tuple[str, ...] = ()
    speed: float | None = None
    basis: str = ""

    def price(self, *, measured: bool = False):
        asked = [*self.names, *self.of_base]
        minutes = sum(COSTS[name] for name in asked if name != "controls")
        seconds = 60 * minutes * self.budget.shared_texts
        return types.SimpleNamespace(
            seconds=seconds, speed=1.0, basis="measured", text=lambda: f"{asked}: {minutes} min"
        )


COSTS = {"passkey": 2, "ppl": 5, "kv": 1, "lines": 20, "mqar": 1, "vt": 1}
COSTS |= {"growing-window": 1, "recovery": 1}


def ask(budget: Budget, names: Sequence[str], *, base: Sequence[str]) -> Any:
    return Asked(budget, tuple(names), tuple(base))


def test_minutes_buy_what_is_important_first_and_enough_of_it():
    questions: Any
    questions, line = questions_within(60, ask, window=8192, base=False)
    # 64 questions are four texts: 8, 4, 4, 20, 4, 80, 4 and 4 minutes.
    assert questions.names == (
        "passkey",
        "growing-window",
        "recovery",
        "ppl",
        "kv",
        "mqar",
        "vt",
        "controls",
    )
    assert questions.of_base == ()
    assert questions.budget.shared_texts == 5  # of 12 minutes each
    assert questions.speed == 1.0  # which was measured once
    assert line == (
        "60 minutes allow 5 texts per length, with 16 questions about each where a task can ask "
        "several; no time for lines (--evals chooses)"
    )
    # What was named is asked, however little of it there is time for.
    options: Any = {"window": 8192, "names": ["lines"], "shortest": 4096}
    questions, line = questions_within(60, ask, base=False, **options)
    assert (questions.names, questions.budget.shared_texts) == (("lines",), 3)
    assert "no time" not in line
    assert affordable(1, {"passkey": 90, "kv": 1}, {}) == (["passkey"], [], ["kv"])


def test_a_budget_that_is_too_small_is_refused_under_its_price(capsys):
    with pytest.raises(ValueError, match=r"--budget 19: one text of every length takes about 20.0"):
        questions_within(19, ask, window=8192, names=["lines"], shortest=4096, base=False)
    first, *table = capsys.readouterr().err.splitlines()
    assert first.startswith("one text per length does not fit into 19 minutes")
    assert table == ["['lines']: 20 min"]


def test_minutes_buy_the_base_in_an_evaluation_before_the_next_one():
    questions: Any
    # Of four texts each: 8 and 8 minutes, 4 and 4, 4 and 4; then 20, for which there is no time.
    questions, line = questions_within(42, ask, window=8192)
    three = ("passkey", "growing-window", "recovery")
    assert questions.names == (*three, "kv", "controls")
    assert questions.of_base == (*three, "kv")
    assert "; no time for ppl, lines, mqar, vt (--evals chooses)" in line
    # The growing window is asked of both or not at all.
    questions, line = questions_within(27, ask, window=8192)
    assert (questions.names, questions.of_base) == (
        ("passkey", "growing-window", "controls"),
        ("passkey", "growing-window"),
    )
    questions, line = questions_within(15, ask, window=8192)
    assert (questions.names, questions.of_base) == (("passkey", "recovery", "controls"), ())
    assert line.endswith("; no time to ask the base passkey, recovery too")
    # What was named is asked of both.
    questions, _ = questions_within(60, ask, window=8192, names=["lines"], shortest=4096)
    assert (questions.of_base, questions.budget.shared_texts) == (("lines",), 1)


def test_the_base_is_the_control_of_everything_that_a_method_is_asked(tmp_path):
    """In the same texts at the same lengths, an evaluation of both before the next one."""
    lm = dataclasses.replace(tiny.lm(tiny.config(max_position_embeddings=128)), tokenizer=TOKENIZER)
    named = NamedModel(lm, evaluated_model(lm), tmp_path)
    budget = of_texts(2, 4)
    config = SuiteConfig((128, 256), budget, toy_source(), wording="code")
    evals = ["passkey", "growing-window", "controls"]

    def asked(methods: Sequence[Any], base: Sequence[str]) -> Questions:
        return Questions.of(named, methods=methods, evals=evals, config=config, base=base)

    questions = asked([Yarn(2.0)], evals)
    base, yarn = questions.models
    assert (base.described.label, base.is_control, yarn.is_control) == ("none", True, False)
    assert list(base.evals) == list(yarn.evals)
    in_order = [(part.evaluation.full_title, part.model.label) for part in questions.parts()]
    assert in_order[:4] == [
        ("passkey", "none"),
        ("passkey", "yarn(factor=2)"),
        ("growing-window", "none"),
        ("growing-window", "yarn(factor=2)"),
    ]
    note = "control: the base without the method is asked, in the same texts: passkey; "
    assert f"{note}growing-window; controls" in questions.notes()
    sentence = questions.price().sentence()
    texts = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:of the )?texts", sentence)]
    assert texts[0] == 2 * texts[1]
    assert sentence.endswith(" of the texts without the method, as the control (--no-base)")
    # Left out, it is asked what the threshold needs: questions at its window.
    base, yarn = asked([Yarn(2.0)], ()).models
    assert [e.full_title for e in base.evals] == ["passkey"]
    assert [e.seq_lens for e in base.evals if isinstance(e, Retrieval)] == [(128,)]
    note = base.control_note(yarn.evals)
    assert note.endswith("asked, at its window of 128 tokens alone: passkey")
    # The control of a run under another method is the run, not the base that it began with.
    of_run = dataclasses.replace(
        base, described=dataclasses.replace(base.described, steps=60, train_seq_len=256)
    )
    note = "control: the run as it was trained (none, 60 steps at 256) is asked, at its window"
    assert of_run.control_note(yarn.evals).startswith(note)
    adapted = dataclasses.replace(
        base, described=dataclasses.replace(base.described, adapter="mine")
    )
    assert "the model with the adapter mine, without the method, is asked" in (
        adapted.control_note(yarn.evals)
    )
    # A base that is asked anyway has no control.
    assert [model.is_control for model in asked([None], evals).models] == [False]
    assert [model.is_control for model in asked([None, Yarn(2.0)], evals).models] == [False] * 2


def test_what_does_not_fit_into_the_shortest_text_is_left_out_and_said():
    def refuse(budget: Budget, names: Sequence[str], *, base: Sequence[str]) -> Any:
        if "vt" in names:
            raise ValueError("vt: 256 tokens cannot hold 8 records")
        return ask(budget, names, base=base)

    questions: Any
    questions, line = questions_within(60, refuse, window=8192, base=False)
    assert "vt" not in questions.names
    assert {"passkey", "kv", "mqar"} <= set(questions.names)
    assert line.endswith("left out, as it does not fit: vt: 256 tokens cannot hold 8 records")
    with pytest.raises(ValueError, match="cannot hold 8 records"):
        questions_within(60, refuse, window=8192, names=["vt"])


def test_no_evaluation_of_a_budget_in_minutes_takes_the_time_of_the_others():
    """Eight documents took as long as all questions together, where there is time for few."""
    for num_texts, num_documents in ((1, 4), (4, 4), (6, 6), (40, 8)):
        budget = of_texts(num_texts, 16)
        (ppl,) = evaluations(["ppl"], dataclasses.replace(CONFIG, budget=budget))
        assert isinstance(ppl, DocumentEval) and ppl.num_documents == num_documents


def test_minutes_also_buy_short_texts(tmp_path):
    def lengths(window: int, budget: Budget) -> tuple[int, ...]:
        lm = tiny.lm(tiny.config(max_position_embeddings=window))
        lm = dataclasses.replace(lm, tokenizer=TOKENIZER)
        named = NamedModel(lm, evaluated_model(lm), tmp_path)
        config = SuiteConfig(budget=budget, source=toy_source())
        yarn = Yarn(2.0)
        questions = Questions.of(named, methods=[yarn], evals=["passkey"], config=config)
        (passkey,) = questions.models[-1].evals
        assert isinstance(passkey, Retrieval)
        return passkey.seq_lens

    assert lengths(8192, BUDGETS["small"]) == (8192, 16384)
    assert lengths(8192, of_texts(4, 16)) == (1024, 2048, 4096, 8192, 16384)
    assert lengths(1500, of_texts(4, 16)) == (1500, 3000)


def test_a_recipe_is_asked_no_more_than_its_budget():
    small, minutes = BUDGETS["small"], of_texts(3, 1)
    passkey = Retrieval((256, 512), n=40, source=toy_source())
    control = dataclasses.replace(passkey, condition="no-needle")
    assert [e.within(small).n for e in (passkey, control)] == [12, 4]
    assert passkey.within(minutes).n == 1  # of five depths
    shared = dataclasses.replace(passkey, n=20, shared_context=True)
    assert [shared.within(budget).n for budget in (small, minutes)] == [20, 3]
    ppl = Perplexity((256,), num_documents=16, num_windows=2, source=toy_source())
    read = [ppl.within(budget) for budget in (small, minutes)]
    assert [(e.num_documents, e.num_windows) for e in read] == [(8, 1), (4, 1)]
    # The documents of a stream are part of what it is.
    stream = RollingPerplexity((256,), estimator="token", num_documents=50, source=toy_source())
    assert stream.within(small) == stream
    truncated = RollingPerplexity((512,), estimator="truncate", num_documents=50)
    assert truncated.within(small).num_documents == 8
    # What is asked is a part of the recipe, and never more than it.
    for evaluation in (passkey, control, shared, ppl):
        for budget in (*BUDGETS.values(), minutes):
            assert set(evaluation.within(budget).items()) <= set(evaluation.items())


def test_a_text_has_room_for_its_questions():
    assert [questions_per_text(n) for n in (64, 256, 512, 1024, 16384)] == [2, 4, 8, 16, 16]


def test_budgets_are_names_or_minutes():
    assert read_budget("medium") == BUDGETS["medium"]
    assert read_budget("7.5") == 7.5
    for text in ("0", "-3", "inf", "nan", "tiny"):
        with pytest.raises(ValueError, match=f"--budget {text}: give small, medium, full, or a"):
            read_budget(text)


def test_the_measured_speed_is_that_of_the_device(monkeypatch):
    """On a device with a clock of its own, of which every rate is known."""
    real = tiny.lm()
    compiled = set()
    now = 0.0

    class Device:
        config, attention, padded = real.config, real.attention, real.padded

        def run(self, shape: tuple, seconds: float) -> None:
            nonlocal now
            now += seconds + (0.0 if shape in compiled else 3.0)
            compiled.add(shape)

        def loss(self, tokens):
            length = tokens.shape[1] - 1
            of = price.reading(self, Call((length,), real.padded([length])))
            self.run(("loss", length), of.matrices / 4e11 + of.attention / 1e11)

        def continuations(self, prompts, prefixes, *, max_new_tokens):
            written = len(prefixes[0])
            self.run(("written", written), 0.7 + max_new_tokens * (0.02 + written * 0.001))

    monkeypatch.setattr(price.time, "perf_counter", lambda: now)
    speed = price.measure(Device(), 4096)
    assert dataclasses.astuple(speed) == pytest.approx((4e11, 1e11, 0.02, 0.001, 3.0))


def test_a_dry_run_says_what_would_be_read_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "records"
    command = ["eval", "tiny-llama", "--evals", "passkey", "controls", "--seq-len", "256", "512"]
    command += ["--wording", "code", "--out", str(out), "--dry-run"]
    assert main(command) == 0
    text, said = capsys.readouterr()
    assert "counting what is to be read" in said
    for timed in ("a reading of 512 tokens", "writing tokens"):
        assert f"\ntiming this device: {timed} ...\n" in said
    assert re.search(r"^passkey, none: 60 x 256, 60 x 512, \d+ s$", text, re.MULTILINE)
    assert re.search(r"^to read: 180 texts, [\d,]+ tokens, about \d+ (s|min) on this", text, re.M)
    assert not out.exists()
    # Four questions fit into the shorter texts.
    assert main([*command, "--budget", "0.5", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    expected = r"0.5 minutes allow (\d+) texts per length, with 4 questions about"
    bought = re.match(expected, data["notes"][0])
    assert bought
    passkey, *controls = data["evaluations"]
    assert passkey["title"] == "passkey, none" and controls
    assert passkey["texts"] == {length: int(bought[1]) for length in ("256", "512")}
    assert 0 < passkey["tokens"] <= int(bought[1]) * 768
    parts = [part["seconds"] for part in data["evaluations"]]
    assert data["seconds"] == pytest.approx(data["compiling_seconds"] + sum(parts))
    assert data["tokens"] == sum(part["tokens"] for part in data["evaluations"])
    stored = load_file(TINY_LLAMA / "model.safetensors").values()
    assert data["weight_bytes"] == 4 * sum(tensor.size for tensor in stored)
    assert main([*command, "--budget", "soon"]) != 0
    assert "--budget soon: give small, medium, full, or a number" in capsys.readouterr().err

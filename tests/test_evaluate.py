"""Rows are appended as they come, read back, never computed twice; labels say what they belong to."""

import numpy as np
import pytest

from ctxext.evals import Perplexity, Retrieval
from ctxext.evals.base import documents, item_rng
from ctxext.evals.oracle import EchoPrompt, OracleConfig, PerfectReader
from ctxext.evals.suite import SuiteConfig
from ctxext.evals.timing import Timed
from ctxext.evaluate import Part, describe, evaluate, evaluate_checkpoint
from ctxext.files import read_jsonl
from ctxext.interop import hf
from ctxext.loading import load
from ctxext.methods import make
from ctxext.methods.yarn import Yarn
from ctxext.rope import Unscaled
from ctxext.tasks import Passkey, TaskContext
from ctxext.tokenization.tokenizer import Tokenizer
from support import tiny
from support.tiny import config, params
from support.toy_tokenizer import toy_model, toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()
GRID = Retrieval(seq_lens=(64, 128), depths=(0.0, 1.0), n=2, source=toy_source())
PPL = Perplexity(seq_lens=(64, 128), num_documents=2, target_tokens=16, source=toy_source())
PERFECT = PerfectReader(TOKENIZER, OracleConfig(64))


class Interrupted(EchoPrompt):
    """Stops like a user who presses Ctrl-C when the longer prompts come."""

    def continuations(self, prompts, prefixes, **options):
        if len(prompts[0]) > 64:
            raise KeyboardInterrupt
        return super().continuations(prompts, prefixes, **options)


def test_rows_carry_their_labels_and_reach_the_file(tmp_path, capsys):
    sink = tmp_path / "run" / "records.jsonl"
    rows = evaluate(
        PERFECT, (GRID, PPL), method_label="yarn factor=4", sink=sink, checkpoint="base"
    )
    assert [row["item"] for row in rows] == GRID.items() + PPL.items()
    assert read_jsonl(sink) == rows
    assert all(
        (row["checkpoint"], row["method"], row["window"]) == ("base", "yarn factor=4", 64)
        for row in rows
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0].startswith("passkey, yarn factor=4: 8 new of 8 rows in ")
    evaluate(PERFECT, (GRID,), method_label="none", progress=False)
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_evaluation_continues_where_it_stopped(tmp_path, capsys):
    sink = tmp_path / "records.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Interrupted(TOKENIZER, OracleConfig(64)), (GRID,), method_label="none", sink=sink)
    assert len(read_jsonl(sink)) == 4
    with sink.open("a") as file:
        file.write('{"torn')
    rows = evaluate(PERFECT, (GRID,), method_label="none", sink=sink)
    assert [row["correct"] for row in rows] == [False] * 4 + [
        True
    ] * 4  # the first four are not computed again
    assert "passkey, none: 4 new of 8 rows" in capsys.readouterr().err
    assert read_jsonl(sink) == rows
    for label in ({"method_label": "yarn"}, {"method_label": "none", "checkpoint": "step 10"}):
        assert all(row["correct"] for row in evaluate(PERFECT, (GRID,), sink=sink, **label))
    assert len(read_jsonl(sink)) == 24


def test_parts_share_the_work_and_leave_what_one_process_would(tmp_path, capsys):
    whole = evaluate(PERFECT, (GRID, PPL), method_label="none", progress=False)
    sink = tmp_path / "records.jsonl"
    found = []
    for number in (3, 1, 2):
        part = Part.parse(f"{number}/3")
        found.append(evaluate(PERFECT, (GRID, PPL), method_label="none", sink=sink, part=part))
    assert [len(rows) for rows in found] == sorted(len(rows) for rows in found) and found[
        -1
    ] == whole
    assert len(read_jsonl(sink)) == len(whole)  # nothing twice
    err = capsys.readouterr().err
    assert "passkey, none: 2 new of 8 rows in" in err and "rows belong to other parts" in err
    for wrong in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(ValueError, match="is no share of the work"):
            Part.parse(wrong)


def test_the_share_of_time_outside_the_model(monkeypatch):
    clock = iter([10.0, 13.0, 20.0, 21.0])
    monkeypatch.setattr("ctxext.evals.timing.time.perf_counter", lambda: next(clock))
    timed = Timed(PERFECT)
    timed.loss(np.ones((2, 9), int))
    timed.continuations([[1, 2, 3]], [[[]]], max_new_tokens=1)
    assert (timed.seconds, timed.tokens, timed.padded) == (4.0, 19, 19)  # an oracle pads nothing
    timed.padded = 38
    assert timed.shares(16.0) == (0.75, 0.125)
    assert tiny.lm().padded([5, 40, 3]) == (4, 64)


def test_a_model_that_is_not_finite_is_named(tmp_path):
    class Broken(EchoPrompt):
        def continuations(self, prompts, prefixes, **options):
            tokens, nats = super().continuations(prompts, prefixes, **options)
            return tokens, np.full_like(nats, np.nan)

    with pytest.raises(
        ValueError, match=r"^passkey/.*/64/0.0/0, none: the model's output is not finite"
    ):
        evaluate(Broken(TOKENIZER), (GRID,), method_label="none", sink=tmp_path / "records.jsonl")


def test_labels_leave_identities_out():
    assert describe(make("none"), make("causal")) == "none"
    assert describe(make("yarn", factor=4.0), make("causal")) == "yarn(factor=4)"
    both = describe(
        make("linear", factor=2.0), make("self-extend", group_size=4, neighbor_window=64)
    )
    assert both == "linear(factor=2) + self-extend(group_size=4, neighbor_window=64)"


def test_a_checkpoint_under_two_methods(tmp_path):
    """A random model in an HF directory, asked as the command line asks."""
    tokenizer = Tokenizer({"tokenizer.model": toy_model()})
    shape = config(
        vocab_size=tokenizer.vocab_size, max_position_embeddings=64, bos_token_id=1, eos_token_id=2
    )
    hf.save(tmp_path / "base", shape, params(shape), Unscaled(), tokenizer, dtype="float32")
    options: dict = {
        "evals": ("ppl",),
        "seq_lens": (120,),
        "asked": SuiteConfig(source=toy_source()),
    }
    options["out"] = tmp_path / "out"
    with pytest.raises(
        ValueError, match="documents have the 119 tokens"
    ):  # the toy source has three
        evaluate_checkpoint(tmp_path / "base", **options)
    options["evals"] = ("passkey",)
    sink, rows = evaluate_checkpoint(tmp_path / "base", methods=(None, Yarn(factor=2.0)), **options)
    assert sink == tmp_path / "out" / "records.jsonl" and rows == read_jsonl(sink)[-120:]
    assert {(row["checkpoint"], row["method"]) for row in rows} == {
        ("base", "none"),
        ("base", "yarn(factor=2)"),
    }
    lm = load(tmp_path / "base", method=Yarn(factor=2.0))
    for row in rows[-2:]:  # teacher-forced scores and greedy decoding, once more by hand
        haystack = documents(toy_source(), tokenizer)
        context = TaskContext(item_rng(row["item"]), tokenizer, haystack)
        prompt = Passkey().example(context, 120, row["depth"]).prompt
        for step in range(3):
            logits = np.asarray(lm.logits([[*prompt, *row["gold"][:step]]]), np.float64)[0, -1]
            logprob = logits[row["gold"][step]] - np.logaddexp.reduce(logits)
            assert row["answer_logprobs"][step] == pytest.approx(logprob, abs=1e-4)
            greedy = np.asarray(lm.logits([[*prompt, *row["prediction"][:step]]]))[0, -1]
            assert row["prediction"][step] == greedy.argmax()

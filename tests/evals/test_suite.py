"""The names of evaluations on the command line, and what each of them is."""

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from ctxext import demo
from ctxext.cli.commands.eval import add_options, check_used, read_wordings
from ctxext.evals import GrowingWindow, Perplexity, Recovery, Retrieval, Samples
from ctxext.evals.budget import BUDGETS, of_texts
from ctxext.evals.oracle import AnswerKey, OracleConfig
from ctxext.evals.perplexity_estimators import ESTIMATORS
from ctxext.evals.suite import HELDOUT, STANDARD, SuiteConfig, evaluations, power_statements
from ctxext.evaluate import evaluate
from support import tiny
from support.toy_tokenizer import toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()
SOURCE = toy_source()
SMALL = SuiteConfig((256, 512), source=SOURCE)
FULL = SuiteConfig((256, 512), BUDGETS["full"], source=SOURCE)


def needles(evals):
    return [e for e in evals if isinstance(e, Retrieval) and e.condition == "needle"]


def test_a_larger_budget_keeps_the_items_that_were_measured():
    for name in ("passkey", "niah-multikey", "association", "facts", "fwe", "ppl"):
        for less, more in zip(evaluations([name], SMALL), evaluations([name], FULL), strict=True):
            assert len(less.items()) < len(more.items())
            # Another number of depths is another text.
            if not getattr(less, "shared_context", False):
                assert set(less.items()) < set(more.items())


def test_an_answer_key_has_the_whole_standard_suite_right():
    suite = evaluations(STANDARD, SuiteConfig((256,), source=SOURCE))
    assert [e.title for e in suite[:8]] == [
        "passkey",
        "kv",
        "lines",
        "vt",
        "mqar",
        "ppl",
        "growing-window",
        "recovery, passkey",
    ]
    for evaluation in needles(suite):
        records = list(evaluation(AnswerKey.of(evaluation, TOKENIZER)))
        assert records
        for record in records:
            assert record.scores.correct
            assert record.scores.failure is None
            assert record.question.tokens <= 256


def test_every_named_retrieval_has_controls():
    kv, ppl, floor, alone = evaluations(("kv", "controls", "ppl"), SMALL)
    assert (floor.condition, floor.seq_lens) == ("no-needle", (256, 512))
    assert (alone.condition, alone.seq_lens) == ("needle-only", (256,))
    twins = {item.replace("-no-needle", "") for item in floor.items()}
    assert twins < set(kv.items())
    assert ppl.title == "ppl"


@pytest.mark.parametrize(
    "name",
    [
        "passkey:yarn",
        "passkey:landmark",
        "niah",
        "niah-multivalue",
        "niah-multiquery",
        "facts",
        "association",
        "fwe",
    ],
)
def test_every_name_gives_records_with_their_own_items(name: str):
    records = []
    for evaluation in evaluations([name], SuiteConfig((512,), source=SOURCE)):
        answer_key = AnswerKey.of(evaluation, TOKENIZER, config=OracleConfig(512))
        records += evaluate(answer_key, [evaluation], progress=False)
    assert records
    assert all(record.scores.correct for record in records)
    assert len({record.item for record in records}) == len(records)


def test_evaluations_of_user_files(tmp_path):
    with pytest.raises(ValueError, match="qa asks the questions of a file: give --questions FILE"):
        evaluations(["qa"], SMALL)
    with pytest.raises(
        ValueError, match="ruler:reference reads a file that you provide: give --ruler DIR"
    ):
        evaluations(["ruler:reference"], SMALL)
    (tmp_path / "niah_single_1.jsonl").write_text(
        json.dumps({"input": "a 17 b", "outputs": ["17"]}) + "\n"
    )
    (samples,) = evaluations(["ruler:reference"], SuiteConfig((4096,), ruler=tmp_path))
    assert isinstance(samples, Samples)
    assert samples.seq_len == 4096
    assert len(samples.items()) == 1
    with pytest.raises(ValueError, match="does not say the length of its samples"):
        evaluations(["ruler:reference"], SuiteConfig((4096, 8192), ruler=tmp_path))
    lines = [
        {
            "question": f"Who keeps the ref{i}?",
            "answers": [f"Ada ref{i}"],
            "document": f"Ada ref{i} keeps the ref{i}. " * 3,
        }
        for i in range(60)
    ]
    questions = tmp_path / "own.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (qa,) = evaluations(["qa"], SuiteConfig((512,), source=SOURCE, questions=questions))
    assert all(record.scores.correct for record in qa(AnswerKey.of(qa, TOKENIZER)))


def test_books_and_recovery_of_the_command_line():
    books, recovery = evaluations(("growing-window", "recovery"), SMALL)
    assert isinstance(books, GrowingWindow)
    assert (books.seq_lens, books.num_documents, books.source) == ((512,), 4, SOURCE)
    assert isinstance(recovery, Recovery)
    assert recovery.seq_lens == (256, 512)
    # Every text has room for two needles per depth.
    assert recovery.depths == (0.0, 1.0)
    recovery.check(TOKENIZER)
    long = dataclasses.replace(SMALL, seq_lens=(4096, 8192), books=HELDOUT, budget=of_texts(9, 16))
    books, recovery = evaluations(("growing-window", "recovery"), long)
    assert (books.seq_lens, books.source) == ((8192,), HELDOUT)
    assert recovery.depths == tuple(i / 7 for i in range(8))
    assert recovery.n == 9
    assert (books.within(BUDGETS["small"]).num_documents, recovery.within(of_texts(2, 8)).n) == (
        4,
        2,
    )


def test_minutes_share_texts_wherever_a_task_can_and_they_fit():
    config = dataclasses.replace(SMALL, seq_lens=(1024,), budget=of_texts(1, 16))
    num_questions = {}
    for name in (
        "passkey",
        "kv",
        "lines",
        "mqar",
        "niah",
        "niah-multivalue",
        "niah-multiquery",
        "vt",
    ):
        (evaluation,) = evaluations([name], config)
        assert isinstance(evaluation, Retrieval)
        assert evaluation.shared_context
        evaluation.check(TOKENIZER)
        num_questions[name] = len(evaluation.items())
    # A chain of five links and four needles per question take more room.
    assert num_questions["passkey"] == num_questions["niah"] == 16
    assert num_questions["niah-multiquery"] == num_questions["niah-multivalue"] == 6
    assert num_questions["vt"] == 6
    (alone,) = evaluations(["vt"], SMALL)
    assert not alone.shared_context


def test_power_statements():
    (alone, shared) = power_statements(evaluations(("passkey", "kv", "ppl", "controls"), SMALL))
    assert alone.startswith(
        "passkey: 12 questions per depth, 60 per length, can tell methods apart that differ by "
    )
    assert shared.startswith("kv: 24 questions per depth, 120 per length about 24 texts, can tell ")
    with pytest.raises(
        ValueError, match="there is no evaluation 'zzz'; known: association, cwe, facts"
    ):
        evaluations(["zzz"], SMALL)


def test_the_wording_is_prose_unless_another_one_is_asked_for():
    for config, wording in (
        (SMALL, "prose"),
        (dataclasses.replace(SMALL, wording="code"), "code"),
    ):
        suite = evaluations(("passkey", "kv", "controls"), config)
        assert {e.task.wording for e in suite if isinstance(e, Retrieval)} == {wording}


def test_wordings_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("authors.json", "a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    assert read_wordings([]) == {}
    assert read_wordings(["code"]) == {"wording": "code"}
    both = {"wording": "prose", "passkey_text": Path("authors.json")}
    assert read_wordings(["authors.json", "prose"]) == both
    for twice in (["code", "prose"], ["a.json", "b.json"]):
        with pytest.raises(ValueError, match="--wording takes prose or code once, and one file"):
            read_wordings(twice)
    with pytest.raises(ValueError, match="--wording cod is neither prose nor code nor a file"):
        read_wordings(["cod"])


def test_an_option_that_no_evaluation_reads_is_refused(tmp_path):
    authors = tmp_path / "authors.json"
    authors.write_text("{}")
    parser = argparse.ArgumentParser()
    add_options(parser)
    for arguments, evals, message in (
        ("--wording code", "ppl controls", "--wording code would change nothing: only kv, passkey"),
        (
            "--wording prose",
            "lines",
            "--wording prose would change nothing: only kv, passkey, recovery read",
        ),
        (f"--wording {authors}", "passkey", "authors.json would change .* only passkey:landmark"),
        (f"--wording code {authors}", "passkey:yarn", "--wording code would change nothing"),
        ("--questions q.json", "passkey", "--questions would change nothing: only qa, longbench"),
        ("--books books", "ppl", "--books would change nothing: only growing-window read it"),
        ("--ruler samples", "ruler", "--ruler would change nothing: only ruler:reference read"),
    ):
        args = parser.parse_args(["DIR", *arguments.split()])
        with pytest.raises(ValueError, match=message):
            check_used(args, evals.split())
    used = f"DIR --wording code {authors} --questions q.json --ruler samples".split()
    check_used(parser.parse_args(used), ["kv", "passkey:pi", "qa", "ruler:reference"])
    check_used(parser.parse_args(["DIR", "--wording", "code"]), STANDARD)
    check_used(parser.parse_args(["DIR"]), ["ppl"])


def test_the_small_budget_and_the_demo_read_enough_documents():
    """With fewer than eight, intervals are too wide to say much."""
    names = ["ppl", *(f"ppl:{name}" for name in ESTIMATORS), "longppl"]
    chosen = evaluations(names, SMALL)
    assert [getattr(evaluation, "num_documents", 0) for evaluation in chosen] == [8] * len(names)
    (of_demo,) = [x for x in demo.experiment(tiny.config()).evals if isinstance(x, Perplexity)]
    assert of_demo.num_documents == 16

"""Records are appended as they are computed, read back and never computed twice."""

import copy
import dataclasses
import json
import os
import shutil
import signal
from collections import Counter

import numpy as np
import pytest

from ctxext.cli.termination import terminated_as_interrupted
from ctxext.data.sources import Files, Stdlib
from ctxext.evals import Perplexity, Retrieval, evaluated_model
from ctxext.evals.base import documents, item_rng
from ctxext.evals.claims import _digest as claim_digest
from ctxext.evals.oracle import EchoPrompt, OracleConfig, PerfectReader
from ctxext.evals.record import EvaluatedModel, distinct_titles, read_records
from ctxext.evals.suite import SuiteConfig, evaluations
from ctxext.evals.timing import TimedModel
from ctxext.evaluate import (
    NamedModel,
    Questions,
    Shard,
    default_lengths,
    evaluate,
    evaluate_checkpoint,
)
from ctxext.export import run_card
from ctxext.loading import load
from ctxext.methods import make
from ctxext.methods.linear import Linear
from ctxext.methods.ntk import DynamicNTK
from ctxext.methods.yarn import Yarn
from ctxext.model import reading
from ctxext.progress import Meter
from ctxext.report import tables, verdict
from ctxext.report.analysis.records import variants
from ctxext.rope import Unscaled
from ctxext.tasks import Passkey, TaskContext
from ctxext.tokenization.tokenizer import Tokenizer
from support import tiny
from support.hf_files import write_hf
from support.runs import write_run
from support.tiny import config, params
from support.tiny_train import write_texts
from support.toy_tokenizer import toy_model, toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()
PASSKEY = Passkey(wording="code")  # whose lines are short
GRID = Retrieval(seq_lens=(64, 128), depths=(0.0, 1.0), n=2, task=PASSKEY, source=toy_source())
PPL = Perplexity(seq_lens=(64, 128), num_documents=2, target_tokens=16, source=toy_source())
PERFECT = PerfectReader(TOKENIZER, OracleConfig(64))


SENTENCEPIECE = Tokenizer({"tokenizer.model": toy_model()})
SHAPE = config(
    vocab_size=SENTENCEPIECE.vocab_size, max_position_embeddings=64, bos_token_id=1, eos_token_id=2
)


def write_base(path, seed=0):
    weights = params(SHAPE, seed)
    write_hf(path, SHAPE, weights, Unscaled(), SENTENCEPIECE, dtype="float32")
    return path


def models(records):
    return list(dict.fromkeys(record.model for record in records))


class Interrupted(EchoPrompt):
    """Stops at the longer prompts, like a user who presses Ctrl-C."""

    def continuations(self, prompts, prefixes, **options):
        if len(prompts[0]) > 64:
            raise KeyboardInterrupt
        return super().continuations(prompts, prefixes, **options)


def test_records_name_their_model_and_reach_the_file(tmp_path, capsys):
    sink = tmp_path / "run" / "records.jsonl"
    model = EvaluatedModel(window=64, rope="yarn(factor=4)", checkpoint="base")
    records = evaluate(PERFECT, (GRID, PPL), model=model, sink=sink)
    assert [record.item for record in records] == GRID.items() + PPL.items()
    assert read_records(sink) == records
    assert all(record.model == model for record in records)
    captured = capsys.readouterr()
    assert captured.out == ""
    first_line = captured.err.splitlines()[0]
    assert first_line.startswith("passkey, yarn(factor=4): 8 new of 8 records in ")
    evaluate(PERFECT, (GRID,), progress=False)
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_evaluation_continues_where_it_stopped(tmp_path, capsys):
    sink = tmp_path / "records.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Interrupted(TOKENIZER, OracleConfig(64)), (GRID,), sink=sink)
    assert len(read_records(sink)) == 4
    with sink.open("a") as file:
        file.write('{"torn')
    records = evaluate(PERFECT, (GRID,), sink=sink)
    # The first four, of the interrupted model, are not computed again.
    assert [record.scores.correct for record in records] == [False] * 4 + [True] * 4
    assert "passkey, none: 4 new of 8 records" in capsys.readouterr().err
    assert read_records(sink) == records
    for model in (EvaluatedModel(64, rope="yarn"), EvaluatedModel(64, checkpoint="step 10")):
        records = evaluate(PERFECT, (GRID,), model=model, sink=sink)
        assert all(record.scores.correct for record in records)
    assert len(read_records(sink)) == 24


def test_sigterm_in_the_middle_of_a_reading_loses_only_that_reading(tmp_path, capsys, monkeypatch):
    """The records afterwards equal those of an evaluation that nobody interrupted, to the bit."""
    monkeypatch.setitem(reading.PART, "cpu", 1e3)
    monkeypatch.setattr(reading, "SMALLEST_CHUNK", 32)
    lm = dataclasses.replace(tiny.lm(SHAPE), tokenizer=SENTENCEPIECE)
    grid = dataclasses.replace(GRID, seq_lens=(128,), batch_tokens=256)
    whole = evaluate(lm, (grid,), progress=False)
    add = Meter.add
    heard = []

    def interrupt(meter, operations):
        """In the middle of the second reading, when the answers of the first are kept."""
        add(meter, operations)
        heard.append(meter)
        if len(set(map(id, heard))) == 2 and heard.count(meter) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    sink = tmp_path / "records.jsonl"
    with (
        monkeypatch.context() as patched,
        pytest.raises(KeyboardInterrupt),
        terminated_as_interrupted(),
    ):
        patched.setattr(Meter, "add", interrupt)
        evaluate(lm, (grid,), sink=sink)
    assert 0 < len(read_records(sink)) < len(whole)
    kept = len(read_records(sink))
    assert f"interrupted: {kept} of 4 missing records are kept in {sink}" in capsys.readouterr().err
    assert evaluate(lm, (grid,), sink=sink, progress=False) == whole
    assert read_records(sink) == whole


def test_a_text_is_known_by_its_content_not_by_its_path(tmp_path):
    """Records of a text that was changed are not taken for those of the new one."""
    text = "\n".join(f"line {number} of a text" for number in range(200))
    path = tmp_path / "text.txt"
    path.write_text(text)
    directory = tmp_path / "texts"
    directory.mkdir()
    shutil.copy(path, directory / "a.txt")
    sink = tmp_path / "records.jsonl"

    def evaluated(haystack):
        source = Files(str(haystack))
        evals = [dataclasses.replace(GRID, source=source, n=1)]
        evals.append(dataclasses.replace(PPL, source=source, num_documents=1))
        evaluate(PERFECT, evals, sink=sink, progress=False)
        return len(read_records(sink))

    assert evaluated(path) == 6
    for copied in (path, shutil.copy(path, tmp_path / "moved.txt"), directory):
        assert evaluated(copied) == 6, "the same text"
    (tmp_path / "moved.txt").write_text(text.replace("text", "tree"))
    assert evaluated(tmp_path / "moved.txt") == 12
    (directory / "b.txt").write_text(text)
    assert evaluated(directory) == 18
    titles = distinct_titles(read_records(sink), lambda record: record.evaluation)
    assert all("text=" in title for title in titles.values())
    assert len(set(titles.values())) == 6


def test_records_about_another_version_of_the_standard_library_are_refused(tmp_path, monkeypatch):
    sink = tmp_path / "records.jsonl"
    evals = [dataclasses.replace(GRID, source=Stdlib("heldout"), seq_lens=(64,), n=1)]
    records = evaluate(PERFECT, evals, sink=sink, progress=False)
    monkeypatch.setattr("ctxext.data.sources.stdlib._content_sha256", lambda split: "12345678")
    with pytest.raises(ValueError, match="passkey are about another text .*another version of Py"):
        evaluate(PERFECT, evals, sink=sink, progress=False)
    assert read_records(sink) == records


def test_key_tokens_of_an_evaluator_that_has_changed_are_found_again(tmp_path):
    base = NamedModel.load(write_base(tmp_path / "base"))
    source = Files(str(write_texts(tmp_path / "texts", 10)))
    config = SuiteConfig(source=source, seq_lens=(48, 96))
    options: dict = {"config": config, "out": tmp_path / "out", "progress": False}
    evals = (f"longppl:{write_base(tmp_path / 'evaluator', 1)}",)
    sink, first = evaluate_checkpoint(base, evals=evals, **options)
    evaluate_checkpoint(base, evals=evals, **options)
    assert read_records(sink) == first
    shutil.rmtree(tmp_path / "evaluator")
    write_base(tmp_path / "evaluator", 2)
    _, second = evaluate_checkpoint(base, evals=evals, **options)
    assert read_records(sink) == first + second
    assert not {record.item for record in first} & {record.item for record in second}


class Crowded(EchoPrompt):
    """While it answers, another process evaluates the same model into the same file."""

    def __init__(self, other):
        super().__init__(TOKENIZER, OracleConfig(64))
        self.other = other

    def continuations(self, prompts, prefixes, **options):
        if self.other is not None:
            other = self.other
            self.other = None
            other()
        return super().continuations(prompts, prefixes, **options)


def test_two_evaluations_do_not_do_the_same_work_twice(tmp_path):
    """The second is refused, by name of the first; other items, shares, models, places are not."""
    sink = tmp_path / "out" / "records.jsonl"
    model = EvaluatedModel(64, rope="yarn")
    first = Shard(1, 2)

    def others():
        holder = rf"process {os.getpid()} on [\w.-]+ since 20\d\d-"
        message = f"yarn is being evaluated into .*out by {holder}.*; wait for it, stop it, or choo"
        for shard in (Shard(1, 2), Shard(1, 4), Shard(1, 1)):
            with pytest.raises(ValueError, match=message):
                evaluate(PERFECT, (PPL, GRID), model=model, sink=sink, shard=shard)
        assert read_records(sink) == []
        evaluate(PERFECT, (GRID,), model=model, sink=sink, shard=Shard(2, 2))
        evaluate(PERFECT, (PPL,), model=model, sink=sink)
        evaluate(PERFECT, (GRID,), model=EvaluatedModel(64), sink=sink)
        evaluate(PERFECT, (GRID,), model=model, sink=tmp_path / "elsewhere" / "records.jsonl")

    evaluate(Crowded(others), (GRID,), model=model, sink=sink, shard=first)
    records = read_records(sink)
    assert len(records) == len({(record.model, record.item) for record in records})
    counts = [4, 4, len(PPL.items()), 8]
    assert len(records) == sum(counts)
    assert os.listdir(tmp_path / "out" / ".claims") == ["lock"], "claims end with their process"


def test_what_a_killed_evaluation_claimed_is_free(tmp_path):
    sink = tmp_path / "records.jsonl"
    claims = tmp_path / ".claims"
    claims.mkdir()
    model = evaluated_model(PERFECT)
    (claims / "00.lock").write_text('{"pid": 1, "host": "h", "since": "2026-01-01T00:00:00+00:00"}')
    items = [claim_digest(model, item) for item in GRID.items()]
    (claims / "00.json").write_text(json.dumps(items))
    assert len(evaluate(PERFECT, (GRID,), sink=sink)) == 8
    assert os.listdir(claims) == ["lock"]


def test_shards_together_write_the_records_of_one_process(tmp_path, capsys):
    whole = evaluate(PERFECT, (GRID, PPL), progress=False)
    sink = tmp_path / "records.jsonl"
    results = []
    for number in (3, 1, 2):
        shard = Shard.parse(f"{number}/3")
        results.append(evaluate(PERFECT, (GRID, PPL), sink=sink, shard=shard))
    counts = [len(records) for records in results]
    assert counts == sorted(counts)
    assert results[-1] == whole
    assert len(read_records(sink)) == len(whole), "no record is written twice"
    progress = capsys.readouterr().err
    assert "passkey, none: 2 new of 8 records in" in progress
    assert "records belong to other shards" in progress
    for invalid in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(ValueError, match="is not a share of the work"):
            Shard.parse(invalid)


def test_the_share_of_time_outside_the_model(monkeypatch):
    clock = iter([10.0, 13.0, 20.0, 21.0])
    monkeypatch.setattr("ctxext.evals.timing.time.perf_counter", lambda: next(clock))
    timed = TimedModel(PERFECT)
    timed.loss(np.ones((2, 9), int))
    timed.continuations([[1, 2, 3]], [[[]]], max_new_tokens=1)
    assert timed.seconds == 4.0
    assert timed.tokens == 19
    assert timed.padded_tokens == 19, "an oracle pads nothing"
    timed.padded_tokens = 38
    assert timed.shares(16.0) == (0.75, 0.125)
    assert tiny.lm().padded([5, 40, 3]) == (4, 64)


def test_a_model_that_is_not_finite_is_named(tmp_path):
    class Broken(EchoPrompt):
        def continuations(self, prompts, prefixes, **options):
            tokens, nll = super().continuations(prompts, prefixes, **options)
            return tokens, np.full_like(nll, np.nan)

    message = r"^passkey/.*/64/0.0/0, none: the model's output is not finite"
    with pytest.raises(ValueError, match=message):
        evaluate(Broken(TOKENIZER), (GRID,), sink=tmp_path / "records.jsonl")


def test_labels_leave_out_methods_that_change_nothing():
    lm = dataclasses.replace(tiny.lm(), tokenizer=Tokenizer({"tokenizer.model": toy_model()}))
    yarn = evaluated_model(lm.with_method(make("yarn", factor=4.0)))
    assert (evaluated_model(lm).label, yarn.label) == ("none", "yarn(factor=4)")
    grouped = make("self-extend", group_size=4, neighbor_window=64)
    both = evaluated_model(lm.with_method(make("linear", factor=2.0), grouped))
    assert both.label == "linear(factor=2) + self-extend(group_size=4, neighbor_window=64)"


def test_a_checkpoint_under_two_methods(tmp_path):
    """A random model in an HF directory, evaluated as the command line does it."""
    tokenizer = SENTENCEPIECE
    base = NamedModel.load(write_base(tmp_path / "base"))
    config_of_suite = SuiteConfig(source=toy_source(), seq_lens=(120,))
    options: dict = {"config": config_of_suite, "out": tmp_path / "out"}
    message = r"needs 8 documents of at least 119 tokens.*the other evaluations alone \(.*--evals\)"
    with pytest.raises(ValueError, match=message):
        evaluate_checkpoint(base, evals=("passkey", "ppl"), **options)
    assert not (tmp_path / "out").exists()
    sink, records = evaluate_checkpoint(
        base, evals=("passkey",), methods=(None, Yarn(factor=2.0)), **options
    )
    assert sink == tmp_path / "out" / "records.jsonl"
    assert records == read_records(sink)[-120:]
    assert {(record.model.checkpoint, record.model.label) for record in records} == {
        ("base", "none"),
        ("base", "yarn(factor=2)"),
    }
    lm = load(tmp_path / "base", method=Yarn(factor=2.0))
    # Teacher-forced scores and greedy decoding, recomputed one token at a time.
    for record in records[-2:]:
        gold = record.question.gold
        prediction = record.scores.prediction
        context = TaskContext(item_rng(record.item), tokenizer, documents(toy_source(), tokenizer))
        prompt = Passkey().example(context, 120, record.question.depth).prompt
        for step in range(3):
            logits = np.asarray(lm.logits([[*prompt, *gold[:step]]]), np.float64)[0, -1]
            logprob = logits[gold[step]] - np.logaddexp.reduce(logits)
            assert record.scores.answer_logprobs[step] == pytest.approx(logprob, abs=1e-4)
            greedy = np.asarray(lm.logits([[*prompt, *prediction[:step]]]))[0, -1]
            assert prediction[step] == greedy.argmax()


QUESTIONS: dict = {
    "evals": ("passkey",),
    "config": SuiteConfig(source=toy_source(), seq_lens=(120,)),
    "progress": False,
}


def test_each_checkpoint_of_a_run_has_records_and_a_label_of_its_own(tmp_path):
    checkpoints = {step: params(SHAPE, seed=step) for step in (18, 100)}
    run = write_run(tmp_path / "run", SHAPE, SENTENCEPIECE, checkpoints, rope=Linear(2.0))
    early_model = NamedModel.load(run.path, checkpoint=18)
    late_model = NamedModel.load(run.path)
    sink, early = evaluate_checkpoint(early_model, **QUESTIONS)
    assert sink == run.records_file
    _, late = evaluate_checkpoint(late_model, **QUESTIONS)
    _, changed = evaluate_checkpoint(late_model, methods=(Yarn(factor=2.0),), **QUESTIONS)
    assert [model.label for model in models([*early, *late, *changed])] == [
        "linear(factor=2), 18 steps at 64",
        "linear(factor=2), 100 steps at 64",
        "yarn(factor=2), 100 steps at 64 under linear(factor=2)",
    ]
    assert len(read_records(sink)) == 3 * len(early)
    # The run's own evaluation after its last step describes the same model.
    of_run = evaluated_model(load(run.path), steps=100, train_seq_len=64)
    assert models(late) == [of_run]
    accuracies = tables(read_records(sink)).split("\n\n")[0].splitlines()
    rows = [line.partition("  ")[0] for line in accuracies if "/60 " in line]
    assert rows == [model.label for model in models(read_records(sink))]
    # Written elsewhere, they name their run.
    _, apart = evaluate_checkpoint(early_model, out=tmp_path / "apart", **QUESTIONS)
    (model,) = models(apart)
    assert (model.checkpoint, model.steps, bool(model.weights)) == ("run", 18, True)


def test_a_card_shows_the_results_of_its_own_checkpoint(tmp_path):
    checkpoints = {step: params(SHAPE, seed=step) for step in (18, 100)}
    run = write_run(tmp_path / "run", SHAPE, SENTENCEPIECE, checkpoints, rope=Linear(2.0))
    lm = load(run.path)
    described = {
        steps: evaluated_model(lm, steps=steps, train_seq_len=64) for steps in (0, 18, 100)
    }
    assert run_card(run, described[100])["summary"] == ""
    assert "versions" not in run_card(run, described[100])  # it recorded none
    command = "ctxext run a.py --init /opt/me/base"
    recorded = {"versions": {"jax": "0.10", "flax": None}, "git_commit": "c0ffee"}
    run.provenance_file.write_text(json.dumps({**recorded, "command": command}))
    card = run_card(run, described[100])
    assert (card["versions"], card["commit"]) == ("jax 0.10", "c0ffee")
    assert card["command"] == "ctxext run a.py --init base"
    for model in described.values():
        evaluate(PERFECT, (GRID,), model=model, sink=run.records_file, progress=False)
    for steps, other in ((18, 100), (100, 18)):
        card = run_card(run, described[steps])
        assert card["method"] == described[steps].label
        assert described[steps].label in card["summary"]
        assert described[0].label in card["summary"]
        assert described[other].label not in card["summary"]


def test_checkpoints_of_one_name_are_not_taken_for_each_other(tmp_path, monkeypatch):
    """Two directories called "export" have the same default place for their records."""
    monkeypatch.chdir(tmp_path)
    directories = [write_base(tmp_path / name / "export", seed) for seed, name in enumerate("ab")]
    sinks, results = zip(
        *(evaluate_checkpoint(NamedModel.load(path), **QUESTIONS) for path in directories),
        strict=True,
    )
    assert sinks[0] == sinks[1]
    predictions = [[record.scores.prediction for record in records] for records in results]
    assert predictions[0] != predictions[1]
    names = [variant.name for variant in variants(read_records(sinks[0]))]
    assert len(set(names)) == 2
    assert all(name.startswith("none (export ") for name in names)


def test_another_number_type_is_another_model(tmp_path):
    path = write_base(tmp_path / "base")
    out = tmp_path / "out"
    evaluate_checkpoint(NamedModel.load(path), out=out, **QUESTIONS)
    rounded = NamedModel.load(path, dtype="bfloat16")
    _, records = evaluate_checkpoint(rounded, out=out, **QUESTIONS)
    assert [model.label for model in models(records)] == ["none, bfloat16"]
    assert len(read_records(out / "records.jsonl")) == 2 * len(records)


def test_the_same_weights_with_another_tokenizer_are_another_model(tmp_path):
    data = copy.deepcopy(SENTENCEPIECE.json_data)
    data["model"]["merges"] = data["model"]["merges"][:100]
    other = Tokenizer({"tokenizer.json": json.dumps(data).encode()})
    first, second = tmp_path / "first" / "base", tmp_path / "second" / "base"
    write_base(first)
    write_hf(second, SHAPE, params(SHAPE, 0), Unscaled(), other, dtype="float32")
    out = tmp_path / "out"
    evaluate_checkpoint(NamedModel.load(first), out=out, **QUESTIONS)
    _, records = evaluate_checkpoint(NamedModel.load(second), out=out, **QUESTIONS)
    assert len(read_records(out / "records.jsonl")) == 2 * len(records)
    assert len({record.model for record in read_records(out / "records.jsonl")}) == 2


def test_a_checkpoint_that_is_not_a_run_is_not_called_untrained(tmp_path):
    """Whether its weights were trained before is not known."""
    base = NamedModel.load(write_base(tmp_path / "base"))
    _, records = evaluate_checkpoint(base, out=tmp_path, **QUESTIONS)
    text = "\n".join([*verdict(records), tables(records)])
    assert "zero-shot" not in text


def test_the_default_lengths_reach_what_a_checkpoint_declares():
    assert default_lengths(4096, 4096) == (4096, 8192, 16_384, 32_768)
    assert default_lengths(8192, 131_072) == (8192, 32_768, 65_536, 131_072)  # Llama 3.1
    assert default_lengths(4096, 8192) == (4096, 8192)


def test_the_default_lengths_reach_the_target_of_the_method(tmp_path):
    base = NamedModel.load(write_base(tmp_path / "base"))
    config = SuiteConfig(source=toy_source())
    for methods, expected in (
        ((None,), (64, 128, 256, 512)),
        ((Yarn(factor=8.0),), (64, 128, 256, 512)),
        ((Yarn(factor=2.0),), (64, 128)),
        ((Yarn(factor=16.0),), (64, 256, 512, 1024)),
        ((DynamicNTK(factor=2.0),), (64, 128, 256, 512)),  # follows the length
        ((Yarn(factor=2.0), Linear(16.0)), (64, 128, 256, 512, 1024)),
    ):
        questions = Questions.of(base, methods=methods, evals=("ppl",), config=config)
        asked = [evaluation for model in questions.models for evaluation in model.evals]
        assert {evaluation.seq_lens for evaluation in asked} == {expected}


def test_what_is_asked_without_controls_is_compared_with_the_baseline_on_disk(tmp_path):
    base = NamedModel.load(write_base(tmp_path / "base"))
    config = SuiteConfig(source=toy_source(), seq_lens=(120,), wording="code")
    evals = evaluations(("passkey",), dataclasses.replace(config, seq_lens=(64, 96)))
    sink = tmp_path / "records.jsonl"
    model = base.describe(base.lm, directory=tmp_path)
    evaluate(PERFECT, evals, model=model, sink=sink, progress=False)
    options: dict = {"evals": ("passkey",), "config": config, "out": tmp_path, "progress": False}
    _, records = evaluate_checkpoint(base, methods=(Yarn(factor=2.0),), **options)
    asked = Counter((record.model.label, record.seq_len) for record in records)
    assert asked == {("yarn(factor=2)", 120): 60, ("none", 64): 60}
    text = "\n".join(verdict(records))
    assert "no in-window baseline" not in text
    assert "in-window baseline, 60/60 at the window of 64 tokens" in text

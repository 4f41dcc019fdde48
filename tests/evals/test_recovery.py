"""Recovery: its three likelihoods, from prompts built by hand and from oracles."""

import dataclasses

import numpy as np
import pytest

from ctxext import tasks
from ctxext.evals import Recovery, evaluated_model
from ctxext.evals.base import documents
from ctxext.evals.oracle import FORESEEN, SURPRISE, PerfectReader, WindowReader
from ctxext.evals.work import calls_of, readings
from ctxext.tasks.base import TaskContext
from support.toy_tokenizer import toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()
RECOVERY = Recovery(
    (256, 512),
    depths=(0.0, 0.5, 1.0),
    n=2,
    task=tasks.Passkey(wording="code"),
    source=toy_source(),
)


def test_the_three_likelihoods_are_those_of_prompts_built_by_hand(two_llamas):
    import torch

    torch_model, lm = two_llamas
    recovery = dataclasses.replace(RECOVERY, seq_lens=(256,), n=1, depths=(0.0, 1.0))

    def nats(prompt: list[int], answer: list[int]) -> float:
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = torch_model(ids).logits[0, len(prompt) - 1 : -1]
        return float(
            torch.nn.functional.cross_entropy(logits, ids[0, -len(answer) :]) * len(answer)
        )

    records = list(recovery(lm))
    haystack = documents(recovery.source, lm.tokenizer)
    (cells,) = [[cell for cell in recovery._grid()]]
    triples = recovery.ask(lm.tokenizer, haystack, cells)
    encode = TaskContext(np.random.default_rng(0), lm.tokenizer, haystack).encode
    text = lm.tokenizer.decode(triples[0].present.prompt.tolist())
    for record, triple in zip(records, triples, strict=True):
        name, value = record.facts["name"], record.facts["value"]
        other, other_value = (triple.absent.meta[key] for key in ("name", "value"))
        # The text holds the needle of one question and not that of the other.
        assert f"# key {name}={value}" in text
        assert other_value not in text
        assert f"# key {other}" not in text
        shared = triple.present.prompt[: triple.present.num_shared_tokens].tolist()
        question = encode(f"\n# key {name}=")
        alone = [lm.tokenizer.bos_id, *encode(f"\n# key {name}={value}\n"), *question]
        scores = record.scores
        assert scores.count == len(encode(value))
        assert scores.nll == pytest.approx(nats([*shared, *question], encode(value)), rel=1e-4)
        assert scores.nll_alone == pytest.approx(nats(alone, encode(value)), rel=1e-4)
        assert scores.nll_without == pytest.approx(
            nats([*shared, *encode(f"\n# key {other}=")], encode(other_value)), rel=1e-4
        )
        assert record.question.tokens == 256


def test_oracles_have_the_recovery_of_their_window():
    for record in RECOVERY(PerfectReader(TOKENIZER)):
        scores = record.scores
        assert scores.nll == scores.nll_alone == pytest.approx(FORESEEN * scores.count)
        # Nothing foresees a number that is not there, however it begins.
        assert scores.nll_without == pytest.approx(SURPRISE * scores.count, rel=1e-6)
    for record in RECOVERY(WindowReader(TOKENIZER, 128)):
        near = record.question.distance + record.scores.count - 1 <= 128
        assert near == (record.question.depth == 1)
        expected = FORESEEN if near else SURPRISE
        assert record.scores.nll == pytest.approx(expected * record.scores.count)
        assert record.scores.nll_alone == pytest.approx(FORESEEN * record.scores.count)


def test_a_text_is_read_once_for_all_of_its_questions():
    model = PerfectReader(TOKENIZER)
    calls = calls_of(RECOVERY, model, RECOVERY.items(), evaluated_model(model))
    by_length = readings(calls)
    long = {length: count for length, count in by_length.items() if length > 100}
    # Two texts of each length, padded to the longer prompt; the needles alone are short.
    assert sum(long.values()) == 4
    assert sum(by_length.values()) == 4 + 12


def test_items_stay_and_resume():
    model = WindowReader(TOKENIZER, 128)
    old = {record.item: record for record in RECOVERY(model)}
    assert list(old) == RECOVERY.items()
    more = dataclasses.replace(RECOVERY, n=3)
    assert {r.item: r for r in more(model) if r.item in old} == old
    some = RECOVERY.items()[1::4]
    resumed = list(RECOVERY.records(model, some, evaluated_model(model)))
    assert resumed == [old[item] for item in some]
    assert len({record.cluster.text for record in old.values()}) == 4


def test_refusals():
    with pytest.raises(ValueError, match="recovery: facts asks one question about each text"):
        Recovery((512,), task=tasks.Facts())
    with pytest.raises(ValueError, match="at least one length"):
        Recovery(())
    with pytest.raises(ValueError, match="a prompt of 64 tokens cannot hold 6 record"):
        dataclasses.replace(RECOVERY, seq_lens=(64,)).check(TOKENIZER)

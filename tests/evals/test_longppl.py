"""LongPPL: the published package's key tokens and values, planted keys, and edge cases."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ctxext import load
from ctxext.assets import TINY_LLAMA
from ctxext.data.corpus import Corpus
from ctxext.data.sources import TextSource
from ctxext.evals import LongPPL
from ctxext.evals.key_tokens import ContrastiveKeys, key_spans, tokens_inside
from ctxext.evals.oracle import SURPRISE, ContextCurve, OracleConfig, PerfectReader, WindowReader
from ctxext.evals.record import EvaluatedModel
from ctxext.evals.suite import SuiteConfig, evaluations
from ctxext.evaluate import evaluate
from ctxext.report import summary, tables, write_report
from ctxext.tasks import KeyValue
from support.key_tokens import AnswerKeys, GivenKeys
from support.letters import TEXT, Letters, write_letters

CASES = json.loads((Path(__file__).parents[1] / "golden" / "longppl.json").read_text())["cases"]


@dataclasses.dataclass(frozen=True)
class Texts(TextSource):
    texts: tuple[str, ...]

    def open(self, tokenizer):
        return Corpus.from_texts(self.texts, tokenizer)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    write_letters(folder)
    return {"tiny-llama": load(TINY_LLAMA), "letters": load(folder)}


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['tested']} by {case['evaluator']}, {case['alpha']}"
)
def test_the_published_package_agrees(models, case):
    """Key spans, their tokens under another tokenizer, LongPPL and perplexity.

    Only the evaluator reads BOS.
    """
    by_another_model = case["tested"] != case["evaluator"]
    keys = ContrastiveKeys(
        case["trunc_len"],
        case["stride"],
        case["alpha"],
        case["beta"],
        case["evaluator"] if by_another_model else "",
        models.get if by_another_model else None,
    )
    assert key_spans(models[case["evaluator"]], TEXT, keys) == tuple(map(tuple, case["spans"]))
    evaluation = LongPPL(
        (case["num_tokens"] + 1,), num_documents=1, keys=keys, source=Texts((TEXT,))
    )
    (record,) = evaluation(models[case["tested"]])
    assert record.scores.count == (case["num_keys"] or 0)
    assert record.scores.all_count == case["num_tokens"] - 1
    assert math.exp(record.scores.all_nll / record.scores.all_count) == pytest.approx(
        case["ppl"], rel=1e-4
    )
    if case["num_keys"]:
        assert math.exp(record.scores.nll / record.scores.count) == pytest.approx(
            case["longppl"], rel=1e-4
        )
    assert record.estimator.keys_from == (
        case["evaluator"] if by_another_model else "the model itself"
    )


def planted_text(seed, lines):
    """(text, span of the digits in its last line).

    Each line begins with its own pair of letters; the last line repeats the first.
    """
    rng = np.random.default_rng(seed)
    pairs = [a + b for a in "abcdefghijklmnopqrst" for b in "uvwxyz"]
    rng.shuffle(pairs)
    text_lines = [f"{pair}={''.join(map(str, rng.integers(0, 10, 5)))}\n" for pair in pairs[:lines]]
    text_lines.append(text_lines[0])
    text = "".join(text_lines)
    return text, (len(text) - 6, len(text) - 1)


class PlantedOracle(WindowReader):
    """Foresees what followed an earlier line with the same beginning, of at least two letters."""

    def loss(self, tokens):
        rows = np.asarray(tokens)
        nats = np.full((len(rows), rows.shape[1] - 1), SURPRISE, np.float32)
        for row, losses in zip(rows, nats, strict=True):
            text = self.tokenizer.decode(row)
            skipped = len(row) - len(text)  # BOS
            for t in range(1, len(text)):
                line = text[text.rfind("\n", 0, t) + 1 : t]
                before = text.find("\n" + line, 0, t - len(line) - 1)
                if text.startswith(line) and t > len(line):
                    at = 0
                elif before >= 0:
                    at = before + 1
                else:
                    continue
                end = at + len(line)
                if len(line) >= 3 and end < t and text[end] == text[t]:
                    losses[t + skipped - 1] = 0.01
        return nats


@pytest.mark.parametrize("trunc_len", [40, 64, 100])
def test_planted_digits_are_found_and_nothing_else(trunc_len):
    """Only the first line explains the digits of the last, and no truncated context contains it."""
    oracle = PlantedOracle(Letters(), None, OracleConfig(64))
    texts, spans = zip(*(planted_text(seed, 40) for seed in range(3)), strict=True)
    for text, (start, stop) in zip(texts, spans, strict=True):
        # The end of the line is a key too.
        spans_found = key_spans(oracle, text, ContrastiveKeys(trunc_len, trunc_len // 4))
        assert spans_found == ((start, stop + 1),)
    size = len(texts[0]) + 1
    evaluation = LongPPL(
        (size,),
        num_documents=3,
        keys=ContrastiveKeys(trunc_len, trunc_len // 4),
        source=Texts(texts),
    )
    for record in evaluation(oracle):
        assert record.facts["keys"] == list(range(size - 7, size - 1))
        assert record.scores.nll / record.scores.count == pytest.approx(0.01)
        assert record.scores.num_bytes == 6
    with_given_keys = dataclasses.replace(
        evaluation, keys=GivenKeys(tuple((span,) for span in spans))
    )
    for record in with_given_keys(oracle):
        assert record.facts["keys"] == list(range(size - 7, size - 2))
    blind = ContextCurve(Letters(), lambda seen: np.full(len(seen), SURPRISE))
    # By itself the blind reader finds no keys; with the given ones, it predicts none.
    assert not any(record.scores.count for record in evaluation(blind))
    (cell,) = summary(evaluate(blind, (with_given_keys,), progress=False))["perplexity"]
    assert cell["perplexity"] == pytest.approx(math.exp(SURPRISE))
    assert cell["count"] == 15


def test_answers_of_a_task_are_keys():
    oracle = PerfectReader(Letters(), OracleConfig(64))
    source = Texts(tuple("the quick brown fox jumps over a lazy dog; " * 30 for _ in range(2)))
    evaluation = LongPPL(
        (300, 600),
        num_documents=2,
        keys=AnswerKeys(KeyValue(num_pairs=4, wording="code")),
        source=source,
    )
    records = list(evaluation(oracle))
    assert [record.item for record in records] == evaluation.items()
    for record in records:
        assert record.facts["keys"] == list(range(record.seq_len - 3, record.seq_len))
        assert record.scores.all_count == record.seq_len - 1
        assert record.scores.nll == pytest.approx(0.03)
        assert record.scores.num_bytes == 3
    assert (
        list(evaluation.records(oracle, evaluation.items()[2:3], EvaluatedModel(64)))
        == records[2:3]
    )
    assert set(evaluation.items()) < set(dataclasses.replace(evaluation, num_documents=3).items())


def test_documents_count_by_their_key_tokens(tmp_path):
    """Key losses 1, 1, 1 and 3 in two documents, a third without any: exp(6 / 4)."""
    texts = ("abcdefgh", "abcdefgh", "abcdefgh")
    losses = {1: 1.0, 2: 1.0, 3: 1.0, 6: 3.0}
    model = ContextCurve(
        Letters(), lambda seen: np.array([losses.get(int(s), 9.0) for s in seen]), OracleConfig(4)
    )
    evaluation = LongPPL(
        (9,), num_documents=3, keys=GivenKeys((((1, 4),), ((6, 7),), ())), source=Texts(texts)
    )
    records = evaluate(model, (evaluation,), sink=tmp_path / "records.jsonl", progress=False)
    (cell,) = summary(records)["perplexity"]
    assert cell["perplexity"] == pytest.approx(math.exp(6 / 4))
    assert (cell["count"], cell["documents"]) == (4, 2)
    assert "LongPPL: perplexity of key tokens, found by given spans" in tables(records)
    assert "LongPPL: perplexity of key tokens" in write_report([tmp_path]).read_text()


def test_without_key_tokens_there_is_no_perplexity(tmp_path):
    evaluation = LongPPL((9,), num_documents=1, keys=GivenKeys(((),)), source=Texts(("abcdefgh",)))
    model = ContextCurve(Letters(), lambda seen: np.ones(len(seen)), OracleConfig(4))
    records = evaluate(model, (evaluation,), sink=tmp_path / "records.jsonl", progress=False)
    (cell,) = summary(records)["perplexity"]
    assert (cell["perplexity"], cell["low"], cell["count"], cell["documents"]) == (None, None, 0, 0)
    assert "no key tokens" in tables(records)
    assert "there is no number to report" in write_report([tmp_path]).read_text()


def test_spans_select_tokens_of_another_tokenizer():
    tokens = [(0, 3), (3, 5), (5, 9), (9, 9), (9, 12), (12, 14)]
    assert tokens_inside(tokens, ()).tolist() == []
    assert tokens_inside(tokens, ((0, 5),)).tolist() == [1]  # the first token has no loss
    assert tokens_inside(tokens, ((3, 8),)).tolist() == [1]  # (5, 9) ends outside
    assert tokens_inside(tokens, ((5, 12), (12, 13))).tolist() == [2, 3, 4]


def test_spans_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    from ctxext.tokenization.tokenizer import load_tokenizer

    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_LLAMA)
    for text in (TEXT, "naïve 日本 x  12🙂\r\n", " a"):
        ids, spans = load_tokenizer(TINY_LLAMA).spans(text)
        expected = hf_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert ids == expected["input_ids"]
        assert spans == [tuple(x) for x in expected["offset_mapping"]]


def test_refusals_and_names(models):
    short = LongPPL((9,), num_documents=1, keys=ContrastiveKeys(9, 2), source=Texts(("abcdefgh",)))
    model = ContextCurve(Letters(), lambda seen: np.ones(len(seen)))
    with pytest.raises(
        ValueError, match="a document of 9 tokens has no key tokens after trunc_len 9"
    ):
        list(short(model))
    with pytest.raises(ValueError, match="give `load`, which opens the evaluator"):
        ContrastiveKeys(evaluator="somewhere")
    config = SuiteConfig((128, 256, 512), load=load)
    by_itself, by_tiny_llama = evaluations(["longppl", f"longppl:{TINY_LLAMA}"], config)
    assert isinstance(by_itself, LongPPL)
    assert isinstance(by_tiny_llama, LongPPL)
    assert by_itself.seq_lens == (256, 512)
    assert by_itself.keys == ContrastiveKeys(128, 32)
    assert by_tiny_llama.keys.origin == str(TINY_LLAMA)
    assert not set(by_itself.items()) & set(by_tiny_llama.items())
    published = evaluations(["longppl"], SuiteConfig((8192,)))[0]
    assert isinstance(published, LongPPL)
    assert published.keys == ContrastiveKeys(4096, 1024, 2.0, 2.0)

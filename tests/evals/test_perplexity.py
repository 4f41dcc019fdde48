"""Perplexity estimators: closed forms, sums by definition, and the published loops."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ctxext.data.corpus import Corpus
from ctxext.data.sources import TextSource
from ctxext.evals import RollingPerplexity, evaluated_model
from ctxext.evals.budget import BUDGETS
from ctxext.evals.oracle import ContextCurve, OracleConfig
from ctxext.evals.perplexity_estimators import ESTIMATORS
from ctxext.evals.record import (
    Cluster,
    EvaluatedModel,
    LossEstimator,
    LossRecord,
    LossScores,
    WindowLosses,
)
from ctxext.evals.suite import SuiteConfig, evaluations
from ctxext.evaluate import evaluate
from ctxext.report import summary, tables
from ctxext.tasks.base import encode_fragment
from support.letters import Letters
from support.toy_tokenizer import toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()


@dataclasses.dataclass(frozen=True)
class Long(TextSource):
    """Documents of these sizes, each of which repeats its own letter."""

    sizes: tuple[int, ...]

    def open(self, tokenizer):
        texts = [chr(97 + i) * size for i, size in enumerate(self.sizes)]
        return Corpus.from_texts(texts, tokenizer)


def curve(seen):
    """The model of the closed form: nats after `seen` tokens."""
    return 1.2 + 2.5 * (seen + 1.0) ** -0.35


def ppl(evaluation, model):
    (cell,) = summary(evaluate(model, (evaluation,), progress=False))["perplexity"]
    return cell


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("token", 3.749), ("pi", 3.749), ("yarn", 3.698), ("longlora", 3.911), ("truncate", 3.911)],
)
def test_one_model_has_many_perplexities(estimator, expected):
    """D = 32,768, L = 8,192, stride 256: the loss after 0 to L - 1 tokens, without BOS."""
    model = ContextCurve(Letters(), lambda seen: curve(seen - 1))
    evaluation = RollingPerplexity((8193,), estimator, num_documents=1, source=Long((32_768,)))
    cell = ppl(evaluation, model)
    assert round(cell["perplexity"], 3) == expected
    assert cell["nats_per_token"] == pytest.approx(math.log(cell["perplexity"]))
    # A byte is a token.
    assert cell["bits_per_byte"] == pytest.approx(cell["nats_per_token"] / math.log(2))
    windows = [record.scores.windows for record in evaluation(model)][0]
    if estimator in ("token", "pi", "yarn"):
        assert windows.count == (8192,) + (256,) * 96
        assert round(math.exp(sum(windows.nll[1:]) / sum(windows.count[1:])), 3) == 3.696


def definition(estimator, sizes, L, S, bos):
    """The perplexity from the loss of every scored position, one at a time."""
    docs = list(sizes)
    means = []
    tokens = []
    if estimator in ("token", "longlora"):
        # One stream, two newlines between documents.
        docs = [sum(sizes) + 2 * (len(sizes) - 1) + (bos and estimator == "token")]
    for D in docs:
        if estimator == "longlora":
            starts = [i for i in range(D) if i % S == 0 and i + L < D][:-1]
            windows = [(i, i + L, i) for i in starts]
            head = 0
        elif estimator == "truncate":
            head = int(bos)
            windows = [(0, L - head, 0)]
        else:
            head = int(bos and estimator in ("yarn", "pi"))
            windows = []
            done = 0
            i = 0
            while done < D:
                end = min(D, i + L - head)
                windows.append((i, end, done))
                done = end
                i += S
        for start, stop, scored in windows:
            losses = []
            for t in range(scored, stop):
                seen = head + t - start
                if seen > 0:
                    losses.append(1.2 + 2.5 * (seen + 1.0) ** -0.35)
            means.append(sum(losses) / len(losses))
            tokens += losses
    return math.exp(np.mean(tokens if estimator in ("token", "pi") else means))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(ESTIMATORS)), st.integers(6, 60), st.data())
def test_every_estimator_is_the_sum_of_its_definition(estimator, L, data):
    S = data.draw(st.integers(1, L - 1))
    # The stream of a corpus always has BOS.
    bos = data.draw(st.booleans()) if estimator != "token" else True
    sizes = tuple(data.draw(st.lists(st.integers(2 * L + 2, 5 * L), min_size=1, max_size=3)))
    evaluation = RollingPerplexity(
        (L,), estimator, S, num_documents=len(sizes), source=Long(sizes), batch_tokens=3 * L
    )
    model = ContextCurve(Letters(), curve)
    if not bos:
        evaluation = dataclasses.replace(evaluation, source=_Fixed(sizes))
        model = ContextCurve(Letters(None), curve)
    assert ppl(evaluation, model)["perplexity"] == pytest.approx(
        definition(estimator, sizes, L, S, bos), rel=1e-6
    )


@dataclasses.dataclass(frozen=True)
class _Fixed(Long):
    """The same documents for a tokenizer without BOS."""

    def open(self, tokenizer):
        return super().open(Letters())


def torch_losses(model, ids, labels):
    import torch

    with torch.no_grad():
        return float(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss)


def test_the_recipe_of_the_transformers_documentation(two_llamas):
    """Its loop, with mean losses by transformers.

    The documentation weights a window by its tokens, or by its tokens less one.
    """
    torch_model, lm = two_llamas
    L = 64
    S = 24
    evaluation = RollingPerplexity(
        (L,), "token", S, num_documents=2, max_tokens=150, source=toy_source()
    )
    records = sorted(evaluation(lm), key=lambda record: record.item)
    documents = toy_source().open(lm.tokenizer).documents()
    first, second = (documents[record.cluster.document][:150].tolist() for record in records)
    ids = [lm.tokenizer.bos_id, *first, *encode_fragment(lm.tokenizer, "\n\n"), *second]
    means = []
    sizes = []
    previous = 0
    for begin in range(0, len(ids), S):
        end = min(begin + L, len(ids))
        target = end - previous
        labels = ids[begin:end].copy()
        labels[:-target] = [-100] * (len(labels) - target)
        means.append(torch_losses(torch_model, ids[begin:end], labels))
        sizes.append(target)
        previous = end
        if end == len(ids):
            break
    nll = [x for record in records for x in record.scores.windows.nll]
    count = [x for record in records for x in record.scores.windows.count]
    assert count == [L - 1, *sizes[1:]]
    assert sum(count) == len(ids) - 1
    np.testing.assert_allclose(np.divide(nll, count), means, rtol=2e-5)
    cell = ppl(evaluation, lm)
    assert cell["perplexity"] == pytest.approx(math.exp(np.average(means, weights=count)), rel=2e-5)
    # The documentation's own count, from the same records.
    weights = [n - 1 for n in sizes]
    assert math.exp(np.average(np.divide(nll, count), weights=weights)) == pytest.approx(
        math.exp(np.average(means, weights=weights)), rel=2e-5
    )


@pytest.mark.parametrize("truncate", [False, True])
def test_the_procedure_of_the_yarn_tables(two_llamas, truncate):
    """Each document alone, windows of BOS and L - 1 tokens, mean of transformers' mean losses."""
    torch_model, lm = two_llamas
    L = 64
    S = 16
    cut = 130
    name = "truncate" if truncate else "yarn"
    evaluation = RollingPerplexity(
        (L,), name, S, num_documents=3, max_tokens=cut, source=toy_source()
    )
    means = []
    for document in toy_source().open(lm.tokenizer).documents():
        ids = document[:cut].tolist()
        stride = S
        if truncate:
            ids = ids[: L - 1]
            stride = L - 1
        reached = 0
        for begin in range(0, len(ids), stride):
            end = min(begin + L - 1, len(ids))
            window = [lm.tokenizer.bos_id, *ids[begin:end]]
            target = end - reached
            labels = window.copy()
            labels[:-target] = [-100] * (len(window) - target)
            means.append(torch_losses(torch_model, window, labels))
            reached = end
            if end == len(ids):
                break
    cell = ppl(evaluation, lm)
    assert cell["perplexity"] == pytest.approx(math.exp(np.mean(means)), rel=2e-5)
    assert (cell["documents"], len(means)) == (3, 3 if truncate else 3 * 6)


def test_records_hold_their_windows_and_positions():
    model = ContextCurve(TOKENIZER, curve, OracleConfig(64))
    for name in ESTIMATORS:
        evaluation = RollingPerplexity(
            (32, 64), name, 16, num_documents=3, max_tokens=500, source=toy_source()
        )
        records = sorted(evaluation(model), key=lambda record: (record.seq_len, record.item))
        assert [record.item for record in records] == evaluation.items()
        for record in records:
            assert (record.estimator.name, record.evaluation) == (name, f"ppl:{name}")
            assert record.scores.nll == pytest.approx(sum(record.scores.windows.nll))
            assert record.scores.count == sum(record.scores.windows.count)
            assert (record.scores.by_position is not None) == (record.seq_len == 64)
        for record in records[3:]:
            bins = record.scores.by_position
            assert bins.edges == (1, 2, 4, 8, 16, 32, 64)
            count = bins.count[0]
            assert bins.count == tuple(count * n for n in (1, 2, 4, 8, 16, 32))
            assert count >= 1
            for low, high, nll in zip(bins.edges, bins.edges[1:], bins.nll, strict=False):
                assert nll == pytest.approx(
                    count * sum(curve(c) for c in range(low, high)), rel=1e-5
                )
        if name == "yarn":
            # Every token of a document is scored once.
            documents = toy_source().open(TOKENIZER).documents()
            for record in records[3:]:
                text = TOKENIZER.decode(documents[record.cluster.document][:500])
                assert record.scores.count == 500
                num_windows = len(record.scores.windows.nll)
                assert abs(record.scores.num_bytes - len(text.encode())) <= num_windows


def test_all_estimators_read_the_same_documents_and_items_stay():
    model = ContextCurve(TOKENIZER, curve)
    common: dict = {
        "seq_lens": (64,),
        "stride": 16,
        "min_tokens": 64,
        "max_tokens": 300,
        "source": toy_source(),
    }
    rolling = [RollingPerplexity(estimator=name, num_documents=2, **common) for name in ESTIMATORS]
    documents = [
        [record.cluster.document for record in sorted(evaluation(model), key=lambda r: r.item)]
        for evaluation in rolling
    ]
    assert documents == [documents[0]] * len(ESTIMATORS)
    assert len({item for evaluation in rolling for item in evaluation.items()}) == 2 * len(
        ESTIMATORS
    )
    for evaluation in rolling:
        more = dataclasses.replace(evaluation, num_documents=3)
        keeps_items = set(evaluation.items()) < set(more.items())
        # Another stream is another measurement.
        assert keeps_items == (not ESTIMATORS[evaluation.estimator].stream)
        old = {record.item: record for record in evaluation(model)}
        some = evaluation.items()[1:]
        resumed = list(evaluation.records(model, some, evaluated_model(model)))
        assert resumed == [old[item] for item in some]
        if keeps_items:
            assert {record.item: record for record in more(model) if record.item in old} == old
        alone = dataclasses.replace(evaluation, batch_tokens=1)
        assert {record.item: record for record in alone(model)} == old
    first = rolling[1]
    assert not set(first.items()) & set(dataclasses.replace(first, stride=8).items())
    truncated = rolling[-1]
    # A truncated document has no stride.
    assert truncated.items() == dataclasses.replace(truncated, stride=8).items()


def test_windows_of_one_length_are_compiled_once():
    shapes = set()

    class Counting(ContextCurve):
        def loss(self, tokens):
            shapes.add(np.shape(tokens)[1])
            return super().loss(tokens)

    evaluation = RollingPerplexity(
        (64,), "yarn", 16, num_documents=3, max_tokens=63 + 16 * 9, source=toy_source()
    )
    list(evaluation(Counting(TOKENIZER, curve)))
    assert shapes == {64}
    list(dataclasses.replace(evaluation, max_tokens=300)(Counting(TOKENIZER, curve)))
    # The end of a document: 237 = 14 * 16 + 13 tokens after the first window.
    assert shapes == {64, 61}


def test_window_means_and_token_means_differ_and_are_named_in_tables():
    """Two documents by hand: windows (4 nats, 4 tokens), (1, 1) and (9, 3)."""

    def losses(name, mean, document, nll, count):
        item = f"ppl:{name}/{name}/64/{document}"
        return LossRecord(
            model=EvaluatedModel(window=64, checkpoint="b"),
            evaluation=f"ppl:{name}",
            item=item,
            settings=name,
            seq_len=64,
            cluster=Cluster(document, item),
            estimator=LossEstimator(name, mean=mean, stride=4),
            scores=LossScores(sum(nll), sum(count), 2 * sum(count), WindowLosses(nll, count)),
        )

    records = [
        losses(name, mean, document, nll, count)
        for name, mean in (("token", "token"), ("yarn", "window"))
        for document, nll, count in ((0, (4.0, 1.0), (4, 1)), (1, (9.0,), (3,)), (2, (), ()))
    ]
    token, yarn = summary(records)["perplexity"]
    assert token["perplexity"] == pytest.approx(math.exp(14 / 8))
    assert yarn["perplexity"] == pytest.approx(math.exp((1 + 1 + 3) / 3))
    assert yarn["bits_per_byte"] == pytest.approx(5 / 3 / 2 / math.log(2))
    # The jackknife: without one of the documents it is 1 or 3 nats. A perplexity is at least 1.
    error = math.sqrt(((1 - 5 / 3) ** 2 + (3 - 5 / 3) ** 2) / 2)
    assert yarn["low"] == 1
    assert yarn["high"] == pytest.approx(math.exp(5 / 3 + stats.t.ppf(0.975, 1) * error))
    # The third document has no window.
    assert (yarn["documents"], yarn["count"]) == (2, 8)
    text = tables(records)
    assert "perplexity, estimator token (mean over tokens, stride 4)" in text
    assert "perplexity, estimator yarn (mean over windows, stride 4)" in text


def test_refusals():
    with pytest.raises(
        ValueError, match="'hf' is not known; choose one of token, yarn, pi, longlora, truncate"
    ):
        RollingPerplexity((64,), "hf")
    with pytest.raises(
        ValueError, match="ppl:yarn: windows of 64 tokens at stride 64 .* give 1 <= stride <= 63"
    ):
        RollingPerplexity((64,), "yarn", 64)
    RollingPerplexity((64,), "token", 64)
    with pytest.raises(ValueError, match="max_tokens 32 is below the 64 tokens"):
        RollingPerplexity((64,), "truncate", max_tokens=32)
    model = ContextCurve(TOKENIZER, curve)
    with pytest.raises(ValueError, match=r"ppl:yarn needs 3 documents of at least 50000 tokens"):
        list(RollingPerplexity((50_000,), num_documents=3, source=toy_source())(model))
    short = RollingPerplexity(
        (200,), "longlora", 64, num_documents=2, max_tokens=110, source=toy_source()
    )
    with pytest.raises(
        ValueError, match="ppl:longlora: the documents hold no window of 200 tokens"
    ):
        list(short(model))


def test_names_of_the_command_line():
    names = ["ppl:token", "ppl:yarn", "ppl:pi", "ppl:longlora", "ppl:truncate"]
    small = evaluations(names, SuiteConfig((128, 256)))
    assert [e.title for e in small] == names
    full = evaluations(names, SuiteConfig((128, 256), BUDGETS["full"]))
    assert set(small[1].items()) < set(full[1].items())
    assert len(small[1].items()) == 2 * 8
    assert len(full[1].items()) == 2 * 16
    published = evaluations(["ppl:yarn"], SuiteConfig((2048, 4096), BUDGETS["full"]))[0]
    assert isinstance(published, RollingPerplexity)
    assert published.stride == 256

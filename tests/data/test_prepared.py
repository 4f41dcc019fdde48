"""Prepared tokens in training: rows of the text, corruption refused, long documents upsampled."""

import dataclasses
import json
import shutil
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest

from ctxext.cli.overrides import override
from ctxext.data import (
    Files,
    Mix,
    Prepared,
    Short,
    Source,
    Upsampled,
    haystack,
    make_batch,
    token_files,
)
from ctxext.data.corpus import Corpus
from ctxext.data.sources.upsampled import document_weights
from ctxext.data.token_files import check_offsets, read_index
from ctxext.files import read_json, read_jsonl
from ctxext.positions import Contiguous
from ctxext.prepare import Recipe, prepare
from ctxext.rundir import RunDir
from ctxext.serialization import from_json, to_json
from ctxext.tracking import JsonlSink
from ctxext.training.loop import train
from support.tiny_train import ByteTokenizer, tiny_base, tiny_experiment, write_texts


def prepared(out: Path, *sources: Path, held_out: float = 0.0, **recipe) -> Path:
    options = Recipe(held_out=held_out, **recipe)
    prepare(sources, out, ByteTokenizer(), recipe=options, progress=False)  # pyright: ignore
    return out


def decoded(ids: np.ndarray) -> str:
    return bytes((ids - 3).astype("u1")).decode()


def same_rows(one: Source, two: Source) -> None:
    first, second = (
        make_batch(
            source.open(ByteTokenizer()), Contiguous(), seed=3, step=5, batch_size=6, seq_len=200
        )
        for source in (one, two)
    )
    for name, a, b in zip(first._fields, first, second, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "texts")


@pytest.fixture(scope="module")
def out(texts, tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("prepared") / "out", texts)


def test_rows_are_those_of_the_text_itself(texts, out):
    same_rows(Files(str(texts)), Prepared(str(out)))
    same_rows(Files(str(texts)), Files(str(out)))  # as --data.path of a published recipe does
    corpus = Prepared(str(out)).open(ByteTokenizer())
    assert isinstance(corpus.ids, np.memmap)
    assert isinstance(corpus.offsets, np.memmap)
    plain = Files(str(texts)).open(ByteTokenizer())
    for a, b in zip(corpus.documents(), plain.documents(), strict=True):
        np.testing.assert_array_equal(a, b)
    facts = corpus.provenance()
    assert (facts["documents"], facts["tokens"]) == (8, len(plain.ids))
    split = read_json(out / "index.json")["splits"]["train"]
    assert facts["tokens_sha256"] == split["tokens_sha256"]


def test_without_bos_and_eos_a_row_has_none(texts, tmp_path):
    root = prepared(tmp_path / "out", texts, bos=False, eos=False)
    with pytest.raises(ValueError, match="prepared with BOS None .* texts have 1 and 2.*--no-bos"):
        Prepared(str(root)).open(ByteTokenizer())
    tokenizer = ByteTokenizer()
    tokenizer.adds_bos = False
    corpus = Prepared(str(root)).open(tokenizer)
    documents = [(texts / f"{i}.txt").read_text() for i in range(8)]
    assert decoded(corpus.ids) == "".join(documents)
    assert [decoded(document) for document in corpus.documents()] == documents
    assert corpus.row(np.random.default_rng(0), 500).tokens.min() >= 3


def test_held_out_documents_are_not_trained_on_and_are_the_haystack(texts, tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(200)))
    root = prepared(tmp_path / "out", lines, held_out=0.3)

    def documents(split) -> set[str]:
        return set(map(decoded, Prepared(str(root), split).open(ByteTokenizer()).documents()))

    train = documents("train")
    held_out = documents("heldout")
    assert len(train) + len(held_out) == 200
    assert not train & held_out
    assert len(held_out) > 30
    assert haystack(str(root)) == Prepared(str(root), "heldout")
    whole = str(prepared(tmp_path / "all", texts))
    assert haystack(whole) == Prepared(whole, "train")
    with pytest.raises(ValueError, match="holds no heldout documents"):
        Prepared(whole, "heldout").open(ByteTokenizer())


def test_tokens_that_do_not_fit_the_model_or_the_index_are_refused(texts, tmp_path):
    def refused(message: str, tokenizer=ByteTokenizer) -> None:
        with pytest.raises(ValueError, match=message):
            Prepared(str(root)).open(tokenizer())

    root = prepared(tmp_path / "out", texts)
    refused(
        r"prepared with another tokenizer \(bytes\) than the model's \(other\)",
        type("Other", (ByteTokenizer,), {"sha256": "other"}),
    )
    refused(
        "prepared with BOS 1 and EOS 2, the model's texts have 1 and 5",
        type("End", (ByteTokenizer,), {"eos_id": 5}),
    )
    for name in ("train.tokens", "train.offsets", "heldout.offsets"):
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[:-1])
        refused(rf"{name} has {len(data) - 1:,} bytes, its index says {len(data):,}")
        (root / name).unlink()
        refused(f"{name} is missing")
        (root / name).write_bytes(data)
    index = read_json(root / "index.json")
    for change, message in (
        ({"version": 3}, "version 3"),
        ({"complete": False}, "not complete"),
        ({"format": "x"}, "is not an index of tokens"),
        ({"splits": {}}, "is corrupt"),
        ({"splits": 3}, "is corrupt"),
    ):
        (root / "index.json").write_text(json.dumps(index | change))
        refused(message)
    (root / "index.json").write_text("[]")
    refused("is not an index of tokens")
    (root / "index.json").write_text("{")
    refused("not valid JSON")


def change_index(root: Path, *keys: str, value: object) -> None:
    index = read_json(root / "index.json")
    inner = index
    for key in keys[:-1]:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[keys[-1]] = value
    (root / "index.json").write_text(json.dumps(index))


@pytest.fixture
def copied(out, tmp_path) -> Path:
    return Path(shutil.copytree(out, tmp_path / "copied"))


@pytest.mark.parametrize(
    "dtype",
    # Pointers to objects; a type whose bytes are read as numbers; other sizes and byte orders.
    ["O", "|O", "<f2", "float16", "int16", ">u2", "uint8", "U1", "<M8[s]", "V2", "u2,u2", 3, None],
)
def test_only_unsigned_integers_are_mapped(copied, dtype):
    """Opened in this process: with "O", the baseline took token bytes for pointers and crashed."""
    itemsize = np.dtype("<u2").itemsize
    num_tokens = (copied / "train.tokens").stat().st_size // itemsize
    # The size of the file is what the type asks for.
    (copied / "train.tokens").write_bytes(bytes(8 * num_tokens))
    change_index(copied, "dtype", value=dtype)
    for read in (read_index, lambda root: Prepared(str(root)).open(ByteTokenizer())):
        with pytest.raises(ValueError, match=r"index\.json is corrupt \(dtype is"):
            read(copied)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("splits", "train", "tokens"), -1),
        (("splits", "train", "tokens"), 1e3),
        (("splits", "train", "documents"), 2**62),
        (("splits", "train", "documents"), True),
        (("splits", "train", "tokens_sha256"), None),
        (("splits", "heldout", "tokens"), 3),
        (("tokenizer", "sha256"), 3),
        (("tokenizer", "bos_id"), "1"),
        (("tokenizer",), []),
        (("sources",), []),
        (("sources",), [3]),
        (("sources", "0", "train"), {"documents": -8, "tokens": 0}),
        (("sources", "0", "files"), None),
    ],
)
def test_a_malformed_index_is_one_named_error(copied, keys, value):
    change_index(copied, *keys, value=value)
    with pytest.raises(ValueError, match=r"index\.json is corrupt \(|has .* bytes, its index says"):
        Prepared(str(copied)).open(ByteTokenizer())


@pytest.mark.parametrize(
    "change",
    [
        {0: 1},
        {8: 2**62},
        {4: 2**62},
        {4: -(2**63)},
        {3: 2**63 - 1, 4: -(2**63)},
        {4: 0},
        {8: 0},
    ],
)
def test_offsets_that_do_not_divide_the_tokens_are_refused(copied, change):
    offsets = np.fromfile(copied / "train.offsets", "<i8")
    for place, value in change.items():
        offsets[place] = value
    offsets.tofile(copied / "train.offsets")
    with pytest.raises(ValueError, match=r"train\.offsets is corrupt: it does not divide"):
        Prepared(str(copied)).open(ByteTokenizer())


def test_offsets_are_checked_across_the_blocks_that_they_are_read_in(out, monkeypatch):
    """For every size of block, all documents pass, and one that ends too late does not."""
    index = read_json(out / "index.json")["splits"]["train"]
    for size in range(1, 11):
        monkeypatch.setattr(token_files, "OFFSETS_AT_ONCE", size)
        check_offsets(out / "train.offsets", index["documents"], index["tokens"])
        with pytest.raises(ValueError, match="does not divide"):
            check_offsets(out / "train.offsets", index["documents"], index["tokens"] - 1)


def test_ids_that_the_tokenizer_does_not_have_are_refused_where_they_are_read(copied):
    """The files are too large to be read when they are opened."""
    ids = np.fromfile(copied / "train.tokens", "<u2")
    ids[5] = ByteTokenizer.num_ids
    ids.tofile(copied / "train.tokens")
    corpus = Prepared(str(copied)).open(ByteTokenizer())
    upsampled = Upsampled(Prepared(str(copied)), 1, 2.0).open(ByteTokenizer())
    long = len(ids) - 1
    for read in (
        lambda: corpus.row(np.random.default_rng(0), long),
        corpus.documents,
        lambda: [upsampled.row(np.random.default_rng(i), long) for i in range(20)],
    ):
        with pytest.raises(ValueError, match="token id 259, but the tokenizer has only 259 ids"):
            read()


@pytest.mark.check
def test_trained_on_it_the_losses_are_those_of_the_text(texts, out, tmp_path):
    losses = []
    for name, source in (("text", Files(str(texts))), ("prepared", Prepared(str(out)))):
        experiment = tiny_experiment(source, steps=2)
        assert from_json(to_json(experiment)) == experiment
        run = RunDir(tmp_path / name).open(experiment)
        train(experiment, run, tiny_base(), sinks=[JsonlSink(run.metrics_file)], progress=False)
        losses.append([row["loss"] for row in read_jsonl(run.metrics_file)])
        facts = read_json(run.provenance_file)["data"]
        assert facts["kind"] == name
        assert facts["documents"] == 8
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    upsampled = Upsampled(Prepared(str(out)), min_tokens=200, factor=4.0)
    experiment = tiny_experiment(upsampled, steps=2)
    changed = override(experiment, ["--data.source.path", str(tmp_path), "--data.factor", "2"]).data
    assert changed == Upsampled(Prepared(str(tmp_path)), 200, 2.0)
    assert from_json(to_json(experiment)) == experiment
    run = RunDir(tmp_path / "up").open(experiment)
    params = train(experiment, run, tiny_base(), progress=False)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params))


LENGTHS = [3, 9, 40, 5, 5, 64, 2, 17, 33]
DOMAINS = (3, 4, 2)


def corpus_of(lengths: list[int], domains: tuple[int, ...]) -> Corpus:
    """Document i is made of the token i + 10 alone."""
    ids = np.repeat(np.arange(len(lengths)) + 10, lengths).astype(np.uint16)
    return Corpus(
        ids, np.cumsum([0, *lengths]), bos_id=None, eos_id=None, domains=domains, facts={}
    )


@dataclasses.dataclass(frozen=True)
class CorpusSource(Source):
    corpus: Corpus

    def open(self, tokenizer) -> Corpus:
        return self.corpus


def shares(factor: Fraction, min_tokens: int) -> list[Fraction]:
    """The share of every document among the tokens if long documents were repeated."""
    result = []
    first = 0
    for count in DOMAINS:
        lengths = LENGTHS[first : first + count]
        copies = [factor.numerator if n >= min_tokens else factor.denominator for n in lengths]
        tokens = [n * times for n, times in zip(lengths, copies, strict=True)]
        mixture = Fraction(sum(lengths), sum(LENGTHS))
        result += [mixture * Fraction(n, sum(tokens)) for n in tokens]
        first += count
    return result


@pytest.mark.parametrize("factor", [Fraction(10), Fraction(5, 2), Fraction(1)])
def test_weights_are_those_of_repeated_documents_and_keep_the_mixture(factor):
    lengths = np.array(LENGTHS)
    actual = document_weights(lengths, DOMAINS, 30, float(factor)) * lengths
    expected = [float(share) for share in shares(factor, 30)]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    cuts = np.cumsum(DOMAINS)[:-1]
    mixture = [part.sum() / lengths.sum() for part in np.split(lengths, cuts)]
    np.testing.assert_allclose([part.sum() for part in np.split(actual, cuts)], mixture)
    if factor == 1:
        np.testing.assert_allclose(actual, lengths / lengths.sum())


def test_rows_see_every_document_by_its_share_at_every_place():
    """Compared with the paper's sampling: documents drawn per domain, most short ones dropped."""
    corpus = corpus_of(LENGTHS, DOMAINS)
    rows = Upsampled(CorpusSource(corpus), 30, 10.0).open(ByteTokenizer())  # pyright: ignore
    windows = np.array([rows.row(np.random.default_rng(i), 50).tokens for i in range(4000)]) - 10
    expected = np.array([float(share) for share in shares(Fraction(10), 30)])
    for place in (0, 7, 49):  # not only at the start: the stream is stationary
        counts = np.bincount(windows[:, place], minlength=len(LENGTHS))
        deviation = np.sqrt(4000 * expected * (1 - expected))
        assert (np.abs(counts - 4000 * expected) < 4.5 * deviation).all()
    rng = np.random.default_rng(0)
    stream = dict.fromkeys(range(len(LENGTHS)), 0)
    spent = [0.0] * len(DOMAINS)
    first = np.cumsum([0, *DOMAINS])
    mixture = [sum(LENGTHS[a:b]) / sum(LENGTHS) for a, b in zip(first[:-1], first[1:], strict=True)]
    while sum(spent) < 300_000:  # the domain with the smallest part of its budget is next
        domain = int(np.argmin([s / m for s, m in zip(spent, mixture, strict=True)]))
        number = int(rng.integers(first[domain], first[domain + 1]))
        if LENGTHS[number] >= 30 or rng.random() < 0.1:
            stream[number] += LENGTHS[number]
            spent[domain] += LENGTHS[number]
    np.testing.assert_allclose([stream[i] / sum(spent) for i in stream], expected, atol=0.015)


def test_a_row_is_made_of_documents_that_do_not_see_each_other(texts, out):
    rows = Upsampled(Prepared(str(out)), 200, 3.0).open(ByteTokenizer())
    whole = [(texts / f"{i}.txt").read_bytes() for i in range(8)]
    for seed in range(20):
        row = rows.row(np.random.default_rng(seed), 700)
        assert row.tokens[0] == 1
        assert [len(field) for field in row] == [700] * 4
        np.testing.assert_array_equal(row.tokens[1:], row.targets[:-1])
        change = np.append(np.diff(row.segment_ids), 0)
        np.testing.assert_array_equal(row.weights[:-1], 1 - change[:-1])
        inner = [row.tokens[row.segment_ids == s] for s in range(2, row.segment_ids[-1])]
        for ids in inner:  # whole documents, BOS text EOS
            assert ids[0] == 1
            assert ids[-1] == 2
            assert bytes((ids[1:-1] - 3).astype("u1")) in whole
        start = bytes((row.tokens[1:][row.segment_ids[1:] == 1] - 3).astype("u1"))
        assert any(start[:-1] in text for text in whole)
    again = rows.row(np.random.default_rng(19), 700)
    np.testing.assert_array_equal(row.tokens, again.tokens)
    assert rows.provenance()["factor"] == 3.0
    assert rows.provenance()["rows"]["kind"] == "prepared"


def test_domains_are_the_sources_and_it_mixes_with_the_rest(texts, out, tmp_path):
    other = write_texts(tmp_path / "other", 3)
    root = prepared(tmp_path / "two", texts, other)
    assert Prepared(str(root)).open(ByteTokenizer()).domains == (8, 3)
    upsampled = Upsampled(Prepared(str(root)), 100, 5.0)
    short = Short(Prepared(str(out)), 32)
    rows = Mix(((0.6, upsampled), (0.4, short))).open(ByteTokenizer())
    assert rows.row(np.random.default_rng(0), 128).tokens.shape == (128,)
    with pytest.raises(ValueError, match="no document has the 5000 tokens"):
        Upsampled(Prepared(str(root)), 5000, 5.0).open(ByteTokenizer())
    for min_tokens, factor in ((0, 2.0), (5, 0.0), (5, float("inf")), (5, float("nan"))):
        with pytest.raises(ValueError, match="at least 1 and factor above 0"):
            Upsampled(Prepared(str(root)), min_tokens, factor)

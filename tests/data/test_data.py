"""Sources and batches against a slow, literal implementation."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from ctxext.data import (
    Files,
    Mix,
    Rows,
    Short,
    Source,
    Stdlib,
    Synthetic,
    make_batch,
    prefetch,
    stdlib_documents,
)
from ctxext.data.corpus import Corpus, Row
from ctxext.data.sources.stdlib import HELDOUT, TRAIN
from ctxext.methods.cream import CREAM
from ctxext.positions import Contiguous
from ctxext.tasks import Passkey, TaskContext
from support.tiny_train import ByteTokenizer, write_texts
from support.toy_tokenizer import toy_source, toy_tokenizer

TEXTS = ["alpha", "be", "gamma delta", "x"]


def batch(rows, step=0, *, seed=0, batch_size=4, seq_len=16, first_row=0, positions=None):
    return make_batch(
        rows,
        positions or Contiguous(),
        seed=seed,
        step=step,
        batch_size=batch_size,
        seq_len=seq_len,
        first_row=first_row,
    )


def decoded(ids: np.ndarray) -> str:
    return bytes((ids - 3).astype(np.uint8)).decode()


def same(a, b) -> bool:
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def test_a_document_is_bos_text_eos():
    corpus = Corpus.from_texts(TEXTS, ByteTokenizer())
    assert corpus.ids.dtype == np.uint16
    assert corpus.ids[:7].tolist() == [1, *(b + 3 for b in b"alpha"), 2]
    assert corpus.offsets.tolist() == [0, 7, 11, 24, 27]
    assert [decoded(document) for document in corpus.documents()] == TEXTS


def test_rows_are_windows_of_the_documents_in_a_circle():
    corpus = Corpus.from_texts(TEXTS, ByteTokenizer())
    ids = corpus.ids.tolist()
    document_of = np.repeat(np.arange(4), np.diff(corpus.offsets)).tolist()
    times_seen = np.zeros(len(ids), int)
    for step in range(300):
        tokens, targets, weights, positions, segments = (
            x[0] for x in batch(corpus, step, batch_size=1)
        )
        windows = {s: [ids[(s + t) % 27] for t in range(1, 17)] for s in range(27)}
        (start,) = [s for s, window in windows.items() if window == targets.tolist()]
        indices = [(start + t) % 27 for t in range(17)]
        times_seen[indices[1:]] += 1
        assert tokens[0] == 1
        assert tokens[1:].tolist() == [ids[i] for i in indices[1:16]]
        expected = [
            float(document_of[a] == document_of[b])
            for a, b in zip(indices[:-1], indices[1:], strict=True)
        ]
        assert weights.tolist() == expected
        assert weights.dtype == np.float32
        assert segments[0] == 1
        assert np.all(np.diff(segments) == [1 - w for w in expected[:-1]])
        assert positions.tolist() == list(range(16))
    # 300 windows of 16 targets over 27 tokens: each token is seen 178 times on average, and none
    # much more or less often.
    assert times_seen.min() > 130
    assert times_seen.max() < 230


def test_a_batch_depends_on_seed_step_and_row_alone():
    corpus = Corpus.from_texts(TEXTS, ByteTokenizer())
    first = batch(corpus, 5)
    batch(corpus, 9)
    assert same(first, batch(corpus, 5))
    assert same([x[2:] for x in first], batch(corpus, 5, batch_size=2, first_row=2))
    assert not np.array_equal(first.tokens, batch(corpus, 6).tokens)
    assert not np.array_equal(first.tokens, batch(corpus, 5, seed=1).tokens)


def test_positions_do_not_change_the_text():
    class Shifted(Contiguous):
        def sample(self, rng, shape):
            return (super().sample(rng, shape) + rng.integers(100)).astype(np.int32)

    corpus = Corpus.from_texts(TEXTS, ByteTokenizer())
    plain = batch(corpus)
    shifted = batch(corpus, positions=Shifted())
    assert np.array_equal(plain.tokens, shifted.tokens)
    assert len({*(shifted.positions - plain.positions)[:, 0].tolist()}) > 1


def test_prefetch_yields_the_same_batches_and_raises_in_the_consumer():
    corpus = Corpus.from_texts(TEXTS, ByteTokenizer())
    batches = list(prefetch(lambda step: batch(corpus, step), 3, 8))
    assert [step for step, _ in batches] == [3, 4, 5, 6, 7]
    assert all(same(b, batch(corpus, step)) for step, b in batches)
    ahead = prefetch(lambda step: batch(corpus, step), 0, 10**9)
    next(ahead)
    ahead.close()  # ends the thread; the test would hang otherwise

    def broken(step):
        raise ValueError(f"row {step} is broken")

    with pytest.raises(ValueError, match="row 0 is broken"):
        next(prefetch(broken, 0, 2))


def test_synthetic_rows_are_those_of_the_task_with_targets_shifted():
    tokenizer = toy_tokenizer()
    source = Synthetic(Passkey(wording="code"), haystack=toy_source())
    rows = source.open(tokenizer)
    synthetic = batch(rows, 3, batch_size=2, seq_len=200)
    for index in range(2):
        rng = np.random.default_rng([0, 3, index, 0])
        context = TaskContext(rng, tokenizer, rows.haystack.documents())
        tokens, weights = Passkey(wording="code").training_row(context, 201)
        assert synthetic.tokens[index].tolist() == tokens[:-1].tolist()
        assert synthetic.targets[index].tolist() == tokens[1:].tolist()
        assert synthetic.weights[index].tolist() == weights[1:].tolist()
    assert np.all(synthetic.segment_ids == 1)


@dataclasses.dataclass(frozen=True)
class Constant(Source):
    token: int

    def open(self, tokenizer) -> "ConstantRows":
        return ConstantRows(self.token)


class ConstantRows(Rows):
    def __init__(self, token: int) -> None:
        self.token = token

    def row(self, rng, seq_len) -> Row:
        row = np.full(seq_len, self.token, np.int32)
        return Row(row, row, row.astype(np.float32), row)

    def provenance(self):
        return {"token": self.token}


def test_a_mix_draws_rows_by_weight():
    mix = Mix(((3, Constant(7)), (1, Mix(((1, Constant(8)), (1, Constant(9)))))))
    rows = mix.open(ByteTokenizer())
    tokens = batch(rows, batch_size=2000, seq_len=1).tokens[:, 0]
    counts = [int((tokens == t).sum()) for t in (7, 8, 9)]
    for count, share in zip(counts, (0.75, 0.125, 0.125), strict=True):
        # Four standard deviations of a binomial.
        assert abs(count - 2000 * share) < 4 * np.sqrt(2000 * share * (1 - share))
    assert rows.provenance()["weights"] == [0.75, 0.25]
    with pytest.raises(ValueError, match="positive"):
        Mix(((0.0, Constant(7)),))


def test_files_reads_text_lines_and_directories(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "sub").mkdir()
    lines = tmp_path / "sub" / "c.jsonl"
    lines.write_text(json.dumps({"body": "third"}) + "\n\n" + json.dumps({"body": "4"}) + "\n")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "ignored.pdf").write_text("no")
    source = Files(str(tmp_path), field="body")
    corpus = source.open(ByteTokenizer())
    documents = [decoded(document) for document in corpus.documents()]
    assert documents == ["first", "second", "third", "4"]
    facts = corpus.provenance()
    assert (facts["documents"], facts["tokens"]) == (4, 25)
    assert facts["files"]["sub/c.jsonl"] == hashlib.sha256(lines.read_bytes()).hexdigest()
    (tmp_path / "a.txt").write_text("First")
    assert source.open(ByteTokenizer()).provenance()["sha256"] != facts["sha256"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"txt": "y"}\n',
            r'a\.jsonl, line 2: no key "text", but "txt"',
        ),
        ("a.jsonl", b"[1]\n", "line 1: neither a text nor a JSON object but a list"),
        ("a.jsonl", b"", "holds no document with text"),
        ("a.txt", b" \n", "holds no document with text"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.pdf", b"x", r"holds no file that can be read but a\.pdf: give \.txt"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Files(str(tmp_path)).open(ByteTokenizer())
    assert "\n" not in str(caught.value)


def test_missing_and_too_short_data(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        Files(str(tmp_path / "nowhere")).open(ByteTokenizer())
    corpus = Corpus.from_texts(TEXTS, ByteTokenizer())
    message = "27 tokens in all, a row needs 28: give more text or a smaller train.seq_len"
    with pytest.raises(ValueError, match=message):
        batch(corpus, seq_len=27)
    message = (
        "CREAM takes a row of 8 tokens from a text of 32, but the data has 27 tokens in all: give "
        "more text or lower positions.max_position_embeddings"
    )
    with pytest.raises(ValueError, match=message):
        batch(corpus, seq_len=8, positions=CREAM(32))
    with pytest.raises(ValueError, match="a smaller train.seq_len"):
        batch(corpus, seq_len=27, positions=CREAM(64, text="row"))


@pytest.mark.parametrize("bos_id", [1, None], ids=["not added", "none"])
def test_documents_and_rows_of_a_tokenizer_that_adds_no_bos_have_none(bos_id):
    tokenizer = ByteTokenizer()
    tokenizer.bos_id, tokenizer.adds_bos = bos_id, False
    corpus = Corpus.from_texts(TEXTS, tokenizer)
    documents = [[byte + 3 for byte in text.encode()] for text in TEXTS]
    assert corpus.bos_id is None
    assert corpus.ids.tolist() == [i for ids in documents for i in (*ids, 2)]
    assert [ids.tolist() for ids in corpus.documents()] == documents
    for step in range(20):
        row = corpus.row(np.random.default_rng(step), 8)
        assert 1 not in row.tokens
        assert ((row.targets == 2) <= (row.weights == 1)).all()


def test_stdlib_is_split_by_file_and_hashed():
    assert not set(TRAIN) & set(HELDOUT)
    assert len({*TRAIN, *HELDOUT}) == len(TRAIN) + len(HELDOUT)
    documents = stdlib_documents("heldout")
    assert [d.name for d in documents] == HELDOUT
    import argparse

    first = next(d for d in documents if d.name == "argparse.py")
    with open(argparse.__file__, "rb") as file:
        assert first.sha256 == hashlib.sha256(file.read()).hexdigest()
    assert sum(len(d.text) > 75_000 for d in documents) >= 5
    assert sum(len(d.text) for d in stdlib_documents("train")) > 4_000_000


def test_stdlib_missing_file_and_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="_collections_abc.py cannot be read"):
        stdlib_documents("train", tmp_path)
    with pytest.raises(ValueError, match="unknown stdlib split"):
        stdlib_documents("test")


def test_the_stdlib_is_tokenized_once():
    tokenizer = ByteTokenizer()
    assert Stdlib("heldout").open(tokenizer) is Stdlib("heldout").open(tokenizer)


def test_rows_from_files_do_not_depend_on_the_machine(tmp_path):
    rows = Files(str(write_texts(tmp_path))).open(ByteTokenizer())
    data = b"".join(x.astype("<i4").tobytes() for x in batch(rows, 11, seq_len=64))
    digest = hashlib.sha256(data).hexdigest()
    message = "batches changed: a run in progress would resume with other data"
    assert digest[:16] == "653b19e37a4f2bb0", message


def test_short_rows_are_packed_and_do_not_see_each_other():
    """They are the source's rows, with their own targets, numbered segments and the last cut."""
    source = Synthetic(Passkey(wording="code"), haystack=toy_source())
    tokenizer = toy_tokenizer()
    long = Short(source, 60).open(tokenizer).row(np.random.default_rng(3), 150)
    rng = np.random.default_rng(3)
    rows = source.open(tokenizer)
    for i, (start, stop) in enumerate([(0, 60), (60, 120), (120, 150)]):
        short = rows.row(rng, 60)
        for name in ("tokens", "targets", "weights"):
            np.testing.assert_array_equal(
                getattr(long, name)[start:stop], getattr(short, name)[: stop - start]
            )
        assert set(long.segment_ids[start:stop].tolist()) == {i + 1}
    assert long.tokens[60] == tokenizer.bos_id
    assert {len(field) for field in long} == {150}
    assert long.segment_ids.dtype == np.int32
    documents = Short(toy_source(), 100).open(tokenizer).row(np.random.default_rng(4), 1000)
    assert (np.diff(documents.segment_ids) >= 0).all()
    assert documents.segment_ids.max() >= 10
    with pytest.raises(ValueError, match="at least 2 tokens"):
        Short(source, 1)

"""A tokenizer of 32,000 tokens in every reader, and tokens that were added to it."""

import functools
import importlib.util
import inspect
import json
import random
import sysconfig
from pathlib import Path

import pytest

from ctxext.interop import hf
from ctxext.rope import Unscaled
from ctxext.tokenization.tokenizer import (
    CONFIG,
    JSON,
    MODEL,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from support.llamas import LENGTH, TINY

ADDED = "added_tokens.json"
PARTS = (
    "the",
    "Context",
    "window",
    "é",
    "ß",
    "日本",
    "🙂",
    "\u200b",
    "\u00a0",
    "ﬁ",
    "\t",
    "\n",
    "\r\n",
    " ",
    "  ",
    "   ",
    "0",
    "3.14",
    "def f(x):",
    "<0x0A>",
    "▁",
    "<",
    "s>",
    "[INST]",
    "\x00",
    "\ufeff",
    "Ω≈ç",
    "a\u0301",
    "क्षि",
    "ﷺ",
    "!?",
)


@functools.cache
def sources() -> tuple[str, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [*sorted(root.glob("*.py")), *sorted(root.glob("*/*.py"))[:400]]
    return tuple(path.read_text(errors="ignore") for path in files)


@functools.cache
def trained() -> bytes:
    return train_tokenizer(sources(), 32000)


@functools.cache
def small() -> bytes:
    """420 tokens, where their number does not matter."""
    return train_tokenizer([inspect.getsource(inspect)], 420)


@functools.cache
def published() -> bytes:
    """A published SentencePiece model of 32,000 tokens, from mistral-common if it is installed."""
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or spec.origin is None:
        pytest.skip("mistral-common is not installed")
    return (Path(spec.origin).parent / "data" / "tokenizer.model.v1").read_bytes()


def texts(count: int, seed: int) -> list[str]:
    """Up to `count` texts of fragments, random characters or code, without special tokens."""
    rng = random.Random(seed)
    corpus = "".join(sources())

    def random_character() -> str:
        return chr(rng.choice([*range(32, 127), *rng.choices(range(1, 0xD800), k=30)]))

    def draw() -> str:
        kind = rng.randrange(3)
        if kind == 0:
            return "".join(rng.choices(PARTS, k=rng.randrange(30)))
        if kind == 1:
            return "".join(random_character() for _ in range(20))
        start = rng.randrange(len(corpus))
        return corpus[start : start + rng.randrange(600)]

    special = ("<s>", "</s>", "<unk>")
    drawn = [draw() for _ in range(count)]
    return [text for text in drawn if not any(token in text for token in special)]


@pytest.mark.parametrize("model", [trained, published])
def test_every_reader_gives_the_ids_of_sentencepiece(tmp_path, model):
    import sentencepiece
    import tokenizers

    reference = sentencepiece.SentencePieceProcessor(model_proto=model())
    assert reference.vocab_size() == 32000
    ours = Tokenizer({MODEL: model()})
    for name, data in ours.export_files(LENGTH).items():
        (tmp_path / name).write_bytes(data)
    again = load_tokenizer(tmp_path)
    assert again.export_files(LENGTH) == ours.export_files(LENGTH)
    assert (tmp_path / MODEL).read_bytes() == model()
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / JSON))
    random_texts = texts(3000, 0)
    ids = [reference.encode(text) for text in random_texts]
    assert len({i for row in ids for i in row}) > 3000, "the texts use too few of the tokens"
    encodings = fast.encode_batch(random_texts)
    for text, expected, encoding in zip(random_texts, ids, encodings, strict=True):
        assert ours.encode(text) == again.encode(text) == expected
        assert encoding.ids == [reference.bos_id(), *expected], text
        assert fast.decode(expected) == reference.decode(expected) == ours.decode(expected)
        assert ours.encode(text, bos=True) == [reference.bos_id(), *expected]


@pytest.mark.parametrize("model", [trained, published])
def test_transformers_gives_the_same_ids(tmp_path, model):
    from transformers import AutoTokenizer

    ours = Tokenizer({MODEL: model()})
    for name, data in ours.export_files(LENGTH).items():
        (tmp_path / name).write_bytes(data)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == 32000
    # The same from tokenizer.json alone, loaded and exported again.
    (tmp_path / MODEL).unlink()
    json_only = load_tokenizer(tmp_path)
    (tmp_path / "again").mkdir()
    for name, data in json_only.export_files(LENGTH).items():
        (tmp_path / "again" / name).write_bytes(data)
    theirs_again = AutoTokenizer.from_pretrained(tmp_path / "again")
    for text in texts(500, 1):
        expected = ours.encode(text, bos=True)
        assert theirs(text).input_ids == expected, text
        assert json_only.encode(text, bos=True) == expected, text
        assert theirs_again(text).input_ids == expected, text


@pytest.mark.parametrize(
    "settings", [{"tokenizer_class": "LlamaTokenizerFast"}, {"add_bos_token": True}]
)
def test_a_bos_that_only_the_tokenizer_class_implied_is_written_out(tmp_path, settings):
    from transformers import AutoTokenizer

    files = Tokenizer({MODEL: small()}).export_files(LENGTH)
    bare = json.loads(files[JSON]) | {"post_processor": None}
    source = Tokenizer(
        {
            JSON: json.dumps(bare).encode(),
            CONFIG: json.dumps({"bos_token": "<s>", **settings}).encode(),
        }
    )
    for name, data in source.export_files(LENGTH).items():
        (tmp_path / name).write_bytes(data)
    assert AutoTokenizer.from_pretrained(tmp_path)("a b").input_ids == source.encode(
        "a b", bos=True
    )
    is_said = "transformers 5 begins them as the post_processor" in source.bos_note
    assert is_said == ("add_bos_token" not in settings)
    # Another class implies no BOS.
    plain = {
        JSON: json.dumps(bare).encode(),
        CONFIG: b'{"bos_token": "<s>", "tokenizer_class": "X"}',
    }
    exported = json.loads(Tokenizer(plain).export_files(LENGTH)[JSON])
    assert exported["post_processor"] is None


def alpaca(model: bytes, added: dict[str, int]) -> dict[str, bytes]:
    """The slow tokenizers of Alpaca and LongAlpaca: a model, and its padding token elsewhere."""
    pad = {
        "content": "[PAD]",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "pad_token": pad,
        "bos_token": "<s>",
        "padding_side": "right",
    }
    return {
        MODEL: model,
        ADDED: json.dumps(added).encode(),
        CONFIG: json.dumps(settings).encode(),
    }


def write(path: Path, files: dict[str, bytes], vocab_size: int) -> Path:
    path.mkdir()
    settings = hf.config_json(TINY, Unscaled(), seq_len=LENGTH, dtype="float32")
    settings["vocab_size"] = vocab_size
    for name, data in files.items() | {"config.json": json.dumps(settings).encode()}.items():
        (path / name).write_bytes(data)
    return path


def test_a_padding_token_that_the_model_has_survives(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(write(tmp_path / "in", alpaca(trained(), {"[PAD]": 32000}), 32001))
    assert tokenizer.vocab_size == 32000
    assert [token["id"] for token in tokenizer.added] == [32000]
    out = write(tmp_path / "out", tokenizer.export_files(LENGTH), 32001)
    theirs = AutoTokenizer.from_pretrained(out)
    assert (theirs.pad_token_id, len(theirs)) == (32000, 32001)
    assert theirs("a").input_ids == tokenizer.encode("a", bos=True)
    assert theirs("a[PAD]").input_ids[-1] == 32000
    assert load_tokenizer(out).export_files(LENGTH) == tokenizer.export_files(LENGTH)


@pytest.mark.parametrize("extra", [0, 1, 64])
def test_a_vocabulary_larger_than_the_tokenizer_is_fine(tmp_path, extra):
    path = write(tmp_path / "in", {MODEL: trained()}, 32000 + extra)
    assert load_tokenizer(path).vocab_size == 32000


@pytest.mark.parametrize(
    "form", ["added_tokens.json", "tokenizer.json next to the model", "tokenizer.json alone"]
)
def test_one_token_more_than_the_model_has_is_refused_with_what_to_remove(tmp_path, form):
    files = alpaca(small(), {"[PAD]": 420})
    if form != "added_tokens.json":
        files = Tokenizer(files).export_files(LENGTH)
        names = [MODEL, JSON, CONFIG] if "next to" in form else [JSON, CONFIG]
        files = {name: files[name] for name in names}
    with pytest.raises(
        ValueError,
        match="has 421 ids but the model's vocab_size is 420; .*remove \\[PAD\\] from",
    ):
        load_tokenizer(write(tmp_path / "in", files, 420))


@pytest.mark.parametrize(
    "files, message",
    [
        ({ADDED: b"[]"}, "added_tokens.json must hold an object"),
        ({ADDED: b"{"}, "added_tokens.json is not valid JSON"),
        ({ADDED: b'{"x": "32000"}'}, "an added token needs an id and its content"),
        ({ADDED: b'{"x": 32000, "y": 32000}'}, "id 32000 is both 'x' and 'y'"),
        ({CONFIG: b"[]"}, "tokenizer_config.json must hold an object"),
        ({CONFIG: b'{"chat_template": 3}'}, "chat_template of tokenizer_config.json must be text"),
        ({"chat_template.jinja": b"\xff"}, "chat_template.jinja is not UTF-8; save it as that"),
        ({JSON: b'{"added_tokens": {}}'}, "added_tokens of tokenizer.json must be a list"),
        (
            {JSON: b'{"added_tokens": [{"id": 32000}]}'},
            "an added token needs an id and its content",
        ),
    ],
)
def test_malformed_files_next_to_the_model_are_named(tmp_path, files, message):
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(write(tmp_path / "in", {MODEL: trained()} | files, 40000))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config, message",
    [("[]", "config.json does not hold an object"), ('{"vocab_size": "32000"}', "whole number")],
)
def test_a_malformed_config_next_to_the_tokenizer_is_named(tmp_path, config, message):
    write(tmp_path / "in", {MODEL: trained()}, 40000)
    (tmp_path / "in" / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(tmp_path / "in")
    assert str(tmp_path) in str(error.value)

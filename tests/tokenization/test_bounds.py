"""Tokenizers of strangers that would take all memory or all time: each is one named error.

Every case is run in this process. Without the bounds, those that multiply a text end it.
"""

import base64
import copy
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from ctxext.tokenization import bounds, trial
from ctxext.tokenization.bounds import Growth, decoded_growth, growth
from ctxext.tokenization.expressions import EXPRESSIONS
from ctxext.tokenization.tokenizer import Tokenizer, load_tokenizer

PLAIN: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": False,
        "vocab": {"<unk>": 0, "a": 1, "b": 2},
        "merges": [],
    },
}
TEXT = "a word of a text " * 20


def replace(pattern: dict[str, str] | str, content: str) -> dict[str, Any]:
    pattern = {"String": pattern} if isinstance(pattern, str) else pattern
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(kind: str, *parts: Any) -> dict[str, Any]:
    return {"type": "Sequence", bounds.INNER[kind]: list(parts)}


def tokenizer(**changes: Any) -> Tokenizer:
    return Tokenizer({"tokenizer.json": json.dumps({**PLAIN, **changes}).encode()})


def charsmap(replacement: bytes) -> str:
    """Unicode's normal forms with one replacement more, which is at their end."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world"] * 9),
        model_writer=model,
        model_type="char",
        vocab_size=300,
        hard_vocab_limit=False,
        normalization_rule_name="nfkc",
        minloglevel=2,
    )
    content = model.getvalue()
    start = content.index(b"nfkc\x12") + 5
    size = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(content[start : start + 3]))
    return base64.b64encode(content[start + 3 : start + 3 + size] + replacement + b"\0").decode()


A = {
    "a chain": sequence("normalizer", *[replace("a", "a" * 1000)] * 4),
    "sequences in sequences": sequence(
        "normalizer", *[sequence("normalizer", replace("a", "aa"), replace("a", "aa"))] * 20
    ),
    "nothing by something": replace("", "x" * 20_000_000),
    "one character": replace(" ", "x" * 100_000),
    "an expression": sequence("normalizer", *[replace({"Regex": "[a-z]"}, "y" * 200)] * 4),
    "text before it": {"type": "Prepend", "prepend": "a" * 20_000_000},
    "doubled": sequence("normalizer", *[replace("a", "aa")] * 60),
}


@pytest.mark.parametrize("normalizer", A.values(), ids=A.keys())
def test_a_text_is_not_multiplied(normalizer: dict[str, Any]):
    with pytest.raises(ValueError, match=r"tokenizer\.json may make [\d,]+ characters of the"):
        tokenizer(normalizer=normalizer).encode(TEXT * 100)


def test_pre_tokenizers_and_decoders_do_not_multiply_either():
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    layers = sequence("pre_tokenizer", *[byte_level] * 60)
    with pytest.raises(ValueError, match=r"may make [\d,]+ characters"):
        tokenizer(pre_tokenizer=layers).encode(TEXT)
    decoder = sequence("decoder", *[replace("a", "a" * 1000)] * 4)
    with pytest.raises(ValueError, match=r"may make [\d,]+ characters"):
        tokenizer(decoder=decoder).decode([1] * 10)


def test_replacements_of_unicode_pass_and_longer_ones_do_not():
    normal_forms = {"type": "Precompiled", "precompiled_charsmap": charsmap(b"")}
    assert growth({"normalizer": normal_forms}) == Growth(1, 0)
    assert tokenizer(normalizer=normal_forms).encode("ａb") == [1, 2]
    long = {"type": "Precompiled", "precompiled_charsmap": charsmap(b"x" * 1_000_000)}
    assert growth({"normalizer": long}).factor == 1_000_000


@pytest.mark.parametrize("content", ["", "x", "xy", "x" * 7])
@pytest.mark.parametrize("pattern", ["", "a", "ab", {"Regex": "a?"}, {"Regex": "b|"}])
def test_the_growth_is_never_less_than_what_the_library_makes_of_a_text(pattern, content):
    """For rules after each other; the library says what they make of a text."""
    parts = [replace(pattern, content), {"type": "Prepend", "prepend": "ab"}, replace("x", "aab")]
    for normalizer in (sequence("normalizer", *parts), sequence("normalizer", *reversed(parts))):
        data = {**copy.deepcopy(PLAIN), "normalizer": normalizer}
        library = tokenizers.Tokenizer.from_str(json.dumps(data))
        assert library.normalizer is not None
        factor, extra = growth(data)
        for text in ("", "a", "ab", "abab" * 30, "ccc", "xxax" * 20):
            assert len(library.normalizer.normalize_str(text)) <= factor * len(text) + extra


def test_published_rules_are_not_limited():
    """Llama 2's, Llama 3's, SmolLM's, and sentencepiece's of other models: a text of any length."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    for rules in (
        {
            "normalizer": sequence(
                "normalizer", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")
            ),
            "decoder": sequence("decoder", replace("▁", " "), {"type": "Fuse"}),
        },
        {"pre_tokenizer": byte_level, "decoder": byte_level},
        {
            "pre_tokenizer": sequence(
                "pre_tokenizer",
                *({"type": "Split", "pattern": {"Regex": e}} for e in EXPRESSIONS),
                byte_level,
            ),
        },
        {
            "normalizer": sequence(
                "normalizer",
                {"type": "Precompiled", "precompiled_charsmap": charsmap(b"")},
                replace({"Regex": " {2,}"}, "▁"),
            ),
            "pre_tokenizer": metaspace,
        },
    ):
        for found in (growth(rules), decoded_growth(rules)):
            found.check(10**12)
    assert bounds.unknown_expressions({"normalizer": replace({"Regex": " {2,}"}, "▁")}) == [" {2,}"]


def special(text: str, token_id: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, "special": True, **flags}


def around(count: int, ids: list[int]) -> dict[str, Any]:
    return {
        "type": "TemplateProcessing",
        "single": [
            *[{"SpecialToken": {"id": "a", "type_id": 0}}] * count,
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {"a": {"id": "a", "ids": ids, "tokens": ["a"] * len(ids)}},
    }


TOO_MUCH = {
    "parts": ({"normalizer": sequence("normalizer", *[{"type": "NFC"}] * 300)}, "300|256 parts"),
    "tokens around a text": ({"post_processor": around(100, [1] * 1000)}, "adds more than 1024"),
    "around, in a sequence": (
        {"post_processor": sequence("post_processor", around(1, [1] * 10_000))},
        "adds more than 1024",
    ),
    "fixed padding": (
        {"padding": {"strategy": {"Fixed": 10**12}, "direction": "Right"}},
        "padding to 1000000000000 tokens",
    ),
    "a multiple": (
        {"padding": {"strategy": "BatchLongest", "pad_to_multiple_of": 1 << 40}},
        "padding to 1099511627776 tokens",
    ),
    "a long token": (
        {"model": {**PLAIN["model"], "vocab": {"<unk>": 0, "a" * 5000: 1}}},
        "a token of more than 4,096 characters",
    ),
    "a long added token": ({"added_tokens": [special("b" * 5000, 3)]}, "has 5,000 characters"),
}


@pytest.mark.parametrize(("changes", "message"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_more_than_any_model_needs_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tokenizer(**changes).encode("a")


def test_a_million_added_tokens_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ctxext.tokenization.added_tokens.MAX_ADDED", 20)
    added = [special(f"<{i}>", 3 + i) for i in range(20)]
    assert tokenizer(added_tokens=added).num_ids == 23
    with pytest.raises(ValueError, match="add 21 tokens to the vocabulary"):
        tokenizer(added_tokens=[*added, special("<20>", 23)])


def test_an_expression_that_takes_hours_is_stopped_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
):
    """At no place of a text is the library's own limit of steps reached."""
    monkeypatch.setattr(trial, "CPU_SECONDS", 1)
    hostile = {"Regex": r"(?:[a-z]{1,2}){1,20}!|."}
    started = time.monotonic()
    with pytest.raises(ValueError, match="regular expressions that were tried and stopped: they"):
        tokenizer(
            pre_tokenizer={
                "type": "Split",
                "pattern": hostile,
                "behavior": "Isolated",
                "invert": False,
            }
        )
    assert time.monotonic() - started < 30
    catastrophic = {"Regex": "(a+)+$"}
    with pytest.raises(ValueError, match="tried and stopped: Onig: Regex search error"):
        tokenizer(normalizer=replace(catastrophic, "x"))
    fine = {"Regex": r"[A-Z]?[a-z]+|\s+|."}
    split = {"type": "Split", "pattern": fine, "behavior": "Isolated", "invert": False}
    assert tokenizer(pre_tokenizer=split).encode("ab") == [1, 2]
    monkeypatch.setattr(trial, "MAX_MEMORY", 1 << 20)
    large = {"Regex": r"[A-Z]?[a-z]{1,900}|\s+|."}
    with pytest.raises(ValueError, match="expressions that were tried and stopped"):
        tokenizer(pre_tokenizer=split | {"pattern": large})


def test_malformed_rules_are_left_to_the_library():
    for normalizer in (
        3,
        {"type": "Sequence", "normalizers": 3},
        {"type": "Replace", "pattern": 3, "content": 3},
        {"type": "Prepend"},
        {"type": "Precompiled", "precompiled_charsmap": "!"},
        {"type": "Precompiled", "precompiled_charsmap": "AA=="},
        {"type": "Unheard of"},
    ):
        with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
            tokenizer(normalizer=normalizer)


def sentencepiece_model(rule: str, path: Path) -> bytes:
    path.write_text(rule)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world abc"] * 99),
        model_writer=model,
        model_type="bpe",
        vocab_size=280,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_tsv=str(path),
        minloglevel=2,
    )
    return model.getvalue()


def test_a_sentencepiece_model_does_not_multiply_a_text(tmp_path: Path):
    few = sentencepiece_model("71\t61 61\n", tmp_path / "rule.tsv")
    processor = sentencepiece.SentencePieceProcessor(model_proto=few)
    assert Tokenizer({"tokenizer.model": few}).encode("q hello") == processor.encode("q hello")
    many = sentencepiece_model(f"71\t{' '.join(['61'] * 10_000)}\n", tmp_path / "rule.tsv")
    with pytest.raises(ValueError, match=r"tokenizer\.model replaces a character by 10,000 bytes"):
        Tokenizer({"tokenizer.model": many})
    # A piece of 20,000 bytes: field 1 of the model, whose field 1 is its text.
    text = b"\x0a" + b"\xa0\x9c\x01" + b"x" * 20_000
    piece = b"\x0a" + b"\xa4\x9c\x01" + text
    with pytest.raises(ValueError, match=r"tokenizer\.model has a piece of 20,004 bytes"):
        Tokenizer({"tokenizer.model": few + piece})
    # Field 44 of the trainer's settings, field 2 of the model: the text of an unknown token.
    unknown = b"\xe2\x02" + b"\xa0\x9c\x01" + b"x" * 20_000
    settings = b"\x12" + b"\xa5\x9c\x01" + unknown
    with pytest.raises(ValueError, match="very long text for the unknown"):
        Tokenizer({"tokenizer.model": few + settings})
    for broken in (b"\x0a", b"\xff" * 20, b"\x0a\xff\xff\x03x", b"\x0b"):
        with pytest.raises(ValueError, match="is not a SentencePiece model"):
            Tokenizer({"tokenizer.model": few + broken})


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"tokenizer\.json has 1,099,511,627,776 bytes, more than"):
        load_tokenizer(tmp_path)

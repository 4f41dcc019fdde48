"""GGUF of byte-level tokenizers, read back by transformers and by llama.cpp's Python package."""

import dataclasses
import functools
import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from ctxext.export import export
from ctxext.interop.gguf_byte_level import (
    GPT2,
    LLAMA3,
    QWEN2,
    byte_level_vocabulary,
    normalizes,
)
from ctxext.interop.gguf_tokenizer import GGUFVocabulary, open_tokenizer
from ctxext.interop.gguf_vocabulary import vocabulary
from ctxext.loading import load
from ctxext.model.lm import LM
from ctxext.prove import prove
from ctxext.prove.reference.byte_level import open_byte_level
from ctxext.tokenization.tokenizer import CONFIG, JSON, SAMPLE_TEXTS, Tokenizer
from support.llamas import TINY, random_params

library = pytest.importorskip("gguf", reason="needs the extra gguf")
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|stop|>", "<|halt|>", "<|end|>"]
PLAIN = "<tool>"
TEXTS = (
    *SAMPLE_TEXTS,
    "It's 2024, isn't IT'S 12345?  \n\n x",
    f"a{PLAIN}b <|eot_id|>",
    "\r\n \u00a0é",
)
KINDS = ("gpt-2", "llama-bpe", "dbrx", "smollm", "qwen2")


@functools.cache
def files(kind: str) -> dict[str, bytes]:
    """A byte-level tokenizer with the pre_tokenizer that llama.cpp calls `kind`."""
    import tokenizers
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

    split = functools.partial(pre_tokenizers.Split, behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = {
        "gpt-2": words,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]),
        "llama-bpe": pre_tokenizers.Sequence([split(Regex(LLAMA3)), to_bytes]),
        "qwen2": pre_tokenizers.Sequence([split(Regex(QWEN2)), to_bytes]),
        "dbrx": pre_tokenizers.Sequence([split(Regex(LLAMA3)), to_bytes]),
    }
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    tokenizer.pre_tokenizer = parts[kind]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=418,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([inspect.getsource(inspect)], trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([PLAIN])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[5],
        "unk_token": SPECIAL[4],
        "chat_template": "{{ messages[0].content }}<|eot_id|>",
    }
    return {JSON: tokenizer.to_str().encode(), CONFIG: json.dumps(settings).encode()}


def model(kind: str, **changes) -> LM:
    config = dataclasses.replace(
        TINY, vocab_size=448, bos_token_id=418, eos_token_id=419, **changes
    )
    return LM(config, random_params(config), Tokenizer(files(kind)))


def keys_of(path: Path) -> dict:
    reader = library.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bos", [True, False])
def test_every_reader_gives_the_same_ids(tmp_path, kind, bos):
    from transformers import AutoTokenizer

    lm = model(kind)
    lm = dataclasses.replace(lm, tokenizer=lm.tokenizer.with_bos(bos))
    path = export(lm, tmp_path / "m.gguf", to="gguf", dtype="float32")
    keys = keys_of(path)
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == kind
    assert keys["tokenizer.ggml.add_bos_token"] is bos
    assert keys["tokenizer.ggml.bos_token_id"] == 418
    assert keys["tokenizer.ggml.eos_token_id"] == 419
    assert keys["tokenizer.ggml.unknown_token_id"] == 422
    assert keys["tokenizer.ggml.padding_token_id"] == 423
    assert keys["tokenizer.chat_template"] == lm.tokenizer.chat_template
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert tokens[418:426] == [*SPECIAL, PLAIN, "[PAD425]"]
    assert types[418:426] == [3] * 6 + [4, 5]
    assert set(types[:418]) == {1}
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        if kind in ("gpt-2", "llama-bpe") and "<|" not in text and PLAIN not in text:
            # transformers knows few of llama.cpp's ways to split.
            assert theirs(text).input_ids == lm.tokenizer.encode_as_readers(text), text
    proof = prove(path, against=lm)
    assert proof["equal"]
    assert proof["readers"][0]["token_ids_equal"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_comes_back(tmp_path, kind):
    lm = model(kind)
    settings = {"eos_token_id": [419, 420, 421]}
    lm = dataclasses.replace(lm, generation_config=settings)
    path = export(lm, tmp_path / "m.gguf", to="gguf", dtype="float32")
    again = load(path)
    assert again.stop_ids == (419, 420, 421, 423)  # <|end|> is one by its name
    assert again.config.bos_token_id == 418
    assert again.tokenizer.special_tokens == lm.tokenizer.special_tokens
    assert again.tokenizer.chat_template == lm.tokenizer.chat_template
    assert again.tokenizer.adds_bos == lm.tokenizer.adds_bos
    for text in TEXTS:
        for special in (True, False):
            expected = lm.tokenizer.encode(text, special=special)
            assert again.tokenizer.encode(text, special=special) == expected, text
        assert again.tokenizer.decode(expected) == lm.tokenizer.decode(expected)
    second = export(again, tmp_path / "again" / "m.gguf", to="gguf", dtype="float32")
    assert keys_of(second) == keys_of(path)


def test_another_way_to_split_is_refused_by_name(tmp_path):
    path = export(model("gpt-2"), tmp_path / "m.gguf", to="gguf", dtype="float32")
    content = path.read_bytes()
    assert content.count(b"gpt-2") == 1
    path.write_bytes(content.replace(b"gpt-2", b"gpt-o"))
    with pytest.raises(ValueError, match="tokenizer.ggml.pre 'gpt-o' is not supported; known: "):
        load(path)


@pytest.mark.parametrize(
    "in_config, in_file, keys",
    [
        (419, None, {"eos": 419}),
        ((419, 420), None, {"eos": 419}),  # <|eot_id|> is known by its name
        ((420, 421), None, {"eos": 419, "eot": 421}),
        (419, [421, 422], {"eos": 419, "eot": 421, "eom": 422}),
        (419, [420, 421, 422, 423], {"eos": 419, "eot": 421, "eom": 422}),
    ],
)
def test_every_stop_token_has_a_key_or_a_name_that_is_known(tmp_path, in_config, in_file, keys):
    lm = model("gpt-2")
    config = dataclasses.replace(lm.config, eos_token_id=in_config)
    generation = None if in_file is None else {"eos_token_id": in_file}
    lm = dataclasses.replace(lm, config=config, generation_config=generation)
    written = keys_of(export(lm, tmp_path / "m.gguf", to="gguf", dtype="float32"))
    ends = {
        name: written[f"tokenizer.ggml.{name}_token_id"]
        for name in ("eos", "eot", "eom")
        if f"tokenizer.ggml.{name}_token_id" in written
    }
    assert ends == keys


def changed(**parts) -> Tokenizer:
    data = json.loads(files("gpt-2")[JSON])
    data |= {key: value for key, value in parts.items() if key != "model"}
    data["model"] |= parts.get("model", {})
    return Tokenizer(files("gpt-2") | {JSON: json.dumps(data).encode()})


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"normalizer": {"type": "NFKC"}}, "its normalizer, NFKC, has no field there"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFD"}]}},
            "its normalizer, NFD, has no field there",
        ),
        ({"decoder": {"type": "Fuse"}}, "not a byte-level BPE"),
        ({"model": {"ignore_merges": True}}, "no name for its pre_tokenizer"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix of its model"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Whitespace"},
                        {
                            "type": "ByteLevel",
                            "add_prefix_space": False,
                            "trim_offsets": True,
                            "use_regex": True,
                        },
                    ],
                }
            },
            "nothing like its pre_tokenizer",
        ),
    ],
)
def test_models_that_llama_cpp_would_run_differently_are_refused(tmp_path, parts, message):
    lm = dataclasses.replace(model("gpt-2"), tokenizer=changed(**parts))
    with pytest.raises(ValueError, match=message) as error:
        export(lm, tmp_path / "m.gguf", to="gguf", dtype="float32")
    assert "use --to hf" in str(error.value)
    assert not any(tmp_path.iterdir())


def test_the_expression_of_gpt_2_is_the_library_s():
    from tokenizers import Regex, pre_tokenizers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rng = np.random.default_rng(0)
    characters = list("ab '1\n\t.é語\u00a0stl")
    for _ in range(300):
        text = "".join(rng.choice(characters, 12))
        assert ours.pre_tokenize_str(text) == whole.pre_tokenize_str(text)


@functools.cache
def falcon() -> Tokenizer:
    """A tokenizer that divides texts as the published one of Falcon does."""
    import tokenizers
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation(behavior="contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=447,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    years = " ".join(f"in {number}, {number * 37}" for number in range(100, 2000, 7))
    tokenizer.train_from_iterator([inspect.getsource(inspect), years * 9], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    return Tokenizer({JSON: tokenizer.to_str().encode(), CONFIG: json.dumps(settings).encode()})


def texts_with_numbers() -> list[str]:
    rng = np.random.default_rng(0)
    characters = list("ab 0123456789 $+<=^`|~.,'-_\n\t²½é語")
    return [*SAMPLE_TEXTS, *("".join(rng.choice(characters, 24)) for _ in range(300))]


CONFIG_OF_FALCON = dataclasses.replace(TINY, vocab_size=448, bos_token_id=None, eos_token_id=447)


def test_the_tokenizer_of_falcon():
    """By llama.cpp's expressions in the reference reader, and by those that an import has."""
    tokenizer = falcon()
    keys = vocabulary(tokenizer, CONFIG_OF_FALCON)
    assert keys["tokenizer.ggml.pre"] == "falcon"
    reference = open_byte_level(keys)
    imported = open_tokenizer(GGUFVocabulary(keys))
    for text in texts_with_numbers():
        expected = tokenizer.encode(text)
        assert reference.encode(text).ids == expected, repr(text)
        assert imported.encode(text) == expected, repr(text)
    assert vocabulary(imported, CONFIG_OF_FALCON) == keys


def test_a_falcon_that_joins_digits_and_words_is_refused():
    tokenizer = falcon()
    data = json.loads(tokenizer.files[JSON])
    data["model"]["vocab"]["Ġ1"] = data["model"]["vocab"].pop("ing")
    with pytest.raises(ValueError, match="token 'Ġ1' has digits next to other characters"):
        byte_level_vocabulary(data)


def test_the_normal_form_of_a_text_is_a_known_incompatibility():
    """Qwen's and MPT's tokenizers have it; llama.cpp's own converter leaves it out."""
    tokenizer = changed(normalizer={"type": "NFC"})
    assert not normalizes(changed().json_data)
    assert normalizes(tokenizer.json_data)
    keys = vocabulary(tokenizer, model("gpt-2").config)
    assert keys == vocabulary(changed(), model("gpt-2").config)
    reference = open_byte_level(keys)
    for text in SAMPLE_TEXTS:
        assert reference.encode(text).ids == tokenizer.encode(text)
    assert reference.encode("e\u0301").ids != tokenizer.encode("e\u0301")


def test_added_tokens_of_spaces_are_found_as_llama_cpp_finds_them():
    """MPT has a token for every run of spaces; the longest one is taken in both."""
    tokenizer = Tokenizer(files("gpt-2"))
    data = json.loads(tokenizer.files[JSON])
    spaces = [
        {**added, "id": 425 + n, "content": " " * (n + 2), "special": False}
        for n, added in enumerate([data["added_tokens"][-1]] * 4)
    ]
    data["added_tokens"] += spaces
    tokenizer = Tokenizer(tokenizer.files | {JSON: json.dumps(data).encode()})
    keys = vocabulary(tokenizer, model("gpt-2").config)
    reference = open_byte_level(keys)
    for text in ("a  b", "a   b", "x =  1\n        y", "      ", "   a     b"):
        assert reference.encode(text).ids == tokenizer.encode(text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "falcon"])
def test_llama_cpp_gives_the_same_ids(kind, tmp_path):
    """Of texts with digits, symbols and control characters, as it cuts them itself."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    lm = model("gpt-2" if kind == "falcon" else kind)
    if kind == "falcon":
        lm = dataclasses.replace(lm, config=CONFIG_OF_FALCON, tokenizer=falcon())
    path = export(lm, tmp_path / "m.gguf", to="gguf", dtype="float32")
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    try:
        for text in texts_with_numbers():
            ids = theirs.tokenize(text.encode(), add_bos=False, special=False)
            assert ids == lm.tokenizer.encode(text), repr(text)
    finally:
        theirs.close()

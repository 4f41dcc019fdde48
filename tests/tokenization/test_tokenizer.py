"""The tokenizer compared with SentencePiece and, through tokenizer.json, with transformers."""

import functools
import inspect
import json
import random

import pytest

from ctxext.tokenization.tokenizer import (
    CONFIG,
    JSON,
    MODEL,
    Tokenizer,
    load_tokenizer,
    to_tokenizer_json,
    train_tokenizer,
)

ALPHABET = list("abcdefghijklmnopqrstuvwxyzABCDEF      \t\n0123456789.,;()é") + [
    "ü",
    "日",
    "語",
    "🙂",
    "▁",
    "\r",
    "ß",
]


@functools.cache
def model() -> bytes:
    return train_tokenizer([inspect.getsource(inspect), "été à la naïve 日本 " * 5], 420)


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(ALPHABET, k=rng.randrange(60))) for _ in range(count)]


def test_encode_equals_sentencepiece_and_bos_is_explicit():
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_proto=model())
    tokenizer = Tokenizer({MODEL: model()})
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (420, 1, 2)
    for text in random_texts(200):
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text)
        assert tokenizer.encode(text, bos=True) == [1, *ids]
        # SentencePiece represents a space by "▁".
        assert tokenizer.decode(ids) == text.replace("▁", " ")
        assert tokenizer.decode([1, *ids, 2]) == tokenizer.decode(ids)


def test_training_is_deterministic_and_has_llama_settings():
    again = train_tokenizer([inspect.getsource(inspect), "été à la naïve 日本 " * 5], 420)
    assert again == model()
    digits = Tokenizer({MODEL: model()}).encode("2024")
    # A leading space and four digits, because of split_digits.
    assert len(digits) == 5
    with pytest.raises(ValueError, match="a tokenizer of 5000 tokens cannot be trained"):
        train_tokenizer(["too little text"], 5000)


def test_json_gives_the_same_ids_on_random_strings():
    reference = Tokenizer({MODEL: model()})
    fast = Tokenizer({JSON: json.dumps(to_tokenizer_json(model())).encode()})
    assert fast.vocab_size == 420
    for text in random_texts(3000):
        assert fast.encode(text) == reference.encode(text), text
        assert fast.decode(reference.encode(text)) == reference.decode(reference.encode(text))


def test_exported_files_in_transformers(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = Tokenizer({MODEL: model()})
    for name, data in tokenizer.export_files(256).items():
        (tmp_path / name).write_bytes(data)
    assert sorted(p.name for p in tmp_path.iterdir()) == [JSON, MODEL, CONFIG]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 256
    for text in random_texts(300):
        assert theirs(text).input_ids == tokenizer.encode(text, bos=True)
        assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
    code = "def f():\n    pass"
    assert theirs.decode(theirs(code).input_ids, skip_special_tokens=True) == code


@pytest.mark.parametrize(
    ("names", "setting"),
    [((JSON,), None), ((JSON,), False), ((JSON, MODEL), True), ((MODEL,), True), ((MODEL,), False)],
)
@pytest.mark.parametrize("template", [True, False])
def test_whether_bos_is_added_by_default(tmp_path, names, setting, template):
    """As in transformers: tokenizer.json's post-processor decides, otherwise `add_bos_token`.

    Where they contradict each other, readers differ, so that the user decides.
    """
    from transformers import AutoTokenizer

    files = Tokenizer({MODEL: model()}).export_files(256)
    settings = json.loads(files[CONFIG])
    settings.pop("add_bos_token", None)
    if setting is not None:
        settings["add_bos_token"] = setting
    fast = json.loads(files[JSON])
    if not template:
        fast["post_processor"] = None
    files[CONFIG] = json.dumps(settings).encode()
    files[JSON] = json.dumps(fast).encode()
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 420}')
    for name in (*names, CONFIG):
        (tmp_path / name).write_bytes(files[name])
    theirs = AutoTokenizer.from_pretrained(tmp_path)("a b").input_ids
    ours = load_tokenizer(tmp_path)
    if JSON in names and setting is not None and setting != template:
        with pytest.raises(ValueError, match="decide with --bos or --no-bos"):
            ours.adds_bos  # noqa: B018
        for choice in (True, False):
            chosen = ours.with_bos(choice)
            assert chosen.adds_bos == choice
            for name, data in chosen.files.items():
                (tmp_path / name).write_bytes(data)
            ids = AutoTokenizer.from_pretrained(tmp_path)("a b").input_ids
            assert ids == chosen.encode("a b", bos=choice)
        return
    # Only the first id is compared: without tokenizer.json, transformers 5 may differ later.
    assert ours.adds_bos == (theirs[0] == ours.bos_id)


def test_llama_adds_bos_by_default():
    tokenizer = Tokenizer({MODEL: model()})
    assert tokenizer.adds_bos
    assert tokenizer.id_to_token(1) == "<s>"
    assert tokenizer.id_to_token(2) == "</s>"


def test_json_only_directory_keeps_its_settings(tmp_path):
    first = Tokenizer({MODEL: model()}).export_files(64)
    for name in (JSON, CONFIG):
        (tmp_path / name).write_bytes(first[name])
    settings = json.loads(first[CONFIG]) | {
        "chat_template": "{{ messages }}",
        "tokenizer_class": "LlamaTokenizerFast",
    }
    (tmp_path / CONFIG).write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 420)
    assert tokenizer.encode("a b", bos=True) == Tokenizer({MODEL: model()}).encode("a b", bos=True)
    files = tokenizer.export_files(128)
    exported = json.loads(files[CONFIG])
    assert files[JSON] == first[JSON]
    assert MODEL not in files
    assert exported["chat_template"] == "{{ messages }}"
    assert exported["model_max_length"] == 128
    assert exported["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_tokens_added_after_the_vocabulary_survive_export():
    files = Tokenizer({MODEL: model()}).export_files(64)
    fast = json.loads(files[JSON])
    pad = fast["added_tokens"][0] | {"id": 420, "content": "[PAD]"}
    files[JSON] = json.dumps(fast | {"added_tokens": [*fast["added_tokens"], pad]}).encode()
    again = Tokenizer(files)
    # The ids that `encode` can produce.
    assert again.vocab_size == 420
    exported = again.export_files(64)[JSON]
    assert json.loads(exported)["added_tokens"][-1] == pad
    json_only = Tokenizer({JSON: exported})
    assert json_only.encode("a[PAD]b", special=True)[1:2] == [420]
    assert json_only.vocab_size == 421


def test_sha256_is_of_the_file_that_is_used(tmp_path):
    files = Tokenizer({MODEL: model()}).export_files(64)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    both = load_tokenizer(tmp_path)
    assert both.sha256 == Tokenizer({MODEL: model()}).sha256
    (tmp_path / MODEL).unlink()
    assert load_tokenizer(tmp_path).sha256 != both.sha256


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "neither tokenizer.model nor tokenizer.json"),
        ({MODEL: b"not a model"}, "not a SentencePiece model"),
        ({MODEL: b"IQ== 0\nIg== 1\n"}, "in tiktoken's format, as that of Llama 3 is.*copy token"),
        ({JSON: b"{}"}, "tokenizer.json cannot be read"),
        ({JSON: b"{}", CONFIG: b"{"}, "not valid JSON"),
    ],
)
def test_unreadable_files_are_named(tmp_path, files, message):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_models_that_cannot_be_converted_are_refused():
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(inspect.getsource(inspect).splitlines()),
        model_writer=out,
        vocab_size=300,
        model_type="unigram",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="cannot be converted to tokenizer.json"):
        to_tokenizer_json(out.getvalue())


def test_user_defined_tokens_that_a_tokenizer_json_cannot_have_are_refused():
    """SentencePiece continues a text after one, where a tokenizer.json begins like a text."""
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(inspect.getsource(inspect).splitlines()),
        model_writer=out,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["<PRE>"],
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="the ids of 'a<PRE>b <PRE> c' would change .*user-def"):
        to_tokenizer_json(out.getvalue())


def test_asking_for_bos_is_refused_if_there_is_none():
    bare = to_tokenizer_json(model()) | {"post_processor": None}
    fast = Tokenizer({JSON: json.dumps(bare).encode(), CONFIG: b'{"bos_token": null}'})
    assert fast.bos_id is None
    with pytest.raises(ValueError, match="no beginning-of-sequence token"):
        fast.encode("a", bos=True)

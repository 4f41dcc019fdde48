"""tokenizer.json as it was saved, and next to a tokenizer.model."""

import copy
import functools
import inspect
import json
from pathlib import Path

import pytest

from ctxext.tokenization.tokenizer import (
    CONFIG,
    JSON,
    MODEL,
    SAMPLE_TEXTS,
    Tokenizer,
    load_tokenizer,
    to_tokenizer_json,
    train_tokenizer,
)

TRUNCATION = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 40},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<unk>",
}
LONG = inspect.getsource(json.decoder)


@functools.cache
def model(vocab_size: int = 420) -> bytes:
    return train_tokenizer([inspect.getsource(inspect)], vocab_size)


@functools.cache
def exported(vocab_size: int = 420) -> dict[str, bytes]:
    return Tokenizer({MODEL: model(vocab_size)}).export_files(256)


def changed(name: str = JSON, **keys) -> dict[str, bytes]:
    """The exported files with other values in one of the JSON files."""
    return exported() | {name: json.dumps(json.loads(exported()[name]) | keys).encode()}


def write(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "llama", "vocab_size": 600}')
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("names", [(JSON, CONFIG), (JSON, CONFIG, MODEL)], ids=len)
@pytest.mark.parametrize("setting", [{"truncation": TRUNCATION}, {"padding": PADDING}], ids=str)
def test_truncation_and_padding_of_whoever_saved_it_are_cleared(tmp_path, names, setting):
    import tokenizers
    from transformers import AutoTokenizer

    files = changed(**setting)
    path = write(tmp_path / "in", {name: files[name] for name in names})
    theirs = AutoTokenizer.from_pretrained(path)
    ours = load_tokenizer(path)
    out = write(tmp_path / "out", ours.export_files(256))
    plain = tokenizers.Tokenizer.from_file(str(out / JSON))
    for text in ("a b", LONG):
        expected = theirs(text, add_special_tokens=False).input_ids
        assert (len(expected) > 64) == (text == LONG)
        assert ours.encode(text) == ours.encode(text, special=True) == expected
        assert ours.spans(text)[0] == expected
        assert plain.encode(text).ids == [1, *expected]
    data = json.loads((out / JSON).read_bytes())
    assert data["truncation"] is None
    assert data["padding"] is None
    assert ours.sha256 == Tokenizer({name: exported()[name] for name in names}).sha256


def test_dropout_of_merges_which_makes_ids_random_is_cleared(tmp_path):
    data = json.loads(exported()[JSON])
    data["model"]["dropout"] = 0.5
    path = write(tmp_path / "in", {JSON: json.dumps(data).encode(), CONFIG: exported()[CONFIG]})
    ours = load_tokenizer(path)
    assert ours.encode(LONG) == load_tokenizer(write(tmp_path / "plain", exported())).encode(LONG)
    assert json.loads(ours.export_files(256)[JSON])["model"]["dropout"] is None


def test_files_that_say_all_are_exported_as_they_were_given(tmp_path):
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "padding_side": "right",
        "legacy": False,
        "clean_up_tokenization_spaces": True,
        "additional_special_tokens": ["<s>"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 128,
        "bos_token": "<s>",
        "eos_token": None,
        "unk_token": "<unk>",
    }
    compact = json.dumps(json.loads(exported()[JSON])).encode()
    files = {
        MODEL: model(),
        JSON: compact,
        CONFIG: json.dumps(settings).encode(),
        "special_tokens_map.json": b'{"pad_token": "</s>"}',
        "chat_template.jinja": b"{{ messages }}",
    }
    again = load_tokenizer(write(tmp_path, files)).export_files(512)
    assert {name: again[name] for name in files if name != CONFIG} == {
        name: files[name] for name in files if name != CONFIG
    }
    assert json.loads(again[CONFIG]) == settings | {"model_max_length": 512}


def test_a_model_and_a_json_with_other_tokens_are_refused_by_name(tmp_path):
    larger = exported(500) | {MODEL: model()}
    renamed = json.loads(exported()[JSON])
    vocabulary = renamed["model"]["vocab"]
    last = Tokenizer(exported()).id_to_token(419)
    vocabulary["changed"] = vocabulary.pop(last)
    merges = renamed["model"]["merges"]
    renamed["model"]["merges"] = [m for m in merges if last not in (*m, "".join(m))]
    other_merges = json.loads(exported()[JSON])
    other_merges["model"]["merges"].reverse()
    no_space = changed(normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    cases = {
        "id [0-9]+ is .* in the first and .* in the second": larger,
        "id 419 is .* in the first and 'changed' in the second": exported()
        | {JSON: json.dumps(renamed).encode()},
        "they give different ids to '": exported() | {JSON: json.dumps(other_merges).encode()},
        "they give different ids to 'The": no_space,
    }
    for number, (message, files) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=message) as error:
            load_tokenizer(write(tmp_path / str(number), files))
        text = str(error.value)
        assert "tokenizer.model and tokenizer.json are different tokenizers" in text
        assert str(tmp_path) in text
        assert "\n" not in text
        # Either alone is a tokenizer.
        for name in (MODEL, JSON):
            Tokenizer({key: files[key] for key in (name, CONFIG)})


def grown(size: int) -> dict[str, bytes]:
    """A tokenizer.json that had plain tokens added, next to the model of before."""
    data = json.loads(exported()[JSON])
    plain = {**data["added_tokens"][0], "special": False, "normalized": False}
    words = ["".join(("foo", chr(97 + i))) for i in range(size)]
    data["added_tokens"] += [plain | {"id": 420 + i, "content": w} for i, w in enumerate(words)]
    return exported() | {JSON: json.dumps(data).encode()}


def test_plain_tokens_that_only_the_json_has_count_in_every_text(tmp_path):
    from transformers import AutoTokenizer

    path = write(tmp_path / "in", grown(3))
    ours = load_tokenizer(path)
    out = write(tmp_path / "out", ours.export_files(256))
    assert (out / JSON).read_bytes() == grown(3)[JSON]
    text = "a foob and fooc"
    assert {421, 422} < set(ours.encode(text))
    assert ours.vocab_size == 423
    for place in (path, out):
        theirs = AutoTokenizer.from_pretrained(place)
        assert theirs(text).input_ids == ours.encode_as_readers(text)
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("names", [(MODEL, CONFIG), (MODEL, JSON, CONFIG), (JSON, CONFIG)], ids=len)
def test_legacy_decides_about_the_space_after_a_special_token(tmp_path, legacy, names):
    """The right ids: of transformers' class for such a model, which it builds from the model."""
    from transformers import LlamaTokenizer

    setting = {} if legacy is None else {"legacy": legacy}
    config = json.dumps({"bos_token": "<s>", "eos_token": "</s>", **setting}).encode()
    alone = write(tmp_path / "alone", {MODEL: model(), CONFIG: config})
    # Without the setting, transformers 4 took it as true and said so; 5 takes it as false.
    theirs = LlamaTokenizer.from_pretrained(alone, legacy=legacy is not False)
    data = to_tokenizer_json(model(), legacy=legacy is not False)
    files = {MODEL: model(), JSON: json.dumps(data).encode(), CONFIG: config}
    ours = load_tokenizer(write(tmp_path / "in", {name: files[name] for name in names}))
    out = write(tmp_path / "out", ours.export_files(256))
    again = load_tokenizer(out)
    texts = ["<s>[INST] Hello [/INST] yes </s>no<s>so", "Hello</s>world"]
    if legacy is False:  # else transformers 5 leaves out the space that 4 adds to another one
        texts += ["<s> [INST] Hello [/INST]  yes </s>  no", "one </s> two"]
    for text in texts:
        expected = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, special=True) == expected, text
        assert again.encode(text, special=True) == expected, text
    # Special tokens apart, this setting changes nothing but texts that begin with a space.
    for text in SAMPLE_TEXTS:
        if legacy is False or not text.startswith((" ", "▁")):
            assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, text


def test_added_tokens_that_the_library_would_number_otherwise_are_refused():
    data = json.loads(exported()[JSON])
    gap = copy.deepcopy(data)
    gap["added_tokens"] += [{**data["added_tokens"][0], "id": 425, "content": "<far>"}]
    with pytest.raises(ValueError, match="'<far>' has id 425 .* but the .* library makes it 420"):
        Tokenizer(exported() | {JSON: json.dumps(gap).encode()})

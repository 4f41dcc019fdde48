"""Special and added tokens in every file that names them, compared with transformers."""

import json
from pathlib import Path

import pytest

from ctxext.tokenization.chat import chat_of
from ctxext.tokenization.tokenizer import CONFIG, JSON, MODEL, Tokenizer, load_tokenizer
from tokenization.test_model_and_json import exported, model, write

MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
PLAIN_CLASS = "PreTrainedTokenizerFast"


def token(text: str, *, special: bool = True) -> dict:
    return {
        "content": text,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": special,
    }


DECODER = {
    "0": token("<unk>"),
    "1": token("<s>"),
    "2": token("</s>"),
    "420": token("<|im_start|>"),
    "421": token("<|im_end|>"),
    "422": token("<tool>", special=False),
}
NEW = {"<|im_start|>": 420, "<|im_end|>": 421, "<tool>": 422}
NAMES = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
CASES = {
    "added_tokens_decoder": {CONFIG: {**NAMES, "added_tokens_decoder": DECODER}},
    "the decoder overrules the map": {
        CONFIG: {**NAMES, "added_tokens_decoder": DECODER},
        MAP: {"eos_token": "</s>"},
    },
    "special_tokens_map": {CONFIG: {}, MAP: NAMES, ADDED: NEW},
    "the map overrules the settings": {
        CONFIG: {"eos_token": "</s>", "pad_token": "<unk>"},
        MAP: {**NAMES, "eos_token": token("<|im_end|>")},
        ADDED: NEW,
    },
    "added_tokens.json": {CONFIG: NAMES, ADDED: NEW},
}


@pytest.mark.parametrize("names", [(JSON,), (JSON, MODEL)], ids=["json", "json and model"])
@pytest.mark.parametrize("case", CASES)
def test_every_file_that_names_special_tokens_counts_as_in_transformers(tmp_path, case, names):
    from transformers import AutoTokenizer

    files = {name: exported()[name] for name in names}
    for name, data in CASES[case].items():
        if name == CONFIG:
            data = {**data, "tokenizer_class": PLAIN_CLASS}
        files[name] = json.dumps(data).encode()
    path = write(tmp_path / "in", files)
    ours = load_tokenizer(path)
    theirs = AutoTokenizer.from_pretrained(path)
    readers = [theirs, AutoTokenizer.from_pretrained(write(tmp_path / "out", ours.export_files(9)))]
    text = "<|im_start|>user a<tool>b<|im_end|>\n"
    for reader in readers:
        assert (reader.bos_token, reader.eos_token) == ("<s>", "<|im_end|>")
        assert (reader.bos_token_id, reader.eos_token_id) == (ours.bos_id, ours.eos_id)
        assert reader.pad_token == ours.special_tokens["pad_token"]
        ids = reader(text, add_special_tokens=False).input_ids
        assert ids == ours.encode(text, special=True)
        assert {420, 421} < set(ids)
        plain = "a<tool>b <tool>"
        assert reader(plain, add_special_tokens=False).input_ids == ours.encode(plain)
        # Of added_tokens.json, transformers looks for "▁<tool>".
        assert ours.encode(plain).count(422) == (2 if "decoder" in case else 1)
    assert len(readers[1]) == len(theirs) == 423


@pytest.mark.parametrize(
    "files", [{ADDED: {"<tool>": 420}}, {CONFIG: {"added_tokens_decoder": {}}}]
)
def test_the_special_tokens_of_a_model_stay_next_to_added_ones(tmp_path, files):
    """Also where no file next to a tokenizer.model names them."""
    from transformers import AutoTokenizer

    if CONFIG in files:
        files[CONFIG]["added_tokens_decoder"] = {"420": token("<tool>", special=False)}
    written = {name: json.dumps(data).encode() for name, data in files.items()}
    ours = load_tokenizer(write(tmp_path / "in", {MODEL: model(), **written}))
    plain = Tokenizer({MODEL: model()})
    expected = [*plain.encode("a"), 2, *plain.encode("b"), 1, *plain.encode(" c")]
    assert ours.encode("a</s>b<s> c", special=True) == expected
    exported = AutoTokenizer.from_pretrained(write(tmp_path / "out", ours.export_files(9)))
    assert exported("a</s>b<s> c", add_special_tokens=False).input_ids == expected


def test_a_chat_ends_with_the_end_that_the_json_files_name(tmp_path):
    settings = {
        "eos_token": "<|im_end|>",
        "added_tokens_decoder": DECODER,
        "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    }
    files = {MODEL: model(), CONFIG: json.dumps(settings).encode()}
    tokenizer = load_tokenizer(write(tmp_path, files))
    assert tokenizer.eos_id == 421
    assert chat_of(tokenizer).encode([{"content": "a"}])[-1] == 421
    assert json.loads(tokenizer.export_files(9)[CONFIG])["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize(
    "files, message",
    [
        ({CONFIG: {"added_tokens_decoder": {"420": token("x"), "421": token("x")}}}, "has the ids"),
        ({CONFIG: {"added_tokens_decoder": {"5": token("<new>")}}}, "adds '<new>' as id 5, but"),
        ({CONFIG: {"added_tokens_decoder": {"500": token("</s>")}}}, "has the ids 2 and 500"),
        ({CONFIG: {"added_tokens_decoder": {"x": token("</s>")}}}, "must map ids to tokens"),
        ({CONFIG: {"added_tokens_decoder": []}}, None),
        ({CONFIG: {"added_tokens_decoder": [1]}}, "must map ids to tokens"),
        ({MAP: []}, "special_tokens_map.json must hold an object"),
        ({CONFIG: {"eos_token": "<|nowhere|>"}}, "names '<|nowhere|>' as its eos_token, which"),
    ],
)
def test_contradictions_are_named(tmp_path, files, message):
    written = {name: json.dumps(data).encode() for name, data in files.items()}
    path = write(tmp_path, {JSON: exported()[JSON]} | written)
    if message is None:
        load_tokenizer(path)
        return
    with pytest.raises(ValueError) as error:
        load_tokenizer(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


# Where BOS comes from: (files, the class, add_bos_token, post_processor adds it), and what is right
# by transformers 5 (4.57 for the class LlamaTokenizer, of which 5 obeys only the post_processor).
BOS = [
    ((MODEL,), "LlamaTokenizer", None, None, True),
    ((MODEL,), "LlamaTokenizer", False, None, False),
    ((JSON,), PLAIN_CLASS, None, True, True),
    ((JSON,), PLAIN_CLASS, None, False, False),
    ((JSON,), "GPT2Tokenizer", None, False, False),
    ((JSON,), "LlamaTokenizerFast", None, False, True),
    ((JSON,), "LlamaTokenizerFast", False, False, False),
    ((JSON,), "LlamaTokenizerFast", True, False, True),
    ((JSON, MODEL), PLAIN_CLASS, False, False, False),
    ((JSON, MODEL), PLAIN_CLASS, None, True, True),
]


def with_policy(names, kind, stated, template) -> dict[str, bytes]:
    files = {name: exported()[name] for name in names}
    settings = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": kind}
    if stated is not None:
        settings["add_bos_token"] = stated
    if template is False:
        files[JSON] = json.dumps(json.loads(files[JSON]) | {"post_processor": None}).encode()
    return files | {CONFIG: json.dumps(settings).encode()}


@pytest.mark.parametrize("names, kind, stated, template, adds", BOS)
def test_the_policy_of_a_checkpoint_is_kept_and_exported(
    tmp_path, names, kind, stated, template, adds
):
    from transformers import AutoTokenizer

    ours = load_tokenizer(write(tmp_path / "in", with_policy(names, kind, stated, template)))
    assert ours.adds_bos == adds
    assert ours.encode_prompt("a b") == ours.encode("a b", bos=adds)
    out = write(tmp_path / "out", ours.export_files(256))
    theirs = AutoTokenizer.from_pretrained(out)
    assert theirs("a b").input_ids == ours.encode_as_readers("a b") == ours.encode_prompt("a b")
    assert json.loads((out / CONFIG).read_bytes())["add_bos_token"] == adds
    assert load_tokenizer(out).adds_bos == adds


@pytest.mark.parametrize("names, kind, stated, template, adds", BOS)
def test_the_policy_can_be_overruled(tmp_path, names, kind, stated, template, adds):
    from transformers import AutoTokenizer

    ours = Tokenizer(with_policy(names, kind, stated, template))
    for choice in (True, False):
        other = ours.with_bos(choice)
        assert other.adds_bos == choice
        assert other.sha256 == ours.sha256
        path = write(tmp_path / str(choice), other.export_files(256))
        ids = AutoTokenizer.from_pretrained(path)("a b").input_ids
        assert ids == ours.encode("a b", bos=choice)
        assert Tokenizer(other.files).adds_bos == choice


def test_a_prompt_that_begins_with_bos_gets_no_second_one():
    tokenizer = Tokenizer(exported())
    assert tokenizer.encode_prompt("<s>a b") == tokenizer.encode_prompt("a b")
    assert tokenizer.with_bos(False).encode_prompt("<s>a b") == tokenizer.encode_prompt("a b")
    assert tokenizer.with_bos(False).encode_prompt("a b") == tokenizer.encode("a b")


@pytest.mark.parametrize("post_processor", ["sequence", "byte level"])
def test_bos_is_put_into_and_taken_out_of_any_post_processor(tmp_path, post_processor):
    """Llama 3 has a sequence of a byte-level part and a template."""
    import tokenizers

    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }
    data = json.loads(exported()[JSON])
    if post_processor == "sequence":
        parts = [byte_level, data["post_processor"]]
        data["post_processor"] = {"type": "Sequence", "processors": parts}
    else:
        data["post_processor"] = byte_level
    tokenizer = Tokenizer({JSON: json.dumps(data).encode()})
    assert tokenizer.adds_bos == (post_processor == "sequence")
    for choice in (True, False):
        files = tokenizer.with_bos(choice).files
        library = tokenizers.Tokenizer.from_str(files[JSON].decode())
        assert library.encode("a b").ids == tokenizer.encode("a b", bos=choice)
        pair = library.encode("a", "b").ids
        bos = [1] * choice
        assert pair == [*bos, *tokenizer.encode("a"), *bos, *tokenizer.encode("b")]


def test_two_bos_or_another_token_in_its_place_are_refused(tmp_path):
    data = json.loads(exported()[JSON])
    single = data["post_processor"]["single"]
    for begin in ([single[0], single[0]], [{"SpecialToken": {"id": "</s>", "type_id": 0}}]):
        processor = json.loads(json.dumps(data["post_processor"]))
        processor["single"] = [*begin, single[-1]]
        processor["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
        files = {JSON: json.dumps(data | {"post_processor": processor}).encode()}
        with pytest.raises(ValueError, match="a text has one BOS; correct the wrong file"):
            load_tokenizer(write(tmp_path, files))


def test_a_tokenizer_without_any_bos_works(tmp_path):
    from transformers import AutoTokenizer

    files = with_policy((JSON,), PLAIN_CLASS, None, False)
    files[CONFIG] = json.dumps({"eos_token": "</s>", "tokenizer_class": PLAIN_CLASS}).encode()
    ours = load_tokenizer(write(tmp_path / "in", files))
    assert ours.bos_id is None
    assert not ours.adds_bos
    assert ours.encode_prompt("a b") == ours.encode("a b")
    assert ours.with_bos(False) is ours
    with pytest.raises(ValueError, match="--bos needs a tokenizer with a BOS; name its bos_token"):
        ours.with_bos(True)
    theirs = AutoTokenizer.from_pretrained(write(tmp_path / "out", ours.export_files(256)))
    assert theirs.bos_token is None
    assert theirs("a b").input_ids == ours.encode("a b")


def test_defaults_of_the_class_are_written_out_because_an_export_has_another(tmp_path):
    files = {JSON: exported()[JSON], CONFIG: b'{"tokenizer_class": "LlamaTokenizer"}'}
    settings = json.loads(load_tokenizer(write(tmp_path, files)).export_files(9)[CONFIG])
    assert settings == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "add_bos_token": True,
        "add_eos_token": False,
        "tokenizer_class": PLAIN_CLASS,
        "model_max_length": 9,
    }


def test_a_model_alone_that_adds_eos_says_so_in_its_export(tmp_path):
    from transformers import AutoTokenizer

    files = {MODEL: model(), CONFIG: b'{"add_eos_token": true, "add_bos_token": false}'}
    ours = load_tokenizer(write(Path(tmp_path / "in"), files))
    assert (ours.adds_bos, ours.adds_eos) == (False, True)
    theirs = AutoTokenizer.from_pretrained(write(tmp_path / "out", ours.export_files(9)))
    assert theirs("a b").input_ids == ours.encode_as_readers("a b") == [*ours.encode("a b"), 2]
    assert ours.encode_prompt("a b") == ours.encode("a b"), "a prompt goes on"

"""Mistakes planted next to the weights of an export: each is found, and named by its file."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from ctxext.cli.main import main
from ctxext.export import export
from ctxext.methods import DynamicNTK, LongRope, Yarn
from ctxext.model.lm import LM
from ctxext.prove import describe, prove
from ctxext.prove.tokenizer_settings import compare_tokenizer_settings
from ctxext.rope import RopeScaling
from ctxext.tokenization.tokenizer import CONFIG, JSON, MODEL, Tokenizer
from interop.test_gguf_byte_level import SPECIAL, files
from support.llamas import LENGTH, TINY, WINDOW, random_params, tokenizer

SHORT = (1.0,) * 8
LONG = (1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0)
GENERATION = {"eos_token_id": [419, 5], "do_sample": True, "max_length": WINDOW}


@pytest.fixture(autouse=True)
def no_transformers(request, monkeypatch):
    """It is in the tests of `make check` alone."""
    if request.node.get_closest_marker("check") is None:
        monkeypatch.setitem(sys.modules, "torch", None)


def model(scaling: RopeScaling | None = None, *, bos: bool = False) -> LM:
    """One layer with a byte-level tokenizer, without BOS or with one that no text begins with."""
    settings = json.loads(files("smollm")[CONFIG]) | {
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }
    if not bos:
        del settings["bos_token"]
    config = dataclasses.replace(
        TINY,
        num_hidden_layers=1,
        vocab_size=448,
        bos_token_id=418 if bos else None,
        eos_token_id=419,
    )
    stored = Tokenizer({**files("smollm"), CONFIG: json.dumps(settings).encode()})
    return LM(
        config,
        random_params(config),
        stored,
        scaling=scaling or LongRope(4.0, SHORT, LONG),
        generation_config=GENERATION,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return export(model(), tmp_path_factory.mktemp("export") / "m", dtype="float32")


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "m"))


def keys(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        (out / name).write_text(json.dumps(json.loads((out / name).read_text()) | changes))

    return change


def dropout(out: Path) -> None:
    data = json.loads((out / JSON).read_text())
    data["model"]["dropout"] = 0.1
    (out / JSON).write_text(json.dumps(data))


OTHER_FLAGS = {"419": {"content": SPECIAL[1], "special": True, "lstrip": True}}
ADDS_NOTHING = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
"""As transformers 5 writes it where a tokenizer.json has no post_processor."""
SETTINGS = [
    (keys(CONFIG, clean_up_tokenization_spaces=True), "clean_up_tokenization_spaces in "),
    (keys(CONFIG, padding_side="right"), "padding_side in "),
    (keys(CONFIG, add_bos_token=True), "add_bos_token in tokenizer_config.json is True, not False"),
    (keys(CONFIG, add_eos_token=True), "add_eos_token in tokenizer_config.json is True, not False"),
    (keys(CONFIG, add_prefix_space=True), "add_prefix_space in "),
    (keys(CONFIG, split_special_tokens=True), "split_special_tokens in "),
    (keys(CONFIG, model_max_length=WINDOW), f"is {WINDOW}, less than {LENGTH}: transformers cuts"),
    (keys(CONFIG, extra_special_tokens=["a"]), "makes special tokens of 'a'"),
    (keys(CONFIG, added_tokens_decoder=OTHER_FLAGS), "other flags than tokenizer.json does"),
    (dropout, "dropout in tokenizer.json is 0.1: readers draw the ids of a text at random"),
    (
        keys("config.json", max_position_embeddings=2 * WINDOW),
        "is 128, not 256: readers that take it",
    ),
    (keys("config.json", max_position_embeddings=WINDOW), "is 64, not 256: readers that take it"),
    (keys("config.json", architectures=["GemmaForCausalLM"]), "architectures in config.json is"),
]


@pytest.mark.parametrize(("plant", "found"), SETTINGS, ids=[found for _, found in SETTINGS])
def test_a_setting_that_few_readers_obey_is_found(copy, plant, found):
    plant(copy)
    proof = prove(copy, against=model())
    assert not proof["equal"]
    assert [found in difference for difference in proof["settings_that_differ"]] == [True]
    assert found in describe(proof)


@pytest.mark.parametrize("change", [{"bos_token": None}, {}], ids=["null", "removed"])
def test_a_name_that_a_chat_template_needs_is_not_that_of_tokenizer_json(change):
    """Its post_processor still says which token begins a text, but not what it is called."""
    expected = tokenizer()
    exported = {name: data for name, data in expected.export_files(LENGTH).items() if name != MODEL}
    settings = json.loads(exported[CONFIG])
    del settings["bos_token"]
    stored = Tokenizer({**exported, CONFIG: json.dumps(settings | change).encode()})
    assert stored.special_tokens["bos_token"] == "<s>"
    found = compare_tokenizer_settings(stored, expected, window=LENGTH, original=WINDOW)
    assert found == (["bos_token in tokenizer_config.json is None, not '<s>'"], [])


@pytest.mark.parametrize(
    "plant",
    [
        lambda out: None,
        keys(CONFIG, model_max_length=10**30, add_prefix_space=False, legacy=False),
        keys(CONFIG, additional_special_tokens=SPECIAL[:2], name_or_path="x", backend="tokenizers"),
        keys("config.json", use_cache=False, pretraining_tp=2, attention_dropout=0.1),
        keys(JSON, post_processor=ADDS_NOTHING),
    ],
    ids=["as written", "written out", "as others save it", "of training", "adds nothing"],
)
def test_what_changes_nothing_is_no_difference(copy, plant):
    plant(copy)
    proof = prove(copy, against=model())
    assert proof["settings_that_differ"] == proof["settings_not_known"] == []
    assert proof["equal"]


def test_keys_of_other_families_and_unknown_ones_are_said_not_to_be_compared(copy):
    keys("config.json", logit_scale=2.0, dtype="float16")(copy)
    keys(CONFIG, keep_accents=True)(copy)
    text = describe(prove(copy, against=model()))
    assert "NOT COMPARED, as they are not known here: keep_accents in tokenizer_config.json" in text
    assert "logit_scale in config.json" in text
    assert "rounds the weights, which are stored in float32, to float16" in text


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    "scaling",
    [Yarn(4.0), DynamicNTK(4.0), LongRope(4.0, SHORT, LONG)],
    ids=lambda s: type(s).__name__,
)
def test_a_model_whose_texts_have_no_bos_is_equal(tmp_path, scaling, bos):
    lm = model(scaling, bos=bos)
    out = export(lm, tmp_path / "m", dtype="float32")
    assert json.loads((out / "generation_config.json").read_text())["max_length"] == LENGTH
    assert json.loads((out / CONFIG).read_text())["model_max_length"] == LENGTH
    proof = prove(out, against=lm)
    assert proof["settings_that_differ"] == proof["generation_settings_that_differ"] == []
    assert proof["equal"]
    (reader,) = proof["readers"]
    assert reader["text_lengths"] == [1, WINDOW, WINDOW + 1, LENGTH, 2 * LENGTH]


@pytest.mark.parametrize(
    ("name", "lengths"), [("short", "1, 64"), ("long", "65, 256, 512")], ids=["short", "long"]
)
def test_a_number_in_either_list_is_found_at_the_lengths_that_have_it(copy, name, lengths):
    """So small a change that no logit and no token shows it."""
    file = copy / "config.json"
    data = json.loads(file.read_text())
    for form in ("rope_scaling", "rope_parameters"):
        data[form][f"{name}_factor"][-1] *= 1.0001
    file.write_text(json.dumps(data))
    proof = prove(copy, against=model())
    assert not proof["equal"]
    assert f"ONLY IN TEXTS OF {lengths} TOKENS" in describe(proof)


def test_growing_frequencies_are_not_those_of_one_length(tmp_path):
    """A file with dynamic scaling that equals a static one at a single length is another model."""
    lm = model(DynamicNTK(4.0))
    out = export(lm, tmp_path / "m", dtype="float32")
    file = out / "config.json"
    data = json.loads(file.read_text())
    alpha = 4.0 * LENGTH / WINDOW - 3.0
    theta = data["rope_theta"] * alpha ** (16 / 14)
    del data["rope_scaling"], data["rope_parameters"]
    file.write_text(json.dumps(data | {"rope_theta": theta}))
    proof = prove(out, against=lm, seq_len=LENGTH)
    assert not proof["equal"]
    assert LENGTH not in proof["readers"][0]["text_lengths_that_differ"]
    assert 2 * LENGTH in proof["readers"][0]["text_lengths_that_differ"]


def test_sampling_in_config_json_counts_where_no_other_file_has_it(tmp_path):
    lm = dataclasses.replace(model(), generation_config=None)
    out = export(lm, tmp_path / "m", dtype="float32")
    keys("config.json", do_sample=True, temperature=2.0, top_k=50)(out)
    proof = prove(out, against=lm)
    assert not proof["equal"]
    because = "transformers generates by it, as there is no generation_config.json"
    assert proof["settings_that_differ"] == [
        f"do_sample in config.json is True: {because}",
        f"temperature in config.json is 2.0: {because}",
    ]


def test_dropout_makes_the_library_draw_ids_at_random(copy):
    text = "a text of some words " * 20
    assert len({tuple(ids_of_library(copy, text)) for _ in range(8)}) == 1
    dropout(copy)
    assert len({tuple(ids_of_library(copy, text)) for _ in range(8)}) > 1


def ids_of_library(out: Path, text: str) -> list[int]:
    return tokenizers.Tokenizer.from_file(str(out / JSON)).encode(text).ids


@pytest.mark.check
@pytest.mark.usefixtures("readers")
def test_transformers_obeys_the_dtype_and_the_longest_length(copy):
    import torch
    import transformers

    keys("config.json", dtype="float16", torch_dtype="float16")(copy)
    keys(CONFIG, model_max_length=WINDOW)(copy)
    assert transformers.AutoModelForCausalLM.from_pretrained(copy).dtype == torch.float16
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    assert len(tokenizer("a" * LENGTH, truncation=True).input_ids) == WINDOW
    effects = [known["effect"] for known in prove(copy)["known_incompatibilities"]]
    assert any("rounds the weights" in effect for effect in effects)


@pytest.mark.check
@pytest.mark.usefixtures("readers")
def test_a_text_longer_than_the_files_allow_gives_no_warning(copy, capfd):
    keys(CONFIG, model_max_length=8)(copy)
    assert main(["prove", str(copy)]) == 0
    captured = capfd.readouterr()
    assert "transformers" in captured.out
    assert captured.err == ""


@pytest.mark.check
@pytest.mark.usefixtures("readers")
@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_a_model_that_transformers_saved_again_is_equal(tmp_path, kind):
    import transformers

    lm = model(Yarn(4.0))
    if kind == "sentencepiece":
        lm = LM(TINY, random_params(), tokenizer(), scaling=Yarn(4.0))
    out = export(lm, tmp_path / "m", dtype="float32")
    again = tmp_path / "again"
    transformers.AutoModelForCausalLM.from_pretrained(out).save_pretrained(again)
    transformers.AutoTokenizer.from_pretrained(out).save_pretrained(again)
    proof = prove(again, against=lm)
    assert proof["settings_that_differ"] == proof["settings_not_known"] == []
    assert proof["equal"]

"""generation_config.json travels: what transformers reads of it before and after is the same."""

import dataclasses
import json
from pathlib import Path

import pytest

from ctxext import loading
from ctxext.cli.main import main
from ctxext.export import convert, export
from ctxext.interop.generation_config import (
    different_settings,
    extended_generation_config,
    read_generation_config,
)
from ctxext.methods.yarn import Yarn
from ctxext.model.config import merge_ids
from ctxext.prove import prove
from ctxext.rope import Unscaled
from support.hf_files import write_hf
from support.llamas import TINY, random_params, tokenizer

transformers = pytest.importorskip("transformers")

SETTINGS = {
    "_from_model_config": True,
    "bos_token_id": 1,
    "do_sample": True,
    "eos_token_id": [50, 51],
    "max_length": TINY.max_position_embeddings,
    "repetition_penalty": 1.1,
    "temperature": 0.3,
    "top_p": 0.7,
    "transformers_version": "4.42.0",
}
"""An instruct model's: the ends of an answer are only here, and nothing is a default."""


def save(directory: Path, settings: dict | None) -> Path:
    write_hf(directory, TINY, random_params(TINY), Unscaled(), tokenizer(), dtype="float32")
    if settings is not None:
        (directory / "generation_config.json").write_text(json.dumps(settings))
    return directory


def read(directory: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(directory).generation_config


@pytest.fixture(scope="module")
def instruct(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("generation") / "instruct", SETTINGS)


def test_an_export_has_the_settings_of_its_source(instruct, tmp_path):
    out = export(loading.load(instruct, method=Yarn(4.0)), tmp_path / "out")
    window = 4 * TINY.max_position_embeddings
    written = json.loads((out / "generation_config.json").read_text())
    assert written == {**SETTINGS, "max_length": window}
    before, after = read(instruct).to_dict(), read(out).to_dict()
    assert after == {**before, "max_length": window}
    assert after["eos_token_id"] == [50, 51]


@pytest.mark.parametrize(
    ("before", "after"), [(TINY.max_position_embeddings, 512), (256, 512), (40, 40), (600, 600)]
)
def test_a_length_of_the_whole_window_grows_with_it(before, after):
    written = extended_generation_config({"max_length": before}, TINY, window=512)
    assert written == {"max_length": after}


def test_a_converted_checkpoint_has_the_settings_of_its_source(instruct, tmp_path):
    out = convert(instruct, tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text()) == SETTINGS
    assert prove(out, against=instruct)["equal"]


def test_a_model_without_settings_gets_none(tmp_path):
    source = save(tmp_path / "base", None)
    out = export(loading.load(source), tmp_path / "out")
    assert not (out / "generation_config.json").exists()
    settings = read(out)
    assert settings.eos_token_id == TINY.eos_token_id
    assert not settings.do_sample
    assert settings.temperature in (None, 1.0)


def test_stop_ids_of_every_source(instruct):
    assert loading.load(instruct).stop_ids == (2, 50, 51)


@pytest.mark.parametrize("settings", [None, SETTINGS, {"temperature": 0.5}, {"eos_token_id": 2}])
def test_where_transformers_stops_elsewhere_generate_says_so(settings, tmp_path, capsys):
    source = save(tmp_path / "source", settings)
    lm = loading.load(source)
    assert lm.stop_ids_in_transformers == merge_ids(read(source).eos_token_id)
    argv = ["generate", str(source), "--prompt", "a", "--max-new-tokens", "1", "--json"]
    capsys.readouterr()
    assert main(argv) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "stop" in line]
    names = lm.tokenizer.vocabulary
    others = f"{names[50]} (50), {names[51]} (51)"
    assert (
        notes
        == {
            (2,): [],
            (): ["stops at </s> (2); transformers would stop at none"],
            (50, 51): [f"stops at </s> (2), {others}; transformers would stop at {others} only"],
        }[lm.stop_ids_in_transformers]
    )


@pytest.mark.parametrize(
    "key, value", [("eos_token_id", [50]), ("temperature", 0.6), ("do_sample", None)]
)
def test_settings_that_are_not_those_of_the_source_are_named(key, value):
    assert different_settings({**SETTINGS, key: value}, SETTINGS, TINY) == [key]
    assert different_settings(SETTINGS, {**SETTINGS, "eos_token_id": [51, 50]}, TINY) == []
    # transformers writes its default into every model that it saves.
    assert different_settings({**SETTINGS, "use_cache": True}, SETTINGS, TINY) == []
    assert different_settings({**SETTINGS, "use_cache": False}, SETTINGS, TINY) == ["use_cache"]


def test_a_proof_finds_a_lost_stop_token(instruct, tmp_path):
    out = convert(instruct, tmp_path / "out", dtype="float32")
    (out / "generation_config.json").write_text(json.dumps({**SETTINGS, "eos_token_id": 50}))
    proof = prove(out, against=instruct)
    assert proof["generation_settings_that_differ"] == ["eos_token_id"]
    assert not proof["equal"]
    assert "generation_config.json differs: eos_token_id" in (out / "README.md").read_text()


def test_a_proof_finds_settings_that_the_source_never_had(tmp_path):
    source = save(tmp_path / "base", None)
    out = convert(source, tmp_path / "out")
    same = {"bos_token_id": 1, "eos_token_id": 2, "_from_model_config": True}
    (out / "generation_config.json").write_text(json.dumps(same))
    assert prove(out, against=source)["equal"]
    (out / "generation_config.json").write_text(json.dumps({**same, "temperature": 0.6}))
    assert prove(out, against=source)["generation_settings_that_differ"] == ["temperature"]


def test_meta_s_format_refuses_ends_that_it_has_no_field_for(instruct, tmp_path):
    with pytest.raises(ValueError, match=r"also stops at \[50, 51\].*export with --to hf"):
        convert(instruct, tmp_path / "out", to="meta")


@pytest.mark.parametrize(
    "text, error",
    [
        ("[]", "must hold an object"),
        ('{"eos_token_id": "x"}', "eos_token_id must be a token id or a list of them"),
        ('{"eos_token_id": [true]}', "eos_token_id must be a token id or a list of them"),
        ('{"bos_token_id": 1.5}', "bos_token_id must be a token id"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, text, error):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=f"generation_config.json.*{error}"):
        read_generation_config(tmp_path)


def test_lm_takes_settings_of_any_kind():
    lm = loading.load("tiny-llama")
    assert dataclasses.replace(lm, generation_config=None).stop_ids == (2,)
    assert dataclasses.replace(lm, generation_config={"eos_token_id": 9}).stop_ids == (2, 9)

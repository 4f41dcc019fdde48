"""Mistakes in the tokenizer of an export that someone else wrote: each is found."""

import json
import shutil
from pathlib import Path

import pytest

from ctxext.cli.main import main
from ctxext.export import export
from ctxext.model.lm import LM
from ctxext.prove import describe, prove
from ctxext.tokenization.tokenizer import CONFIG, JSON, MODEL, Tokenizer
from support.llamas import LENGTH, TINY, random_params, tokenizer
from tokenization.test_model_and_json import PADDING, TRUNCATION
from tokenization.test_model_and_json import exported as other_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{{ eos_token }}{% endfor %}"


def model(files: dict[str, bytes] | None = None) -> LM:
    chosen = tokenizer() if files is None else Tokenizer(files)
    return LM(TINY, random_params(), chosen)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    files = tokenizer().export_files(LENGTH) | {"chat_template.jinja": TEMPLATE.encode()}
    return export(model(files), tmp_path_factory.mktemp("export") / "m", dtype="float32")


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "m"))


def change(path: Path, name: str, **keys) -> None:
    (path / name).write_text(json.dumps(json.loads((path / name).read_text()) | keys))


@pytest.mark.usefixtures("readers")
def test_an_export_with_a_chat_template_is_equal_in_every_reader(copy):
    proof = prove(copy)
    numpy, transformers = proof["readers"]
    assert proof["equal"]
    assert numpy["token_ids_equal"] and transformers["token_ids_equal"]
    assert transformers["special_ids_equal"] and transformers["chat_ids_equal"]
    assert "chat equal" in describe(proof)


@pytest.mark.parametrize(
    "setting, effect",
    [
        ({"truncation": {**TRUNCATION, "max_length": 5000}}, "cut a long text short, as the trunc"),
        ({"padding": PADDING}, "pad a short text, as the padding"),
    ],
    ids=["truncation", "padding"],
)
@pytest.mark.parametrize("with_model", [True, False])
def test_truncation_and_padding_are_found(copy, setting, effect, with_model, capsys):
    """The limit is longer than the window, so that only a text longer than both shows it."""
    change(copy, JSON, **setting)
    if not with_model:
        (copy / MODEL).unlink()
    assert main(["prove", str(copy)]) == 1
    text = capsys.readouterr().out
    assert "TOKEN IDS DIFFER" in text
    assert effect in text


def test_a_policy_that_was_flipped_is_found(copy, tmp_path):
    change(copy, CONFIG, add_bos_token=False)
    for against in (None, model()):
        with pytest.raises(ValueError, match="add_bos_token false, but the post_processor"):
            prove(copy, against=against)
    # Flipped in every file: consistent, and not the policy of the model.
    for name, data in tokenizer().with_bos(False).export_files(LENGTH).items():
        (copy / name).write_bytes(data)
    assert prove(copy)["equal"]
    proof = prove(copy, against=model())
    assert not proof["equal"]
    assert "TOKEN IDS DIFFER" in describe(proof)


def test_a_stale_model_next_to_a_larger_json_is_found(copy, capsys):
    (copy / MODEL).write_bytes(other_tokenizer(400)[MODEL])
    assert main(["prove", str(copy)]) == 2
    assert "tokenizer.model and tokenizer.json are different tokenizers" in capsys.readouterr().err


def test_a_second_bos_is_found(copy, capsys):
    processor = json.loads((copy / JSON).read_text())["post_processor"]
    processor["single"] = [processor["single"][0], *processor["single"]]
    change(copy, JSON, post_processor=processor)
    assert main(["prove", str(copy)]) == 2
    assert "begins every text with <s> <s>" in capsys.readouterr().err


@pytest.mark.usefixtures("readers")
@pytest.mark.parametrize(
    "name, keys, found",
    [
        (CONFIG, {"eos_token": "<unk>"}, "BOS OR EOS IS ANOTHER TOKEN"),
        ("chat_template.jinja", {}, "CHAT DIFFERS"),
        (JSON, {"normalizer": None}, "TOKEN IDS DIFFER"),
    ],
)
def test_other_settings_that_were_lost_are_found(copy, name, keys, found):
    files = {path.name: path.read_bytes() for path in copy.iterdir() if path.suffix != ".json"}
    files |= {n: (copy / n).read_bytes() for n in (JSON, CONFIG)}
    source = {n: files[n] for n in (JSON, CONFIG, MODEL, "chat_template.jinja")}
    (copy / MODEL).unlink()
    if keys:
        change(copy, name, **keys)
    else:
        (copy / name).write_text("{{ messages[0].content }}")
    proof = prove(copy, against=model(source))
    assert not proof["equal"]
    assert found in describe(proof)


@pytest.mark.parametrize("to", ["meta", "gguf"])
def test_every_format_begins_a_text_by_the_policy_of_the_model(tmp_path, to):
    pytest.importorskip("gguf")
    lm = model(tokenizer().with_bos(False).files)
    out = tmp_path / ("m.gguf" if to == "gguf" else "m")
    if to == "meta":
        with pytest.raises(ValueError, match="code begins every text with BOS"):
            export(lm, out, to=to, dtype="float32")
        return
    export(lm, out, to=to, dtype="float32")
    assert prove(out, against=lm)["equal"]
    assert not prove(out, against=model())["equal"]


@pytest.mark.parametrize("to", ["meta", "gguf"])
def test_the_space_that_legacy_decides_about_is_said_where_a_format_cannot_keep_it(tmp_path, to):
    """Such a model is written all the same: only texts that begin with a space differ."""
    pytest.importorskip("gguf")
    settings = {"legacy": False, "bos_token": "<s>", "eos_token": "</s>"}
    files = {MODEL: tokenizer().files[MODEL], CONFIG: json.dumps(settings).encode()}
    lm = model(files)
    out = export(lm, tmp_path / ("m.gguf" if to == "gguf" else "m"), to=to, dtype="float32")
    proof = prove(out, against=lm)
    assert proof["equal"]
    assert "one space more than transformers does" in describe(proof)
    assert "one space more" not in describe(prove(out, against=model()))

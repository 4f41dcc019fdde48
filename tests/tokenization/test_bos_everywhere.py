"""Whether a text begins with BOS: the same in data, training, evaluation, export and chat."""

import dataclasses
import json
from pathlib import Path

import pytest

from ctxext import loading
from ctxext.cli.main import main
from ctxext.evals.base import evaluated_model
from ctxext.export import export
from ctxext.model.lm import LM
from ctxext.rope import Unscaled
from ctxext.tasks.base import bos_prefix
from ctxext.tokenization.tokenizer import CONFIG, JSON, MODEL, Tokenizer, load_tokenizer
from support.hf_files import write_hf
from support.llamas import TINY, random_params, tokenizer


def without_bos() -> Tokenizer:
    """The files of a model such as SmolLM2's or Qwen's: a BOS token that no text begins with."""
    files = tokenizer().with_bos(False).export_files(64)
    return Tokenizer({name: files[name] for name in (JSON, CONFIG)})


def without_any_bos() -> Tokenizer:
    files = without_bos().files
    settings = json.loads(files[CONFIG]) | {"bos_token": None}
    return Tokenizer(files | {CONFIG: json.dumps(settings).encode()})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "m"
    config = dataclasses.replace(TINY, bos_token_id=None)
    write_hf(path, config, random_params(), Unscaled(), without_any_bos(), dtype="float32")
    return path


def generate(source: Path, capsys, *options: str, prompt: str = "def f") -> tuple[dict, str]:
    """(the completion as data, what is said about BOS)."""
    argv = ["generate", str(source), "--prompt", prompt, "--max-new-tokens", "2", "--json"]
    assert main([*argv, *options]) == 0
    captured = capsys.readouterr()
    note = next(line for line in captured.err.splitlines() if "BOS" in line)
    return json.loads(captured.out), note


def test_a_model_without_any_bos_works(base, tmp_path, capsys):
    lm = loading.load(base)
    ids = lm.tokenizer.encode("def f")
    assert bos_prefix(lm.tokenizer) == []
    completion, note = generate(base, capsys)
    assert completion["prompt_tokens"] == len(ids)
    assert note.endswith(
        "without BOS, in training, evaluations and prompts, as the tokenizer has none"
    )
    assert evaluated_model(lm).label == "none, without BOS"
    assert evaluated_model(lm).without_bos == "the tokenizer has none"
    out = export(lm, tmp_path / "out", dtype="float32")
    assert loading.load(out).tokenizer.encode_prompt("def f") == ids
    assert main(["generate", str(base), "--prompt", "a", "--bos"]) == 2
    assert "--bos needs a tokenizer with a BOS" in capsys.readouterr().err


def test_the_command_line_overrules_the_checkpoint(tmp_path, capsys):
    path = tmp_path / "m"
    write_hf(path, TINY, random_params(), Unscaled(), tokenizer(), dtype="float32")
    plain = len(tokenizer().encode("def f"))
    completion, note = generate(path, capsys)
    assert completion["prompt_tokens"] == plain + 1
    assert note == "texts begin with BOS, <s> (id 1)"
    completion, note = generate(path, capsys, "--no-bos")
    assert completion["prompt_tokens"] == plain
    assert note.startswith("texts begin without BOS, in ")
    assert note.endswith(" as the tokenizer adds none; --bos puts one there")
    for options, added in (((), 1), (("--no-bos",), 1)):
        completion, _ = generate(path, capsys, *options, prompt="<s>def f")
        assert completion["prompt_tokens"] == plain + added, "no second BOS"
    for command in ("export", "import"):
        out = tmp_path / command
        assert main([command, str(path), "--out", str(out), "--no-bos"]) == 0
        written = load_tokenizer(out)
        assert not written.adds_bos
        assert json.loads(written.files[CONFIG])["add_bos_token"] is False
    # A proof compares with the checkpoint as it was exported, if that is said.
    against = ["prove", str(tmp_path / "export"), "--against", str(path)]
    assert main(against) == 1
    assert main([*against, "--no-bos"]) == 0
    assert main(["prove", str(tmp_path / "export"), "--no-bos"]) == 2
    assert "name it with --against" in capsys.readouterr().err


def test_files_that_contradict_each_other_are_refused_until_one_decides(tmp_path, capsys):
    path = tmp_path / "m"
    write_hf(path, TINY, random_params(), Unscaled(), tokenizer(), dtype="float32")
    settings = json.loads((path / CONFIG).read_text()) | {"add_bos_token": False}
    (path / CONFIG).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="decide with --bos or --no-bos") as error:
        loading.load(path)
    assert str(path) in str(error.value)
    assert main(["export", str(path), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    for option, adds in (("--bos", True), ("--no-bos", False)):
        completion, _ = generate(path, capsys, option)
        assert completion["prompt_tokens"] == len(tokenizer().encode("def f")) + adds


@pytest.mark.parametrize("choice", [None, True, False])
def test_prepared_tokens_begin_as_the_model_s_texts_do(tmp_path, choice):
    """Data prepared under another BOS policy than the one it is trained with is refused."""
    from ctxext.data import Prepared

    (tmp_path / "a.txt").write_text("def f(x):\n    return x\n" * 20)
    (tmp_path / "tokenizer").mkdir()
    for name, data in without_bos().files.items():
        (tmp_path / "tokenizer" / name).write_bytes(data)
    options = [] if choice is None else ["--bos" if choice else "--no-bos"]
    out = tmp_path / "out"
    argv = ["prepare", str(tmp_path / "a.txt"), "--out", str(out), *options]
    argv += ["--held-out", "0"]
    assert main([*argv, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    chosen = without_bos().with_bos(choice)
    corpus = Prepared(str(out)).open(chosen)
    expected = chosen.encode((tmp_path / "a.txt").read_text(), bos=bool(choice))
    assert corpus.ids.tolist() == [*expected, 2]
    with pytest.raises(ValueError, match="with --bos or --no-bos"):
        Prepared(str(out)).open(chosen.with_bos(not chosen.adds_bos))


def test_two_models_that_differ_in_bos_alone_have_different_records():
    params = random_params()
    one = evaluated_model(LM(TINY, params, tokenizer()))
    other = evaluated_model(LM(TINY, params, tokenizer().with_bos(False)))
    assert one.bos and not other.bos
    assert one != other
    assert MODEL in tokenizer().files

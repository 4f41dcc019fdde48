"""A run is asked in a chat as its training was written, found by the hash in its provenance."""

import json
from pathlib import Path

import pytest

from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.cli.trained_chat import trained_chat
from ctxext.data import Files, Mix, Prepared
from ctxext.serialization import to_json
from ctxext.tokenization.chat import TEMPLATES
from ctxext.tokenization.tokenizer import CONFIG, Tokenizer, load_tokenizer
from support.tiny_train import tiny_experiment

OWN = "{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "a.jsonl"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 99}]
    path.write_text(json.dumps({"messages": talk}) + "\n")
    return path


def written_run(path: Path, source, tokenizer: Tokenizer) -> str:
    """A directory that says of its training what a run says."""
    (path / "base").mkdir(parents=True)
    (path / "base" / "model.json").write_text("{}")
    (path / "config.json").write_text(json.dumps(to_json(tiny_experiment(source))))
    provenance = {"versions": {}, "data": source.open(tokenizer).provenance()}
    (path / "provenance.json").write_text(json.dumps(provenance))
    return str(path)


def test_the_template_of_the_training_is_used(chats, tmp_path):
    plain = load_tokenizer(TINY_LLAMA)
    own = Tokenizer({**plain.files, CONFIG: json.dumps({"chat_template": OWN}).encode()})
    file = tmp_path / "mine.jinja"
    file.write_text(f"in a file {OWN}")

    def found(name: str, source, tokenizer: Tokenizer = own) -> tuple[str, str] | None:
        chat = trained_chat(written_run(tmp_path / name, source, tokenizer), tokenizer)
        return chat and (chat[0].template, chat[1])

    of = {name: Files(str(chats), chat_template=name) for name in ("alpaca", "own", str(file))}
    assert found("a", of["alpaca"]) == (TEMPLATES["alpaca"], "alpaca")
    assert found("b", of["own"]) == (OWN, "own")
    assert found("c", of[str(file)]) == (f"in a file {OWN}", str(file))
    (tmp_path / "plain.txt").write_text("text")
    text = Files(str(tmp_path / "plain.txt"))
    assert found("d", text) is None
    assert found("e", Mix(((1.0, text), (1.0, of["alpaca"])))) == (TEMPLATES["alpaca"], "alpaca")
    assert trained_chat(str(TINY_LLAMA), plain) is None
    with pytest.raises(ValueError, match="was trained with 2 chat templates: choose one with --ch"):
        found("f", Mix(((1.0, of["own"]), (1.0, of["alpaca"]))))
    file.write_text("changed")
    with pytest.raises(
        ValueError, match=r"not here any more \(.*mine.jinja\): give it with --chat"
    ):
        trained_chat(str(tmp_path / "c"), own)
    # Prepared data has a hash of its own.
    argv = ["prepare", str(chats), "--out", str(tmp_path / "out"), "--tokenizer", str(TINY_LLAMA)]
    assert main([*argv, "--chat-template", "vicuna", "--held-out", "0"]) == 0
    prepared = Prepared(str(tmp_path / "out"))
    assert found("g", prepared, plain) == (TEMPLATES["vicuna"], "vicuna")

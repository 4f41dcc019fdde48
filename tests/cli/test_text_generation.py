"""`ctxext generate`: whole characters as they come, stops, chats of several turns, bad input."""

import io
import json
import random
import sys

import jax
import numpy as np
import pytest

from ctxext import loading
from ctxext.cli import text_generation
from ctxext.cli.main import main
from ctxext.cli.text_generation import REPLACEMENT, TextGenerator, decode_stream, stop_ids
from ctxext.methods.linear import Linear
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import init_params
from ctxext.rope import Unscaled
from ctxext.tokenization.chat import chat_of
from ctxext.tokenization.tokenizer import CONFIG, JSON, MODEL, Tokenizer
from support.hf_files import write_hf
from tokenization.test_chat import CHATML, files, model

LETTERS = list("abcde   \n\t.0") + ["é", "日", "本", "🙂", "👩‍🚀", "ß", "नि"]
PLAIN = Tokenizer({MODEL: model()})


@pytest.mark.parametrize(
    "tokenizer", [PLAIN, Tokenizer({JSON: PLAIN.export_files(8)[JSON]})], ids=["spm", "json"]
)
def test_streamed_text_is_the_decoded_text_in_whole_characters(tokenizer):
    """Chunks of any size, joined, are the decoded text after the decoded prompt."""
    rng = random.Random(0)
    for _ in range(200):
        prompt = tokenizer.encode("".join(rng.choices(LETTERS, k=rng.randrange(1, 9))))
        new = tokenizer.encode("".join(rng.choices(LETTERS, k=rng.randrange(1, 30))))[
            rng.randrange(2) :
        ]
        chunks = []
        at = 0
        while at < len(new):
            chunks.append(new[at : (at := at + rng.randrange(1, 5))])
        pieces = list(decode_stream(tokenizer, prompt, chunks))
        assert "".join(pieces) == tokenizer.decode(prompt + new)[len(tokenizer.decode(prompt)) :]
        assert all(pieces)
        assert REPLACEMENT not in "".join(pieces)
    smile = tokenizer.encode("🙂")[1:]
    assert len(smile) == 4, "as bytes"
    assert list(decode_stream(tokenizer, prompt, [[i] for i in smile])) == ["🙂"]
    assert list(decode_stream(tokenizer, prompt, [smile[:3]])) == [], "the rest of it never came"
    broken = "".join(decode_stream(tokenizer, prompt, [smile[:2], tokenizer.encode("a b"), smile]))
    assert broken.endswith("a b🙂") and set(broken[:-4]) <= {REPLACEMENT, " "}, (
        "bytes that are not text stay as they are"
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory):
    """An untrained model with added tokens and a ChatML template; it answers with any ids."""
    config = LlamaConfig(448, 32, 48, 1, 2, 2, 16, 1e-5, 1e4, 64)
    path = tmp_path_factory.mktemp("model") / "hf"
    params = jax.tree.map(
        lambda x: np.asarray(x) * (8 if x.ndim > 1 else 1), init_params(config, 0)
    )
    write_hf(path, config, params, Unscaled(), Tokenizer(files(CHATML)), dtype="float32")
    return path


def output(capsys, *argv) -> str:
    capsys.readouterr()
    assert main(["generate", *map(str, argv)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [[], ["--temperature", 0.9, "--top-p", 0.8, "--seed", 4]], ids=["greedy", "drawn"]
)
def test_text_and_json_are_those_of_lm_generate(directory, capsys, options):
    prompt = "def f(x):\n"
    method = ["--method", "linear", "--factor", 2]
    argv = [directory, "--prompt", prompt, "--max-new-tokens", 30, *method, *options]
    data = json.loads(output(capsys, *argv, "--json"))
    lm = loading.load(directory, method=Linear(2.0))
    ids = lm.tokenizer.encode(prompt, bos=True)
    fields = dict(zip(("temperature", "top_p", "seed"), options[1::2], strict=False))
    new = lm.generate([ids], max_new_tokens=30, **fields, eos_token_id=2)[0].tolist()
    assert data["ids"] == (new[: new.index(2)] if 2 in new else new)
    assert data["prompt_tokens"] == len(ids)
    assert data["stop"] == ("eos" if 2 in new else "length")
    assert data["tokens_per_second"] > 0 < data["seconds"]
    whole = lm.tokenizer.decode(ids + data["ids"])[len(lm.tokenizer.decode(ids)) :]
    assert data["text"] == whole.rstrip(REPLACEMENT)
    assert output(capsys, *argv) == data["text"] + "\n"


def test_every_kind_of_stop_token(directory, tmp_path):
    lm = loading.load(directory)
    assert stop_ids(lm, directory) == [2]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert stop_ids(lm, tmp_path) == [2, 7]
    free = TextGenerator(lm, [], max_new_tokens=20, quiet=True).complete("def f(x):")
    end = free.ids[5]
    at = free.ids.index(end)
    stopped = TextGenerator(lm, [end], max_new_tokens=20, quiet=True).complete("def f(x):")
    assert (stopped.ids, stopped.stop, free.stop) == (
        free.ids[:at],
        "eos",
        "length",
    )
    assert free.text.startswith(stopped.text)
    assert (
        TextGenerator(lm, free.ids[:1], max_new_tokens=20, quiet=True).complete("def f(x):").text
        == ""
    )
    one = TextGenerator(lm, [], max_new_tokens=1, quiet=True).complete("def f(x):")
    assert one.ids == free.ids[:1]
    assert one.tokens_per_second is None


def test_the_prompt_from_a_file_or_a_pipe(directory, tmp_path, capsys, monkeypatch):
    text = "é = 'a'\n\n"
    short = ["--max-new-tokens", 8]
    (tmp_path / "prompt").write_bytes(text.encode())
    expected = output(capsys, directory, "--prompt", text, *short)
    assert output(capsys, directory, "--prompt-file", tmp_path / "prompt", *short) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert output(capsys, directory, "--prompt-file", "-", *short) == expected


def test_a_chat_of_several_turns(directory, capsys, monkeypatch):
    """Every answer depends on the whole conversation so far, through the template."""
    options = ["--chat", "--system", "Be kind.", "--max-new-tokens", 12]
    monkeypatch.setattr(text_generation, "typed_lines", lambda: (line for line in ("one", "two")))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    typed = output(capsys, directory, *options)
    lm = loading.load(directory)
    messages = [{"role": "system", "content": "Be kind."}]
    texts = []
    for question in ("one", "two"):
        messages.append({"role": "user", "content": question})
        ids = chat_of(lm.tokenizer).encode(messages)
        new = lm.generate([ids], max_new_tokens=12, eos_token_id=2)[0].tolist()
        new = new[: new.index(2)] if 2 in new else new
        text = (
            lm.tokenizer.decode(ids + new)[len(lm.tokenizer.decode(ids)) :]
            .lstrip()
            .rstrip(REPLACEMENT)
        )
        messages.append({"role": "assistant", "content": text})
        texts.append(text)
    assert typed == "".join(text + "\n" for text in texts)
    assert texts[0] != texts[1]
    single = json.loads(output(capsys, directory, *options, "--prompt", "one", "--json"))
    assert single["text"] == texts[0]
    assert single["prompt_tokens"] == len(chat_of(lm.tokenizer).encode(messages[:2]))


def test_typed_lines_end_with_the_input(monkeypatch):
    lines = iter(["one", "  ", "two"])

    def line(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", line)
    assert list(text_generation.typed_lines()) == ["one", "two"]


def test_the_note_on_llama_2s_markers_is_printed_once(tmp_path, directory, capsys):
    settings = json.loads((directory / CONFIG).read_text())
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in directory.iterdir():
        (plain / path.name).write_bytes(path.read_bytes())
    (plain / CONFIG).write_text(
        json.dumps({k: v for k, v in settings.items() if k != "chat_template"})
    )
    assert (
        main(["generate", str(plain), "--chat", "--prompt", "a", "--max-new-tokens", "4", "--json"])
        == 0
    )
    out = capsys.readouterr()
    assert out.err.count("Llama 2's [INST] markers") == 1
    assert json.loads(out.out)["prompt_tokens"] > 8


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --prompt TEXT or --prompt-file"),
        (["--chat"], "give --prompt TEXT or --prompt-file"),
        (["--prompt", "a", "--system", "b"], "belong to --chat"),
        (["--prompt-file", "BINARY"], "not UTF-8"),
        (["--prompt-file", "nowhere"], "nowhere"),
        (["--prompt", "a", "--max-new-tokens", "0"], "at least 1"),
        (["--prompt", "a", "--top-p", "2"], "top_p"),
        (["--chat", "--prompt", "a", "--chat-template", "BAD"], "reaches for '__class__'"),
    ],
)
def test_bad_input_is_one_line(directory, tmp_path, capsys, argv, message):
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe")
    (tmp_path / "BAD").write_text("{{ messages.__class__ }}")
    argv = [str(tmp_path / x) if x in ("BINARY", "BAD") else x for x in argv]
    assert main(["generate", str(directory), *argv]) == 2
    out = capsys.readouterr()
    assert message in out.err
    assert len(out.err.splitlines()) == 1
    assert not out.out

"""`ctxext generate`: streaming whole characters, stop tokens, chats of several turns, bad input."""

import dataclasses
import gzip
import io
import json
import random
import sys

import jax
import numpy as np
import pytest

from ctxext import loading
from ctxext.assets import TINY_LLAMA
from ctxext.cli import text_generation
from ctxext.cli.main import main
from ctxext.cli.text_generation import REPLACEMENT, TextGenerator, decode_stream
from ctxext.methods.linear import Linear
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import init_params
from ctxext.model.lm import LM
from ctxext.rope import Unscaled
from ctxext.tokenization.chat import chat_of
from ctxext.tokenization.tokenizer import CONFIG, JSON, MODEL, Tokenizer, load_tokenizer
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
        new = tokenizer.encode("".join(rng.choices(LETTERS, k=rng.randrange(1, 30))))
        new = new[rng.randrange(2) :]
        chunks = []
        at = 0
        while at < len(new):
            size = rng.randrange(1, 5)
            chunks.append(new[at : at + size])
            at += size
        texts = list(decode_stream(tokenizer, prompt, chunks))
        assert "".join(texts) == tokenizer.decode(prompt + new)[len(tokenizer.decode(prompt)) :]
        assert all(texts)
        assert REPLACEMENT not in "".join(texts)
    smile = tokenizer.encode("🙂")[1:]
    assert len(smile) == 4, "one token per byte"
    assert list(decode_stream(tokenizer, prompt, [[i] for i in smile])) == ["🙂"]
    assert list(decode_stream(tokenizer, prompt, [smile[:3]])) == [], "an incomplete character"
    # Bytes that are not text come out as replacement characters.
    broken = "".join(decode_stream(tokenizer, prompt, [smile[:2], tokenizer.encode("a b"), smile]))
    assert broken.endswith("a b🙂")
    assert set(broken[:-4]) <= {REPLACEMENT, " "}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory):
    """An untrained model with added tokens and a ChatML template; it generates arbitrary ids."""
    config = LlamaConfig(448, 32, 48, 1, 2, 2, 16, 1e-5, 1e4, 64)
    path = tmp_path_factory.mktemp("model") / "hf"

    def large(x: jax.Array) -> np.ndarray:
        """Matrices larger than at initialisation, so that the text varies."""
        return np.asarray(x) * (8 if x.ndim > 1 else 1)

    params = jax.tree.map(large, init_params(config, 0))
    write_hf(path, config, params, Unscaled(), Tokenizer(files(CHATML)), dtype="float32")
    return path


def output(capsys, *arguments) -> str:
    """Run `ctxext generate ARGUMENTS`; the text that it prints."""
    capsys.readouterr()
    assert main(["generate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [[], ["--temperature", 0.9, "--top-p", 0.8, "--seed", 4]], ids=["greedy", "sampled"]
)
def test_text_and_json_are_those_of_lm_generate(directory, capsys, options):
    prompt = "def f(x):\n"
    method = ["--method", "linear", "--factor", 2]
    arguments = [directory, "--prompt", prompt, "--max-new-tokens", 30, *method, *options]
    data = json.loads(output(capsys, *arguments, "--json"))
    lm = loading.load(directory, method=Linear(2.0))
    ids = lm.tokenizer.encode(prompt, bos=True)
    fields = dict(zip(("temperature", "top_p", "seed"), options[1::2], strict=False))
    new = lm.generate([ids], max_new_tokens=30, **fields, eos_token_id=2)[0].tolist()
    generated = new[: new.index(2)] if 2 in new else new
    assert data["ids"] == generated
    assert data["prompt_tokens"] == len(ids)
    assert data["stop"] == ("eos" if 2 in new else "length")
    assert data["tokens_per_second"] > 0
    assert data["seconds"] > 0
    decoded_prompt = lm.tokenizer.decode(ids)
    expected = lm.tokenizer.decode(ids + generated)[len(decoded_prompt) :].rstrip(REPLACEMENT)
    assert data["text"] == expected
    assert output(capsys, *arguments) == expected + "\n"


def test_every_kind_of_stop_token(directory, tmp_path):
    lm = loading.load(directory)
    assert lm.stop_ids == (2,)
    settings = {"eos_token_id": [7, 2]}
    assert dataclasses.replace(lm, generation_config=settings).stop_ids == (2, 7)

    def complete(stops: list[int], max_new_tokens: int = 20):
        generator = TextGenerator(lm, stops, max_new_tokens=max_new_tokens, quiet=True)
        return generator.complete("def f(x):")

    free = complete([])
    assert free.stop == "length"
    end = free.ids[5]
    stopped = complete([end])
    assert stopped.ids == free.ids[: free.ids.index(end)]
    assert stopped.stop == "eos"
    assert free.text.startswith(stopped.text)
    assert complete(free.ids[:1]).text == ""
    single = complete([], max_new_tokens=1)
    assert single.ids == free.ids[:1]
    assert single.tokens_per_second is None


def test_speed_leaves_out_the_prefill_and_the_chunk_that_compiles(directory, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(text_generation.time, "perf_counter", lambda: now[0])
    seconds = {1: 30.0, 2: 60.0}  # of the prefill, and of the first chunk with its compilation
    lm = loading.load(directory)

    class Timed:
        def __getattr__(self, name):
            return getattr(lm, name)

        def stream(self, *arguments, **options):
            for i, chunk in enumerate(lm.stream(*arguments, **options), 1):
                now[0] += seconds.get(i, 0.5)
                yield chunk

    generator = TextGenerator(Timed(), [], max_new_tokens=15, quiet=True)  # pyright: ignore
    # One token, then chunks of 4, 4, 4 and 2: ten tokens in one and a half seconds.
    assert generator.complete("def f(x):").tokens_per_second == pytest.approx(10 / 1.5)


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
    monkeypatch.setattr(text_generation, "typed_lines", lambda: iter(["one", "two"]))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    conversation = output(capsys, directory, *options)
    lm = loading.load(directory)
    chat = chat_of(lm.tokenizer)
    messages = [{"role": "system", "content": "Be kind."}]
    answers = []
    for question in ("one", "two"):
        messages.append({"role": "user", "content": question})
        ids = chat.encode(messages)
        new = lm.generate([ids], max_new_tokens=12, eos_token_id=2)[0].tolist()
        new = new[: new.index(2)] if 2 in new else new
        text = lm.tokenizer.decode(ids + new)[len(lm.tokenizer.decode(ids)) :]
        answer = text.lstrip().rstrip(REPLACEMENT)
        messages.append({"role": "assistant", "content": answer})
        answers.append(answer)
    assert conversation == "".join(answer + "\n" for answer in answers)
    assert answers[0] != answers[1]
    single = json.loads(output(capsys, directory, *options, "--prompt", "one", "--json"))
    assert single["text"] == answers[0]
    assert single["prompt_tokens"] == len(chat.encode(messages[:2]))


def test_typed_lines_end_with_the_input(monkeypatch):
    lines = iter(["one", "  ", "two"])

    def line(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", line)
    assert list(text_generation.typed_lines()) == ["one", "two"]


def test_a_chat_without_a_template_is_refused_until_one_is_chosen(tmp_path, directory, capsys):
    """Another model's format would read like a bad model."""
    settings = json.loads((directory / CONFIG).read_text())
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in directory.iterdir():
        (plain / path.name).write_bytes(path.read_bytes())
    settings.pop("chat_template", None)
    (plain / CONFIG).write_text(json.dumps(settings))
    options = ["--chat", "--prompt", "a", "--max-new-tokens", "4", "--json"]
    assert main(["generate", str(plain), *options]) == 2
    out = capsys.readouterr()
    assert "the checkpoint has no chat template; give one with --chat-template FILE" in out.err
    assert not out.out
    assert main(["generate", str(plain), *options, "--chat-template", "llama2"]) == 0
    expected = chat_of(load_tokenizer(plain), "llama2").encode([{"role": "user", "content": "a"}])
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == len(expected)


@pytest.fixture
def no_reading(monkeypatch):
    """A model writes one token without reading the prompt."""
    monkeypatch.setattr(LM, "stream", lambda self, prompt, **options: iter([[5]]))


@pytest.mark.usefixtures("no_reading")
def test_a_prompt_longer_than_the_context_is_one_line(tmp_path, capsys):
    tokenizer = load_tokenizer(TINY_LLAMA)  # its window is 256 tokens
    (tmp_path / "long.txt").write_text("word " * 250)
    size = len(tokenizer.encode("word " * 250, bos=True))
    assert 512 < size < 1024

    def notes(*options: str) -> list[str]:
        argv = ["generate", "tiny-llama", "--prompt-file", str(tmp_path / "long.txt")]
        assert main([*argv, "--max-new-tokens", "2", *options]) == 0
        lines = capsys.readouterr().err.splitlines()
        return [line for line in lines if "the prompt has" in line]

    factor = -(-size // 256)
    start = f"ctxext: the prompt has {size:,} tokens, and the context of the model is"
    end = f"extend the context, as with --method yarn --factor {factor}"
    (note,) = notes()
    assert note.startswith(f"{start} 256: what follows is unreliable")
    assert note.endswith(end)
    (note,) = notes("--method", "yarn", "--factor", "2")
    assert note.startswith(f"{start} 512: ")
    assert notes("--method", "yarn", "--factor", str(factor)) == []
    assert notes("--method", "dynamic-ntk", "--factor", "2") == []  # it follows the length

    lm = loading.load(TINY_LLAMA)
    for new, expected in ((156, ""), (157, "the prompt and 157 new tokens are 257, and the con")):
        TextGenerator(lm, (), max_new_tokens=new)._say_if_too_long(100)
        assert capsys.readouterr().err.removeprefix("ctxext: ").startswith(expected)


@pytest.mark.usefixtures("no_reading")
def test_special_tokens_of_a_prompt_are_text_unless_asked_for(capsys):
    def prompt_tokens(prompt: str, *options: str) -> int:
        argv = ["generate", "tiny-llama", "--prompt", prompt, "--max-new-tokens", "2", "--json"]
        assert main([*argv, *options]) == 0
        captured = capsys.readouterr()
        note = "ctxext: </s> in the prompt is text; --parse-special makes it the token\n"
        assert (note in captured.err) is ("--parse-special" not in options)
        note = (
            "ctxext: the prompt begins with <s>, taken for the token BOS; no second one is added\n"
        )
        assert captured.err.count(note) == prompt.startswith("<s>")
        return json.loads(captured.out)["prompt_tokens"]

    tokenizer = load_tokenizer(TINY_LLAMA)
    prompt = "the end</s>of it"
    as_text = len(tokenizer.encode(prompt, bos=True))
    as_tokens = len(tokenizer.encode(prompt, bos=True, special=True))
    assert as_tokens < as_text
    assert prompt_tokens(prompt) == as_text
    assert prompt_tokens(prompt, "--parse-special") == as_tokens
    # A prompt that begins with BOS does not get a second one.
    assert prompt_tokens(f"<s>{prompt}", "--parse-special") == as_tokens
    assert prompt_tokens(f"<s>{prompt}") == as_text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --prompt TEXT or --prompt-file"),
        (["--chat"], "give --prompt TEXT or --prompt-file"),
        (["--prompt", "a", "--system", "b"], "belong to --chat"),
        (["--prompt-file", "BINARY"], "BINARY: UTF-16 or UTF-32, not UTF-8: convert it"),
        (["--prompt-file", "LATIN"], "LATIN: not UTF-8 (byte 3)"),
        (["--prompt-file", "ZERO"], "ZERO: not text: it holds a zero byte (byte 1)"),
        (["--prompt-file", "a.gz"], "--prompt-file reads plain text in UTF-8: decompress it first"),
        (["--prompt-file", "nowhere"], "--prompt-file nowhere cannot be read (No such file"),
        (["--prompt-file", "."], "--prompt-file . cannot be read (Is a directory)"),
        (["--prompt", "caf\udce9"], "the prompt is not UTF-8 text (character 3)"),
        (["--chat", "--prompt", "a", "--system", "\udce9"], "--system is not UTF-8 text"),
        (
            ["--chat", "--prompt", "a", "--chat-template", "nowhere"],
            "--chat-template nowhere cannot",
        ),
        (["--chat", "--prompt", "a", "--chat-template", "LATIN"], "LATIN: not UTF-8"),
        (["--prompt", "a", "--max-new-tokens", "0"], "at least 1"),
        (["--prompt", "a", "--top-p", "2"], "top_p"),
        (["--prompt", "a", "--top-p", "0.9"], "give --temperature above 0 too"),
        (["--chat", "--prompt", "a", "--chat-template", "BAD"], "reaches for '__class__'"),
    ],
)
def test_bad_input_is_one_line(directory, tmp_path, capsys, argv, message):
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe")
    (tmp_path / "BAD").write_text("{{ messages.__class__ }}")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"a"))
    (tmp_path / "LATIN").write_bytes(b"caf\xe9")
    (tmp_path / "ZERO").write_bytes(b"a\0b\0")
    argv = [str(tmp_path / word) if (tmp_path / word).is_file() else word for word in argv]
    assert main(["generate", str(directory), *argv]) == 2
    out = capsys.readouterr()
    assert message in out.err
    assert len(out.err.splitlines()) == 1
    assert not out.out

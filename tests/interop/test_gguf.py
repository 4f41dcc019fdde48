"""GGUF, read back with llama.cpp's own Python package.

The tests implement the format's rules a second time, from its documentation.
"""

import dataclasses
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from ctxext.cli.main import main
from ctxext.files import written_alone
from ctxext.interop import gguf
from ctxext.interop.gguf_container import quantized_types
from ctxext.interop.hf_weights import StoredModel, WriteOptions, lazy_tensors, slots
from ctxext.interop.lazy_tensor import numpy_dtype
from ctxext.methods import (
    ABF,
    NTK,
    DynamicNTK,
    DynamicYarn,
    Linear,
    Llama3,
    LongRope,
    NTKByParts,
    PRope,
    RevisedYarn,
    Yarn,
)
from ctxext.rope import RopeScaling, Unscaled
from ctxext.tokenization.sentencepiece_pieces import read_pieces
from ctxext.tokenization.tokenizer import MODEL, Tokenizer
from support.hf_files import stored_model
from support.llamas import LENGTH, TINY, random_params, tokenizer

library = pytest.importorskip("gguf", reason="needs the extra gguf")
CONFIG = dataclasses.replace(TINY, num_key_value_heads=2)
PLAIN = Unscaled()
TOKENIZER = tokenizer()
HM = {"content": "hm", "special": False, "normalized": False}


def save(
    path: Path,
    config=CONFIG,
    scaling: RopeScaling = PLAIN,
    dtype="float32",
    *,
    seq_len: int | None = None,
    tokenizer: Tokenizer = TOKENIZER,
) -> Path:
    params = random_params(config)
    model = stored_model(config, params, scaling, tokenizer, seq_len=seq_len)
    gguf.write(path, model, WriteOptions(dtype))
    return path


def read(path: Path) -> tuple[dict, dict]:
    """(keys, float32 tensors with numpy's order of dimensions) by llama.cpp's package."""
    reader = library.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        t.name: library.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        for t in reader.tensors
    }
    return keys, tensors


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of HF's order (halves of a head) in GGUF's (neighbouring pairs)."""
    out = np.empty_like(rows)
    d = len(rows) // heads
    for head in range(heads):
        for pair in range(d // 2):
            out[head * d + 2 * pair] = rows[head * d + pair]
            out[head * d + 2 * pair + 1] = rows[head * d + d // 2 + pair]
    return out


NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


TOP_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def expected(config) -> dict[str, np.ndarray]:
    """The tensors of `random_params` with the names and the row order of GGUF."""
    rotary_heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for name, slot in slots(random_params(config)).items():
        *prefix, part, _ = name.split(".")
        heads = rotary_heads.get(part)
        new = TOP_NAMES[part] if part in TOP_NAMES else f"blk.{prefix[2]}.{NAMES[part]}"
        tensors[f"{new}.weight"] = interleaved(slot.get(), heads) if heads else slot.get()
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_tensors_equal_the_model(tmp_path, tied, dtype):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    path = save(tmp_path / "m.gguf", config, dtype=dtype)
    kinds = {t.name: t.tensor_type.name for t in library.GGUFReader(path).tensors}
    stored = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]
    assert quantized_types(path) == (stored if dtype == "q8_0" else "")
    keys, tensors = read(path)
    model_tensors = expected(config)
    assert tensors.keys() == model_tensors.keys()
    assert ("output.weight" in tensors) != tied
    for name, array in model_tensors.items():
        assert tensors[name].shape == array.shape
        assert kinds[name] == ("F32" if array.ndim == 1 else stored)
        if array.ndim == 1:
            np.testing.assert_array_equal(tensors[name], array)
        elif dtype != "q8_0":
            np.testing.assert_array_equal(
                tensors[name], array.astype(numpy_dtype(dtype)).astype(np.float32)
            )
        else:
            # Half a step, a 127th of the largest of 32 values, which is stored in float16.
            largest = np.abs(array.reshape(-1, 32)).max(1, keepdims=True)
            error = np.abs(tensors[name] - array).reshape(-1, 32)
            assert (error <= largest / 254 + largest * 2.0**-11 + 1e-7).all()
            assert error.max() > 0
    assert keys["general.architecture"] == "llama"
    file_type = "ALL_F32" if dtype == "float32" else f"MOSTLY_{stored}"
    assert keys["general.file_type"] == library.LlamaFileType[file_type]


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_weights_shape_and_token_ids(tmp_path, tied):
    import torch
    import transformers

    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    save(tmp_path / "m.gguf", config)
    options = {"gguf_file": "m.gguf"}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, **options
    )
    state = model.state_dict()
    for name, slot in slots(random_params(config)).items():
        np.testing.assert_array_equal(state[name].numpy(), slot.get(), name)
    for key in (
        "vocab_size",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
    ):
        assert getattr(model.config, key) == getattr(config, key)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, **options)
    for text in ("Hello  world", "def f(x):\n\treturn x", "naïve 日本語"):
        assert theirs(text)["input_ids"] == tokenizer().encode(text, bos=True)


def test_keys_describe_the_shape_of_the_model(tmp_path):
    keys, _ = read(save(tmp_path / "m.gguf", scaling=Yarn(4.0)))
    shape = {
        "llama.vocab_size": 420,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.context_length": LENGTH,
        "general.name": "m",
        "general.description": "frequencies: yarn(factor=4)",
    }
    assert keys | shape == keys
    assert keys["llama.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)


def frequencies(keys: dict, tensors: dict) -> tuple[np.ndarray, float]:
    """(radians per token, factor on cos and sin) as llama.cpp computes them without flags."""
    d = keys["llama.rope.dimension_count"]
    base = keys["llama.rope.freq_base"]
    f = base ** (-np.arange(0, d, 2) / d)
    if "rope_freqs.weight" in tensors:
        f = f / tensors["rope_freqs.weight"]
    m = keys.get("llama.rope.scaling.attn_factor", 1.0)
    kind = keys.get("llama.rope.scaling.type")
    if kind is None:
        return f, m
    scale = keys["llama.rope.scaling.factor"]
    L = keys["llama.rope.scaling.original_context_length"]
    if kind == "linear":
        return f / scale, m
    assert kind == "yarn"

    def pair(beta: int) -> float:
        return d * math.log(L / (beta * 2 * math.pi)) / (2 * math.log(base))

    start = max(0, math.floor(pair(32)))
    end = min(d - 1, math.ceil(pair(1)))
    kept = 1 - np.clip((np.arange(d // 2) - start) / max(0.001, end - start), 0, 1)
    return f / scale * (1 - kept) + f * kept, m * (1 + 0.1 * math.log(scale))


NATIVE = [Unscaled(), Linear(4.0), Yarn(4.0), NTK(4.0), ABF(5e5)]
AS_DIVISORS = [
    NTKByParts(4.0),
    Yarn(4.0, 16.0, 2.0),
    Yarn(4.0, attention_factor=1.0),
    Yarn(4.0, truncate=False),
    Llama3(4.0, 1.0, 4.0),
    RevisedYarn(4.0),
    PRope(1.0, 0.5),
]


@pytest.mark.parametrize("scaling", [*NATIVE, *AS_DIVISORS], ids=str)
def test_llama_cpp_reads_the_frequencies_without_flags(tmp_path, scaling):
    keys, tensors = read(save(tmp_path / "m.gguf", scaling=scaling, seq_len=LENGTH))
    f, m = frequencies(keys, tensors)
    rope = scaling.rope(CONFIG.rope_base(), LENGTH)
    np.testing.assert_allclose(f, rope.inv_freq, rtol=1e-6, atol=1e-12)
    assert m == pytest.approx(rope.attention_factor, rel=1e-6)
    assert ("rope_freqs.weight" in tensors) == (scaling in AS_DIVISORS)
    assert keys["llama.context_length"] == LENGTH
    # llama.cpp's programs override the betas of a file.
    assert not any("beta" in key for key in keys)
    if scaling in AS_DIVISORS:
        assert "llama.rope.scaling.type" not in keys
        assert tensors["rope_freqs.weight"].dtype == np.float32


@pytest.mark.parametrize(
    "scaling", [DynamicNTK(4.0), DynamicYarn(4.0), LongRope(4.0, (1.0,) * 8, (4.0,) * 8)], ids=str
)
def test_scalings_that_depend_on_the_length_are_refused_with_the_reason(tmp_path, scaling):
    with pytest.raises(
        ValueError,
        match="changes its frequencies with the length of the text, which GGUF cannot represent",
    ):
        save(tmp_path / "m.gguf", scaling=scaling)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({"attention_bias": True}, {}, "biases are not written"),
        ({"hidden_act": "gelu"}, {}, "llama.cpp computes silu, not gelu"),
        (
            {"eos_token_id": (2, 5, 6, 7)},
            {},
            "keys for three ends of an answer",
        ),
        ({"vocab_size": 400}, {}, "the tokenizer has 420 ids"),
        (
            {"intermediate_size": 72},
            {"dtype": "q8_0"},
            "q8_0 needs widths that are multiples of 32",
        ),
        (
            {},
            {"dtype": "q4_0"},
            "dtype 'q4_0' is not known; choose one of float32, float16, bfloat16, q8_0",
        ),
    ],
)
def test_models_that_gguf_cannot_represent_are_refused(tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "m.gguf", dataclasses.replace(CONFIG, **changes), **options)
    assert not any(tmp_path.iterdir())


def test_scales_that_q8_0_cannot_hold_are_refused(tmp_path):
    params = random_params(CONFIG)
    params["embed_tokens"]["embedding"][3, 3] = 1e7
    with pytest.raises(ValueError, match="model.embed_tokens.weight overflows float16"):
        gguf.write(
            tmp_path / "m.gguf",
            stored_model(CONFIG, params, PLAIN, TOKENIZER),
            WriteOptions("q8_0"),
        )
    assert not any(tmp_path.iterdir())


def test_names_of_files(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="one file; give it a name such as m.gguf"):
        save(tmp_path / "m")
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(ValueError, match="m.gguf already exists"):
        save(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"pip install 'ctxext\[gguf\]'"):
        save(tmp_path / "n.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_an_interrupted_export_leaves_nothing(tmp_path):
    tensors = lazy_tensors(CONFIG, random_params(CONFIG))

    def broken(*_):
        raise OSError(28, "No space left on device")

    tensors["model.norm.weight"] = tensors["model.norm.weight"]._replace(read=broken)
    model = StoredModel(CONFIG, PLAIN, 64, tensors, TOKENIZER)
    with pytest.raises(OSError, match="No space left"):
        gguf.write(tmp_path / "m.gguf", model, WriteOptions("float32"))
    assert not any(tmp_path.iterdir())


def test_two_exports_to_one_file_do_not_do_the_work_twice(tmp_path):
    model = StoredModel(CONFIG, PLAIN, 64, lazy_tensors(CONFIG, random_params(CONFIG)), TOKENIZER)
    out = tmp_path / "m.gguf"
    with written_alone(out):
        with pytest.raises(ValueError, match="m.gguf is being written by process .*; wait for it"):
            gguf.write(out, model, WriteOptions("float32"))
    assert not any(tmp_path.iterdir())


def test_vocabulary_equals_sentencepiece(tmp_path):
    model = tokenizer().files[MODEL]
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    normal, unknown, control, user_defined, unused, byte = range(1, 7)
    settings = {
        "chat_template": "{{ messages }}",
        "additional_special_tokens": ["<|im_start|>"],
        "add_eos_token": True,
        "added_tokens_decoder": {"421": HM},
    }
    files = {
        MODEL: model,
        "added_tokens.json": b'{"<|im_start|>": 420}',
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
    config = dataclasses.replace(CONFIG, vocab_size=424)
    keys, _ = read(save(tmp_path / "m.gguf", config, tokenizer=Tokenizer(files)))
    texts, scores, kinds = (
        keys[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")
    )
    assert len(texts) == len(scores) == len(kinds) == 424
    for i in range(420):
        kind = normal
        if processor.is_unknown(i):
            kind = unknown
        elif processor.is_control(i):
            kind = control
        elif processor.is_unused(i):
            kind = unused
        elif processor.is_byte(i):
            kind = byte
        assert texts[i] == processor.id_to_piece(i)
        assert scores[i] == np.float32(processor.get_score(i))
        assert kinds[i] == kind
    assert texts[420:] == ["<|im_start|>", "hm", "[PAD422]", "[PAD423]"]
    assert kinds[420:] == [control, user_defined, unused, unused]
    settings = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert keys | settings == keys


def test_kinds_of_user_defined_and_control_symbols():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=60,
        user_defined_symbols=["<a>"],
        control_symbols=["<c>"],
        minloglevel=2,
    )
    kinds = {text: kind for text, _, kind in read_pieces(model.getvalue())}
    assert len(kinds) == 60
    expected = {"<unk>": 2, "<s>": 3, "<c>": 3, "<a>": 4, "q": 1}
    assert {text: kinds[text] for text in expected} == expected


@pytest.mark.parametrize(
    "token, settings",
    [
        (HM | {"normalized": True}, {}),
        ({"content": "hm", "special": False}, {}),  # normalized by default
        (HM | {"rstrip": True}, {}),
        (HM | {"lstrip": True}, {}),
        (HM | {"single_word": True}, {}),
        (HM, {"legacy": False}),
    ],
)
def test_added_tokens_that_llama_cpp_finds_elsewhere_are_refused(tmp_path, token, settings):
    """It cuts a text at the token as it is spelled, and puts a space before what follows."""
    config = dataclasses.replace(TINY, vocab_size=421)
    params = random_params(config)

    def model(entry, others):
        data = {"added_tokens_decoder": {"420": entry}} | others
        files = {
            MODEL: tokenizer().files[MODEL],
            "tokenizer_config.json": json.dumps(data).encode(),
        }
        return stored_model(config, params, Unscaled(), Tokenizer(files))

    path = tmp_path / "m.gguf"
    with pytest.raises(ValueError, match="the added token 'hm' .*export with --to hf"):
        gguf.write(path, model(token, settings), WriteOptions("float32"))
    assert not path.exists()
    gguf.write(path, model(HM, {}), WriteOptions("float32"))
    keys, _ = read(path)
    assert (keys["tokenizer.ggml.tokens"][420], keys["tokenizer.ggml.token_type"][420]) == ("hm", 4)


def test_the_command_line(tmp_path, capsys):
    out = tmp_path / "tiny-f16.gguf"
    argv = "export tiny-llama --method linear --factor 2 --to gguf --dtype f16".split()
    assert main([*argv, "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(
        f"wrote {out}; check it with: ctxext prove {out} --against tiny-llama "
    )
    keys, _ = read(out)
    assert keys["llama.rope.scaling.type"] == "linear"
    assert keys["general.file_type"] == 1
    assert main([*argv, "--shards", "2", "--out", str(tmp_path / "x.gguf")]) == 2
    assert "--shards needs --to meta" in capsys.readouterr().err

"""Meta's format: bit-exact in both directions, and read by torch and transformers' converter."""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from ctxext import loading
from ctxext.cli.main import main
from ctxext.export import convert
from ctxext.interop import meta, pth, pth_writer
from ctxext.interop.hf_weights import StoredModel, WriteOptions, lazy_tensors, slots
from ctxext.interop.lazy_tensor import STORAGE_DTYPES
from ctxext.interop.meta_layout import meta_name, shard_shape, to_halves, to_interleaved
from ctxext.interop.meta_rope import read_rope
from ctxext.methods import (
    ABF,
    NTK,
    DynamicNTK,
    Linear,
    Llama3,
    LongRope,
    NTKByParts,
    RevisedYarn,
    Yarn,
)
from ctxext.model.config import SHAPES
from ctxext.model.decoder import param_shapes
from ctxext.prove.reference.meta import MetaReference
from ctxext.rope import RopeBase, RopeScaling, Unscaled, rotate
from support.hf_files import stored_model
from support.llamas import LENGTH, TINY, WINDOW, random_params, tokenizer

BASE = dataclasses.replace(TINY, initializer_range=0.02, vocab_size=424)
SHARDS = {
    # Grouped queries.
    1: BASE,
    2: BASE,
    8: dataclasses.replace(BASE, hidden_size=256, num_attention_heads=16, num_key_value_heads=8),
}


def save(
    directory: Path,
    config=BASE,
    scaling: RopeScaling = Unscaled(),
    dtype="float32",
    params=None,
    *,
    seq_len: int | None = None,
    shards: int | None = None,
) -> Path:
    params = random_params(config, dtype=STORAGE_DTYPES[dtype]) if params is None else params
    model = stored_model(config, params, scaling, tokenizer(), seq_len=seq_len)
    meta.write(directory, model, WriteOptions(dtype, shards=shards))
    return directory


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
@pytest.mark.parametrize("shards", SHARDS)
def test_hf_to_meta_to_hf_is_bit_exact(tmp_path, shards, dtype):
    config = SHARDS[shards]
    params = random_params(config, dtype=STORAGE_DTYPES[dtype])
    out = save(tmp_path / "m", config, Yarn(4.0), dtype, params, shards=shards)
    files = sorted(path.name for path in out.glob("*.pth"))
    assert files == [f"consolidated.{i:02d}.pth" for i in range(shards)]
    stored = meta.read(out)
    assert (stored.config, stored.scaling, stored.window) == (config, Yarn(4.0), LENGTH)
    for name, slot in slots(params).items():
        assert stored.tensors[name].dtype == dtype
        np.testing.assert_array_equal(stored.tensors[name].read(), slot.get(), name)
    meta.write(tmp_path / "again", stored, WriteOptions(dtype, shards=shards))
    for path in out.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("shards", SHARDS)
def test_any_slice_equals_that_of_the_whole(tmp_path, shards):
    stored = meta.read(save(tmp_path / "m", SHARDS[shards], shards=shards))
    rng = np.random.default_rng(0)
    for name, entry in stored.tensors.items():
        whole = entry.read()
        for _ in range(5):
            index = tuple(
                slice(*sorted(rng.choice(size + 1, 2, replace=False).tolist()))
                for size in entry.shape
            )
            np.testing.assert_array_equal(entry.read(index), whole[index], name)


def test_torch_reads_the_shards_and_they_hold_what_metas_code_expects(tmp_path):
    config, params = SHARDS[8], random_params(SHARDS[8])
    out = save(tmp_path / "m", config, params=params, shards=2)
    loaded = [torch.load(out / f"consolidated.0{i}.pth", weights_only=True) for i in range(2)]

    def joined(name: str, dim: int) -> np.ndarray:
        return torch.cat(
            [shard[f"layers.1.attention.{name}.weight"] for shard in loaded], dim
        ).numpy()

    own = slots(params)
    for new, old, dim in (("wv", "v_proj", 0), ("wo", "o_proj", 1)):
        expected = own[f"model.layers.1.self_attn.{old}.weight"].get()
        np.testing.assert_array_equal(joined(new, dim), expected)
    for shard in loaded:
        np.testing.assert_array_equal(shard["norm.weight"].numpy(), params["norm"]["weight"])
    # Meta rotates neighbouring rows, as complex numbers; its attention scores equal ours.
    rng = np.random.default_rng(0)
    d = config.head_dim
    x = rng.standard_normal((1, 7, config.hidden_size)).astype(np.float32)
    rotation = np.exp(1j * np.outer(np.arange(7), config.rope_base().inv_freq))[:, None]
    cos = jnp.asarray(rotation.real[None, :, 0], jnp.float32)
    sin = jnp.asarray(rotation.imag[None, :, 0], jnp.float32)
    ours = []
    theirs = []
    for new, old, heads in (("wq", "q_proj", 16), ("wk", "k_proj", 8)):
        w = joined(new, 0).astype(np.float64)
        y = (x @ w.T).reshape(7, heads, d)
        theirs.append((y[..., 0::2] + 1j * y[..., 1::2]) * rotation)
        kernel = params["segments"]["0"]["self_attn"][old]["kernel"][1]
        ours.append(rotate(jnp.asarray(x @ kernel).reshape(1, 7, heads, d), cos, sin)[0])
    q, k = theirs
    expected = np.einsum("tnp,snp->nts", q, np.repeat(k, 2, 1).conj()).real
    scores = np.einsum("tnh,snh->nts", ours[0], np.repeat(ours[1], 2, 1))
    np.testing.assert_allclose(scores, expected, atol=1e-4 * np.abs(expected).max())


# SHA-256 of the 21 tensors that transformers' own converter (convert_llama_weights_to_hf.py of
# 4.44.2, run under 4.57.6 with torch 2.13.0) wrote from the two directories below. They did not
# depend on the number of shards.
CONVERTED = "9cc3f3c23dbe5ab669cc3380365e513e87c074eaab6809fa85531f0f627459ce"
SHARD_HASHES = {
    1: "5ab9f614227d349b503940f3aa4a36d5ccf56af375adbe70a08eed65e8a564ad",
    2: "c58091ee26046bdfa6f4e730134bb48b59366b24592e8ab93317b5e7b8d16593",
}


def digest(arrays: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()


@pytest.mark.parametrize("shards", SHARD_HASHES)
def test_the_recorded_input_and_output_of_transformers_converter(tmp_path, shards):
    out = save(tmp_path / "m", TINY, dtype="bfloat16", shards=shards)
    arrays = {}
    for path in sorted(out.glob("*.pth")):
        state = torch.load(path, weights_only=True)
        arrays |= {
            f"{path.name}/{name}": tensor.view(torch.int16).numpy()
            for name, tensor in state.items()
        }
    assert digest(arrays) == SHARD_HASHES[shards]
    own = slots(random_params(TINY, dtype=STORAGE_DTYPES["bfloat16"]))
    assert digest({name: slot.get() for name, slot in own.items()}) == CONVERTED


@pytest.mark.check
@pytest.mark.skipif(
    "LLAMA_CONVERTER" not in os.environ,
    reason="LLAMA_CONVERTER='PYTHON SCRIPT': a Python with "
    "transformers 4.57.6 and convert_llama_weights_to_hf.py of the 4.44.2 wheel",
)
@pytest.mark.parametrize("shards", SHARD_HASHES)
def test_transformers_converter(tmp_path, shards):
    out = save(tmp_path / "m", TINY, dtype="bfloat16", shards=shards)
    options = (
        f"--input_dir {out} --output_dir {tmp_path / 'hf'} --num_shards {shards} --llama_version 2"
    )
    subprocess.run(
        [*os.environ["LLAMA_CONVERTER"].split(), *options.split()], check=True, capture_output=True
    )
    assert digest(load_file(tmp_path / "hf" / "model.safetensors")) == CONVERTED


def test_rows_of_one_head_by_hand():
    # Two heads of six.
    rows = np.arange(12)[:, None]
    np.testing.assert_array_equal(
        to_interleaved(rows, 2)[:, 0], [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    )
    np.testing.assert_array_equal(to_halves(to_interleaved(rows, 2), 2), rows)


def shard_shapes(config, shards: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in one shard, by Meta's name."""
    shapes = {}
    for name, slot in slots(param_shapes(config)).items():
        new, dim = meta_name(name)
        shapes[new] = shard_shape(slot.shape, dim, shards)
    return shapes


@pytest.mark.parametrize(
    "shape, shards, parameters",
    [
        ("llama2-7b", 1, 6738415616),
        ("llama2-13b", 2, 13015864320),
        ("llama1-65b", 8, 65285660672),
        ("llama2-70b", 8, 68976648192),
        ("codellama-34b", 4, 33743970304),
    ],
)
def test_layout_of_published_models(shape, shards, parameters):
    """The names and shapes in every shard, for real shapes; nothing is allocated."""
    config = SHAPES[shape]
    assert meta.count_shards(config) == shards
    shapes = shard_shapes(config, shards)
    D = config.hidden_size
    F = config.intermediate_size
    kv = config.num_key_value_heads * config.head_dim
    last = f"layers.{config.num_hidden_layers - 1}"
    assert len(shapes) == 9 * config.num_hidden_layers + 3
    assert shapes["tok_embeddings.weight"] == (config.vocab_size, D // shards)
    assert shapes["output.weight"] == (config.vocab_size // shards, D)
    assert shapes["norm.weight"] == (D,)
    assert shapes["layers.3.ffn_norm.weight"] == (D,)
    assert shapes[f"{last}.attention.wq.weight"] == (D // shards, D)
    assert shapes[f"{last}.attention.wk.weight"] == (kv // shards, D)
    assert shapes[f"{last}.attention.wv.weight"] == (kv // shards, D)
    assert shapes[f"{last}.attention.wo.weight"] == (D, D // shards)
    assert shapes[f"{last}.feed_forward.w1.weight"] == (F // shards, D)
    assert shapes[f"{last}.feed_forward.w2.weight"] == (D, F // shards)
    assert shapes[f"{last}.feed_forward.w3.weight"] == (F // shards, D)
    copies = (2 * config.num_hidden_layers + 1) * D * (shards - 1)
    assert shards * sum(map(math.prod, shapes.values())) == parameters + copies


def test_byte_ranges_in_a_shard_of_70b(tmp_path):
    """A sparse file as long as a real shard, with two numbers written into the last layer."""
    shapes = shard_shapes(SHAPES["llama2-70b"], 8)
    records = {}
    end = 64
    for i, shape in enumerate(shapes.values()):
        records[f"data/{i}"] = pth._Record(f"data/{i}", end, 2 * math.prod(shape), None)
        end += 2 * math.prod(shape)
    assert end > 17e9
    name = "layers.79.feed_forward.w2.weight"
    start = records[f"data/{list(shapes).index(name)}"].start
    with (tmp_path / "x.pth").open("wb") as file:
        # The last row, column 5.
        file.seek(start + 2 * (8191 * 28672 // 8 + 5))
        file.write(np.array([1.5, -2.5], STORAGE_DTYPES["bfloat16"]).tobytes())
        file.truncate(end)
    tensors = pth._tensors(tmp_path / "x.pth", pth_writer._pickle(shapes, "bfloat16"), records)
    assert {name: entry.shape for name, entry in tensors.items()} == shapes
    corner = tensors[name].read((slice(8190, 8192), slice(4, 8)))
    np.testing.assert_array_equal(corner.astype(np.float32), [[0, 0, 0, 0], [0, 1.5, -2.5, 0]])
    assert not tensors["output.weight"].read((slice(3990, 4000), slice(0, 8192))).any()


def test_params_json_of_published_models():
    seven = {
        "dim": 4096,
        "multiple_of": 256,
        "n_heads": 32,
        "n_layers": 32,
        "norm_eps": 1e-5,
        "vocab_size": 32000,
    }
    assert meta.params_json(SHAPES["llama2-7b"], 10000.0) == seven
    seventy = {
        "dim": 8192,
        "multiple_of": 4096,
        "ffn_dim_multiplier": 1.3,
        "n_heads": 64,
        "n_kv_heads": 8,
        "n_layers": 80,
        "norm_eps": 1e-5,
        "vocab_size": 32000,
    }
    assert meta.params_json(SHAPES["llama2-70b"], 10000.0) == seventy
    assert meta.params_json(SHAPES["codellama-7b"], 1e6)["rope_theta"] == 1e6


@pytest.mark.parametrize("shape", [*SHAPES, *range(60)])
def test_metas_formula_gives_every_width(shape):
    if isinstance(shape, str):
        config = SHAPES[shape]
    else:
        rng = np.random.default_rng(shape)
        config = dataclasses.replace(
            BASE,
            hidden_size=int(rng.integers(8, 9000)),
            intermediate_size=int(rng.integers(1, 40000)),
        )
    params = meta.params_json(config, 10000.0)
    # As in Meta's FeedForward.
    hidden = int(2 * (4 * params["dim"]) / 3)
    if params.get("ffn_dim_multiplier") is not None:
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    multiple = params["multiple_of"]
    assert multiple * ((hidden + multiple - 1) // multiple) == config.intermediate_size


STATIC = [
    Unscaled(),
    Linear(4.0),
    Yarn(4.0),
    Yarn(4.0, 16.0),
    NTKByParts(4.0),
    RevisedYarn(4.0),
    NTK(4.0),
    ABF(5e5),
]


@pytest.mark.parametrize("scaling", STATIC)
def test_rope_json_holds_the_frequencies(tmp_path, scaling):
    out = save(tmp_path / "m", scaling=scaling, seq_len=LENGTH)
    rope = json.loads((out / "rope.json").read_text())
    expected = scaling.rope(BASE.rope_base(), LENGTH)
    np.testing.assert_array_equal(rope["inv_freq"], expected.inv_freq)
    assert rope["attention_factor"] == expected.attention_factor
    assert rope["original_max_position_embeddings"] == WINDOW
    assert rope["max_position_embeddings"] == LENGTH
    stored = meta.read(out)
    again = stored.scaling.rope(stored.config.rope_base(), LENGTH)
    np.testing.assert_allclose(again.inv_freq, expected.inv_freq, rtol=1e-12)
    assert again.attention_factor == expected.attention_factor
    assert stored.window == LENGTH
    card = (out / "README.md").read_text()
    assert ("Stock Llama 2 code ignores this scaling" in card) == (rope["rope_scaling"] is not None)
    theta = json.loads((out / "params.json").read_text()).get("rope_theta")
    assert theta == (None if rope["rope_theta"] == 10000.0 else rope["rope_theta"])


def test_the_code_in_the_readme_gives_the_tables(tmp_path, monkeypatch):
    out = save(tmp_path / "m", scaling=Yarn(4.0), seq_len=LENGTH)
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("import llama.model\n", "").replace("llama.model.", "llama_")
    namespace = {}
    monkeypatch.chdir(out)
    exec(code, namespace)
    table = namespace["llama_precompute_freqs_cis"](16, 2 * LENGTH).numpy()
    rope = Yarn(4.0).rope(BASE.rope_base(), LENGTH)
    expected = rope.attention_factor * np.exp(1j * np.outer(np.arange(2 * LENGTH), rope.inv_freq))
    np.testing.assert_allclose(table, expected, atol=2e-7)


def test_models_that_meta_s_format_cannot_represent_are_refused_before_anything_is_written(
    tmp_path,
):
    cases = [
        (
            BASE,
            DynamicNTK(4.0),
            {},
            "DynamicNTK changes its frequencies with the length of the text",
        ),
        (BASE, LongRope(4.0, (1.0,) * 8, (4.0,) * 8), {}, "LongRope changes its frequencies"),
        (dataclasses.replace(BASE, attention_bias=True), Unscaled(), {}, "no field for biases"),
        (
            dataclasses.replace(BASE, hidden_act="gelu"),
            Unscaled(),
            {},
            "no field for the activation gelu",
        ),
        (
            dataclasses.replace(BASE, head_dim=24),
            Unscaled(),
            {},
            "no field for heads wider or narrower",
        ),
        (
            dataclasses.replace(BASE, eos_token_id=(2, 5)),
            Unscaled(),
            {},
            r"where they are 1 and 2, not 1 and \(2, 5\)",
        ),
        (
            BASE,
            Unscaled(),
            {"shards": 4},
            "cannot be divided into 4 equal shards; --shards must divide 2",
        ),
        (BASE, Unscaled(), {"shards": 0}, "cannot be divided into 0 equal shards"),
        (BASE, Unscaled(), {"dtype": "float8"}, "dtype 'float8' is not known"),
        (dataclasses.replace(BASE, vocab_size=400), Unscaled(), {}, "the tokenizer has 420 ids"),
    ]
    for config, scaling, options, message in cases:
        with pytest.raises(ValueError, match=message):
            save(tmp_path / "m", config, scaling, params=random_params(config), **options)
    assert not any(tmp_path.iterdir())


def test_a_tied_output_is_written_out(tmp_path):
    config = dataclasses.replace(BASE, tie_word_embeddings=True)
    stored = meta.read(save(tmp_path / "m", config))
    np.testing.assert_array_equal(
        stored.tensors["lm_head.weight"].read(), random_params(config)["embed_tokens"]["embedding"]
    )
    assert not stored.config.tie_word_embeddings


def test_an_interrupted_export_leaves_nothing(tmp_path):
    tensors = lazy_tensors(BASE, random_params(BASE))

    def broken(*_):
        raise OSError(28, "No space left on device")

    tensors["model.norm.weight"] = tensors["model.norm.weight"]._replace(read=broken)
    model = StoredModel(BASE, Unscaled(), 64, tensors, tokenizer())
    with pytest.raises(OSError, match="No space left"):
        meta.write(tmp_path / "m", model, WriteOptions("float32", shards=2))
    assert not any(tmp_path.iterdir())


def foreign(directory: Path, config=BASE, shards=1, split_rows=False) -> Path:
    """A checkpoint as Meta ships it, by torch: no rope.json, vocab_size -1, rope.freqs.

    split_rows: shard the embedding by rows, as Llama 3 does, instead of columns.
    """
    out = save(directory, config, shards=shards)
    (out / "rope.json").unlink()
    edit("params.json", vocab_size=-1)(out)
    rows = torch.from_numpy(random_params(config)["embed_tokens"]["embedding"]).chunk(shards)
    for i, path in enumerate(sorted(out.glob("*.pth"))):
        state = torch.load(path, weights_only=True)
        state["rope.freqs"] = torch.ones(config.head_dim // 2)
        if split_rows:
            state["tok_embeddings.weight"] = rows[i]
        torch.save(state, path)
    return out


@pytest.mark.parametrize("split_rows", [False, True], ids=["columns", "llama3"])
def test_a_checkpoint_that_torch_saved_is_read(tmp_path, split_rows):
    out = foreign(tmp_path / "m", shards=2, split_rows=split_rows)
    stored = meta.read(out, original=WINDOW)
    assert (stored.config, stored.scaling, stored.window) == (BASE, Unscaled(), WINDOW)
    for name, slot in slots(random_params(BASE)).items():
        np.testing.assert_array_equal(stored.tensors[name].read(), slot.get(), name)
    with pytest.raises(
        ValueError,
        match="does not declare the window of pre-training; give it with --original: 4096",
    ):
        meta.read(out)


def scaled(directory: Path, **params) -> Path:
    """A checkpoint of the kind of Llama 3.1: its theta, and use_scaled_rope."""
    out = foreign(directory)
    edit("params.json", rope_theta=5e5, use_scaled_rope=True, **params)(out)
    return out


@pytest.mark.parametrize(("factor", "high"), [(8, None), (32, None), (16, 2.0)])
def test_use_scaled_rope_has_the_frequencies_of_transformers(factor, high, tmp_path):
    params = {"rope_scaling_factor": factor}
    if high is not None:
        params["rope_high_freq_factor"] = high
    out = scaled(tmp_path / "m", **params)
    stored = meta.read(out)
    config = transformers.LlamaConfig(
        head_dim=BASE.head_dim,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": float(factor),
            "low_freq_factor": 1.0,
            "high_freq_factor": high or 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    init = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"]
    inv_freq, attention_factor = init(config, "cpu")
    rope = stored.scaling.rope(stored.config.rope_base(), stored.window)
    np.testing.assert_allclose(rope.inv_freq, inv_freq.numpy(), rtol=1e-6)
    assert rope.attention_factor == attention_factor == 1.0
    assert (stored.config.max_position_embeddings, stored.window) == (8192, 131072)
    reference = MetaReference(out, pth.open_archive, lambda entry: entry.read())
    np.testing.assert_allclose(reference.rope(9000)[0], rope.inv_freq, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "factor"),
    [("llama3.1-8b", 8), ("llama3.1-405b", 8), ("llama3.2-1b", 32), ("llama3.2-3b", 32)],
)
def test_published_shapes_have_their_factor(name, factor, tmp_path):
    shape = SHAPES[name]
    size = {"dim": shape.hidden_size, "n_layers": shape.num_hidden_layers}
    params = size | {"rope_theta": 5e5, "use_scaled_rope": True}
    theta, window, scaling, length = read_rope(tmp_path / "rope.json", params, 128, None)
    assert (theta, window, scaling, length) == (5e5, 8192, Llama3(factor), 131072)


def test_a_scaled_rope_that_is_not_stated_is_refused(tmp_path):
    out = scaled(tmp_path / "m")
    with pytest.raises(ValueError, match="not the factor, .* add rope_scaling_factor: 8 for Llama"):
        meta.read(out)
    edit("params.json", rope_scaling_factor=8)(out)
    with pytest.raises(ValueError, match="window of pre-training is 8192 in .*params.json"):
        meta.read(out, original=4096)
    assert meta.read(out, original=8192).scaling == Llama3(8.0)
    edit("params.json", use_scaled_rope="yes")(out)
    with pytest.raises(ValueError, match="use_scaled_rope must be true or false"):
        meta.read(out)
    out = save(tmp_path / "ours", scaling=Yarn(4.0))
    edit("params.json", use_scaled_rope=True, rope_scaling_factor=8)(out)
    with pytest.raises(ValueError, match="rope.json has the scaling yarn.* use_scaled_rope"):
        meta.read(out)


def test_names_in_shards_without_what_training_tools_add(tmp_path):
    out = foreign(tmp_path / "m")
    file = out / "consolidated.00.pth"
    state = torch.load(file, weights_only=True)
    torch.save({f"_orig_mod.{name}": value for name, value in state.items()}, file)
    stored = meta.read(out, original=WINDOW)
    for name, slot in slots(random_params(BASE)).items():
        np.testing.assert_array_equal(stored.tensors[name].read(), slot.get(), name)
    vision = {f"vision_model.{name}": value for name, value in state.items()}
    torch.save(state | vision, file)
    with pytest.raises(ValueError, match="belongs to a model of images and text: save"):
        meta.read(out, original=WINDOW)


@pytest.mark.parametrize("shards", SHARDS)
def test_meta_to_hf_to_meta_is_bit_exact(tmp_path, shards):
    """A checkpoint that torch saved comes back as one that torch loads."""
    first = foreign(tmp_path / "m", SHARDS[shards], shards)
    again = tmp_path / "again"
    convert(first, tmp_path / "hf", original=WINDOW)
    convert(tmp_path / "hf", again, to="meta", shards=shards)
    for path in sorted(first.glob("*.pth")):
        expected = torch.load(path, weights_only=True)
        actual = torch.load(again / path.name, weights_only=True)
        del expected["rope.freqs"]
        assert expected.keys() == actual.keys()
        for name, tensor in expected.items():
            assert torch.equal(actual[name].view(torch.int32), tensor.view(torch.int32)), name
    model = (first / "tokenizer.model").read_bytes()
    assert (again / "tokenizer.model").read_bytes() == model
    params = json.loads((first / "params.json").read_text())
    assert json.loads((again / "params.json").read_text()) == params | {"vocab_size": 424}


def edit(file: str, **changes):
    def apply(out: Path):
        data = json.loads((out / file).read_text()) | changes
        (out / file).write_text(json.dumps({k: v for k, v in data.items() if v != "DELETE"}))

    return apply


def edit_shard(i: int, change):
    def apply(out: Path):
        path = out / f"consolidated.0{i}.pth"
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return apply


@pytest.mark.parametrize(
    "corrupt, message",
    [
        (
            lambda out: (out / "consolidated.00.pth").unlink(),
            "lacks shards: consolidated.00.pth and so on without",
        ),
        (lambda out: (out / "params.json").unlink(), "params.json does not exist"),
        (lambda out: (out / "params.json").write_text("[]"), "params.json must hold an object"),
        (edit("params.json", moe={}), "moe is not supported"),
        (edit("params.json", use_scaled_rope=True), "has use_scaled_rope, but not the factor"),
        (edit("params.json", n_heads="DELETE"), "params.json lacks n_heads; copy"),
        (edit("params.json", n_heads=0), "params.json: n_heads must be an integer from 1 to"),
        (edit("params.json", n_heads=None), "params.json lacks n_heads; copy"),
        (edit("params.json", norm_eps=None), "params.json lacks norm_eps; copy"),
        (
            edit("params.json", dim=10**17, n_heads=5),
            "params.json: dim must be an integer from 1 to",
        ),
        (
            edit("params.json", norm_eps=1e105),
            "params.json: norm_eps must be a number between 0 and 1",
        ),
        (
            edit("params.json", ffn_dim_multiplier="1.3"),
            "params.json: ffn_dim_multiplier must be a number",
        ),
        (edit("params.json", dim="64"), "params.json: dim must be an integer"),
        (edit("params.json", n_layers=10**6), "has n_layers 1000000, but the shards have 2"),
        (edit("params.json", vocab_size=500), "has vocab_size 500, but the shards have 424 rows"),
        (
            edit("params.json", dim=128, n_heads=8),
            r"has shape \[424, 32\] in 2 shards, but .* requires \[424, 128\]",
        ),
        (edit("params.json", n_kv_heads=4), "layers.0.attention.wk.weight in .* has shape"),
        (
            edit("params.json", rope_theta=5e5),
            "the rope_theta is 10000.0 in .*rope.json, but elsewhere 500000.0",
        ),
        (
            edit("rope.json", attention_factor=1.0),
            "attention_factor and rope_parameters contradict each other",
        ),
        (edit("rope.json", inv_freq=[1.0]), "inv_freq and rope_parameters contradict each other"),
        (edit("rope.json", inv_freq="DELETE"), "rope.json: inv_freq is missing; copy the file"),
        (edit("rope.json", inv_freq=3), "rope.json: inv_freq must be a list, got '3'"),
        (edit("rope.json", attention_factor="x"), "attention_factor must be a finite number"),
        (edit_shard(1, lambda s: s.pop("norm.weight")), "only one of .* has norm.weight"),
        (edit_shard(1, lambda s: s.update({"x": s["norm.weight"]})), "only one of .* has x"),
        (
            edit_shard(1, lambda s: s.update({"norm.weight": s["norm.weight"] + 1})),
            "norm.weight in .*00.pth differs from that of another shard",
        ),
        (
            edit_shard(1, lambda s: s.update({"norm.weight": s["norm.weight"][:5]})),
            "norm.weight in .* has shape",
        ),
    ],
)
def test_a_corrupt_directory_gives_one_clear_error(tmp_path, corrupt, message):
    out = save(tmp_path / "m", scaling=Yarn(4.0), shards=2)
    corrupt(out)
    with pytest.raises(ValueError, match=message) as error:
        for entry in meta.read(out).tensors.values():
            entry.read()
    assert "\n" not in str(error.value)
    assert str(out) in str(error.value)


def test_the_command_line(tmp_path, capsys):
    """The bundled model to Meta's format and back, and the import of a checkpoint by torch."""

    def run(arguments: str) -> int:
        return main(arguments.split())

    meta_dir = tmp_path / "meta"
    hf_dir = tmp_path / "hf"
    method = "--method yarn --factor 4"
    assert run(f"export tiny-llama {method} --to meta --dtype f32 --shards 2 --out {meta_dir}") == 0
    assert run(f"import {meta_dir} --out {hf_dir}") == 0
    check = f"ctxext prove {meta_dir} --against tiny-llama {method}"
    exported, imported = capsys.readouterr().out.splitlines()
    assert exported == f"wrote {meta_dir}; check it with: {check}"
    next_commands = f"check it with: ctxext prove {hf_dir}; measure it: ctxext eval {hf_dir}"
    assert imported == f"wrote {hf_dir}; {next_commands}"
    base = loading.load("tiny-llama")
    hf = loading.load(hf_dir)
    ours = loading.load(meta_dir)
    original, from_hf, from_meta = (slots(lm.params) for lm in (base, hf, ours))
    assert hf.scaling == ours.scaling == Yarn(4.0)
    assert hf.config == ours.config
    # Meta's format has no tied embeddings, so the output is written out.
    assert base.config.tie_word_embeddings
    original["lm_head.weight"] = original["model.embed_tokens.weight"]
    assert original.keys() == from_hf.keys()
    for name, slot in original.items():
        np.testing.assert_array_equal(from_hf[name].get(), slot.get(), name)
        np.testing.assert_array_equal(from_meta[name].get(), slot.get(), name)
    by_torch = foreign(tmp_path / "m", shards=2)
    imported = tmp_path / "n"
    assert run(f"import {by_torch} --out {imported}") == 2
    assert "give it with --original" in capsys.readouterr().err
    assert run(f"import {by_torch} --original 64 --out {imported}") == 0
    expected = dataclasses.replace(BASE, max_position_embeddings=64)
    assert loading.load(imported).config == expected
    assert run(f"import {imported} --original 64 --out {tmp_path / 'o'}") == 2
    assert run(f"export tiny-llama --to meta --shards 3 --out {tmp_path / 'o'}") == 2
    assert "cannot be divided into 3 equal shards" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_an_import_has_one_tensor_in_memory(tmp_path):
    """With wide layers, numpy's peak memory is a small part of the checkpoint."""
    config = dataclasses.replace(SHARDS[8], intermediate_size=1024, num_hidden_layers=8)
    out = save(tmp_path / "m", config, dtype="bfloat16", shards=2)
    total = sum(path.stat().st_size for path in out.glob("*.pth"))
    convert(out, tmp_path / "first")
    tracemalloc.start()
    convert(out, tmp_path / "hf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 2 * 6e6
    assert peak < total / 4


@pytest.mark.parametrize(
    "key",
    [
        "rope_theta",
        "rope_scaling_factor",
        "rope_high_freq_factor",
        "norm_eps",
        "ffn_dim_multiplier",
    ],
)
@pytest.mark.parametrize(
    "number",
    ["NaN", "Infinity", "-Infinity", "-1", "0", "1e400", "1e-320", "true", '"8"', "1" + "0" * 400],
)
def test_numbers_in_params_json_are_read_or_refused_by_name(tmp_path, key, number):
    """As Python's own JSON reader takes them."""
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "use_scaled_rope": True}
    params |= {"rope_theta": 10000.0, "rope_scaling_factor": 8}
    text = json.dumps(params | {key: "HERE"}).replace('"HERE"', number)
    (tmp_path / "params.json").write_text(text)
    try:
        read = meta._read_params(tmp_path / "params.json")
        theta, window, scaling, _ = read_rope(tmp_path / "rope.json", read, 8, None)
        rope = scaling.rope(RopeBase(8, theta, window), 10_000)
    except ValueError as error:
        assert "params.json" in str(error)
        assert "\n" not in str(error)
    else:
        assert key == "ffn_dim_multiplier"  # which decides no frequency, and the tensors the width
        assert np.isfinite(rope.inv_freq).all()

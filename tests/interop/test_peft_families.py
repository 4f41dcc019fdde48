"""Adapters of every family, also where queries, keys and values are one matrix: peft's logits."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from ctxext.interop import peft_reader, peft_writer
from ctxext.interop.lazy_tensor import LazyTensor
from ctxext.interop.low_rank import LowRank, from_stored, to_stored
from ctxext.interop.peft_merge import merge
from ctxext.interop.pth import open_archive
from ctxext.model.lm import LM
from ctxext.model.trainable import LoRA, split
from ctxext.prove.reference.hf import HFReference
from ctxext.rope import Unscaled
from support import families, tiny
from support.hf_files import write_hf
from support.llamas import random_params, tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
NAMES = (
    "mistral-sw4",
    "qwen2-sw",
    "qwen3",
    "smollm3",
    "falcon-40b",
    "falcon-7b",
    "falcon-11b",
    "mpt-h6",
)
LIKE_QWEN2 = ("mistral-sw4", "qwen3", "smollm3")
"""Their linear layers have the names and the shapes of a Qwen2's; for `make slow`."""


def tier(name: str) -> pytest.MarkDecorator:
    return pytest.mark.slow if name in LIKE_QWEN2 else pytest.mark.check


FUSED = {"falcon-40b": "query_key_value", "falcon-7b": "query_key_value", "mpt-h6": "Wqkv"}
TARGETS = {
    "some": ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
    "one of three": ("k_proj", "down_proj"),
    "all of three": ("q_proj", "k_proj", "v_proj"),
}


def trained_lora(config, lora: LoRA):
    """Parameters with random adapters, and random numbers in what is trained whole."""
    params = lora.init(random_params(config), 0)
    rng = np.random.default_rng(1)

    def moved(path, leaf):
        is_adapter = path[-1].key in ("lora_a", "lora_b")
        noise = np.asarray(0.3 * rng.standard_normal(leaf.shape), np.float32)
        return noise if is_adapter else np.asarray(leaf)

    return jax.tree_util.tree_map_with_path(moved, params)


def write_adapter(directory: Path, name: str, lora: LoRA) -> tuple[Path, LM]:
    """A base and an adapter on it in PEFT's form; (the adapter, the model with it merged)."""
    config = families.parts_config(name)
    params = trained_lora(config, lora)
    base = directory / "base"
    write_hf(base, config, random_params(config), Unscaled(), tokenizer(), dtype="float32")
    trained, _ = split(params, lora.pattern(config))
    peft_writer.write(directory / "adapter", config, lora, trained, base=str(base))
    return directory / "adapter", LM(config, lora.merge(params), tokenizer())


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", FUSED)
def test_adapters_of_projections_are_one_of_the_fused_matrix(name, targets, tmp_path):
    lora = LoRA(rank=2, alpha=5.0, targets=TARGETS[targets], rslora=targets == "some")
    adapter, expected = write_adapter(tmp_path, name, lora)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    num_projections = len(set(lora.targets) & {"q_proj", "k_proj", "v_proj"})
    assert FUSED[name] in settings["target_modules"]
    ranks = {FUSED[name]: 2 * num_projections} if num_projections > 1 else None
    assert settings.get("rank_pattern") == ranks

    read = peft_reader.read(adapter, expected.config)
    assert {product.scale for product in read.low_rank.values()} == {lora.scale}
    merged = merge(tiny_arrays(random_params(expected.config)), read, expected.config)
    jax.tree.map(np.testing.assert_array_equal, merged, expected.params)
    reader = HFReference(tmp_path / "base", adapter, open_archive=open_archive)
    tokens = tiny.tokens(1, 12, vocab=expected.config.vocab_size)
    index = np.arange(12)
    logits = reader.logits(tokens[0], index, index)
    np.testing.assert_allclose(expected.logits(tokens)[0], logits, atol=1e-4)


@pytest.mark.parametrize("name", FUSED)
def test_parts_of_a_fused_matrix_have_the_very_matrices_that_were_written(name):
    """Also where a rank of A changes nothing; where nothing does, no rank is left."""
    config = families.parts_config(name)
    names = {part: f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"}
    heads = {"q": config.num_attention_heads, "v": config.num_key_value_heads}
    rng = np.random.default_rng(0)
    a = {part: rng.standard_normal((3, config.hidden_size)).astype(np.float32) for part in "qv"}
    shapes = {part: (number * config.head_dim, 3) for part, number in heads.items()}
    b = {part: rng.standard_normal(shapes[part]).astype(np.float32) for part in "qv"}
    b["q"][:, 1] = 0
    products = {names[part]: LowRank(in_memory(a[part]), in_memory(b[part]), 0.7) for part in "qv"}
    (fused,) = to_stored(products, config).items()
    assert fused[1].rank == 6
    read = from_stored(dict([fused]), list(names.values()), config)
    for part in "qv":
        np.testing.assert_array_equal(read[names[part]].a.read(), a[part])
        np.testing.assert_array_equal(read[names[part]].b.read(), b[part])
    assert read[names["k"]].rank == 0
    assert {product.scale for product in read.values()} == {0.7}
    a["v"][2, 0] = np.nan
    broken = from_stored(dict(to_stored(products, config)), list(names.values()), config)
    assert np.isnan(broken[names["k"]].a.read()).any()  # refused where it is merged


def in_memory(matrix: np.ndarray) -> LazyTensor:
    return LazyTensor(
        matrix.shape, "float32", lambda index=None: matrix if index is None else matrix[index]
    )


def tiny_arrays(params):
    return jax.tree.map(jax.numpy.asarray, params)


@pytest.mark.parametrize("name", [pytest.param(name, marks=tier(name)) for name in NAMES])
@pytest.mark.usefixtures("readers")
def test_peft_computes_what_our_adapters_compute(name, tmp_path):
    import peft
    import torch

    lora = LoRA(rank=2, alpha=5.0, targets=TARGETS["some"], modules_to_save=("norm",))
    adapter, expected = write_adapter(tmp_path, name, lora)
    base = families.torch_model(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, str(adapter))
    tokens = tiny.tokens(2, 24, vocab=expected.config.vocab_size)
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
    np.testing.assert_allclose(expected.logits(tokens), theirs, atol=1e-4)


EVERY = [(name, {"r": 3, "target_modules": "all-linear"}) for name in NAMES]
KINDS = {
    "DoRA": {"r": 3, "target_modules": "all-linear", "use_dora": True},
    "part": {"r": 3, "target_modules": ["query_key_value", "Wqkv"], "layers_to_transform": [1]},
    "default": {"r": 3},
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param(name, settings, marks=tier(name))
        for name, settings in (
            *EVERY,
            *((name, kind) for name in ("falcon-40b", "mpt-h6") for kind in KINDS.values()),
        )
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
@pytest.mark.usefixtures("readers")
def test_adapters_of_peft_compute_what_peft_computes(name, settings, tmp_path):
    import peft
    import torch

    config = families.parts_config(name)
    params = random_params(config)
    write_hf(tmp_path / "base", config, params, Unscaled(), tokenizer(), dtype="float32")
    torch.manual_seed(0)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", lora_alpha=6, **settings)
    model = peft.get_peft_model(families.torch_model(tmp_path / "base"), lora)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.rand_like if "magnitude" in parameter_name else torch.randn_like
                parameter.add_(0.1 * noise(parameter))
    model.save_pretrained(tmp_path / "adapter")
    if "target_modules" not in settings:  # PEFT writes its choice
        file = tmp_path / "adapter" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": None}))
    adapter = peft_reader.read(tmp_path / "adapter", config)
    lm = LM(config, merge(tiny_arrays(params), adapter, config), tokenizer())
    tokens = tiny.tokens(2, 24, vocab=config.vocab_size)
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
    np.testing.assert_allclose(lm.logits(tokens), theirs, atol=1e-4)
    plain = np.asarray(dataclasses.replace(lm, params=params).logits(tokens))
    assert np.abs(plain - theirs).max() > 1e-2

"""Logits, gradients and greedy decoding against transformers, on checkpoints that it wrote."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import ctxext
from ctxext.attention import Causal
from ctxext.export import export
from ctxext.interop.hf_weights import slots
from ctxext.model.lm import LM
from ctxext.model.loss import batch_loss
from ctxext.prove.pytorch_readers import repeated
from support.llamas import FACTOR, LENGTH, TINY, WINDOW, torch_llama

TIGHT = 2e-5
"""Bound with transformers' float32 angles."""
EXACT = 5e-5
"""Bound with exact angles: transformers rounds p * f, by up to 255 * 2^-24 rad and more."""
ORIGINAL = {"original_max_position_embeddings": WINDOW}
LONG = {"max_position_embeddings": LENGTH}
CASES: dict[str, dict[str, Any]] = {
    "none-gqa": {},
    "none-mha": {"num_key_value_heads": 4},
    "none-mqa-tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "biases-head-dim": {
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 24,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "theta": {
        "rope": {"rope_type": "default", "rope_theta": 500000.0},
        "hidden_act": "gelu",
        "rms_norm_eps": 1e-3,
    },
    "linear-tied": {
        "rope": {"rope_type": "linear", "factor": 4.0},
        "tie_word_embeddings": True,
        **LONG,
    },
    "yarn": {"rope": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}, **LONG},
    "yarn-m1-mha": {
        "rope": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0, **ORIGINAL},
        **LONG,
        "num_key_value_heads": 4,
    },
    "llama3": {
        "rope": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            **ORIGINAL,
        },
        "max_position_embeddings": 8 * WINDOW,
    },
    "dynamic": {"rope": {"rope_type": "dynamic", "factor": 4.0}},
    "longrope": {
        "rope": {
            "rope_type": "longrope",
            "factor": 4.0,
            **ORIGINAL,
            **dict.fromkeys(
                ("short_factor", "long_factor"), [1.0, 1.2, 1.5, 2.0, 2.6, 3.0, 4.0, 4.0]
            ),
        },
        **LONG,
    },
}

GRADIENTS = [("yarn", "blocked"), ("linear-tied", "blocked"), ("biases-head-dim", "dense")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' model, ours, the directory) of a case, made once."""

    @functools.cache
    def make(case: str) -> tuple[Any, LM, Path]:
        directory = tmp_path_factory.mktemp(case)
        torch_llama(directory, **CASES[case])
        hf_model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )
        # The first pass of a process is not always exact.
        their_logits(hf_model.eval(), tokens(1, LENGTH))
        return hf_model, ctxext.load(directory, angles="float32"), directory

    return make


def tokens(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, TINY.vocab_size, (rows, length))


def their_logits(
    model: Any, ids: np.ndarray, mask: np.ndarray | None = None, positions: np.ndarray | None = None
):
    mask = np.ones_like(ids) if mask is None else mask
    options = {} if positions is None else {"position_ids": torch.from_numpy(positions)}
    with torch.no_grad():
        inputs = {"attention_mask": torch.from_numpy(mask), "use_cache": False, **options}
        return repeated(lambda: model(torch.from_numpy(ids), **inputs).logits.numpy())


def assert_close(actual, expected, bound=TIGHT):
    assert np.abs(expected).max() > 1, "the logits are too small to compare"
    assert np.abs(np.asarray(actual) - expected).max() <= bound


@pytest.mark.parametrize("length", [WINDOW - 16, LENGTH], ids=["below", "beyond"])
@pytest.mark.parametrize("case", CASES)
def test_logits(pair, case, length):
    hf_model, ours, _ = pair(case)
    assert ours.config.max_position_embeddings == WINDOW
    ids = tokens(1, length)
    expected = their_logits(hf_model, ids)
    assert_close(ours.logits(ids), expected)
    if case in ("none-gqa", "yarn", "dynamic"):
        exact = LM(ours.config, ours.params, ours.tokenizer, scaling=ours.scaling)
        assert_close(exact.logits(ids), expected, EXACT)


def test_the_scaling_changes_these_logits(pair):
    """The cases would be no evidence if the scaling did not change these logits."""
    hf_model, ours, _ = pair("yarn")
    ids = tokens(1, LENGTH)
    unscaled = ours.with_method(ctxext.methods.find("plain")())
    assert np.abs(np.asarray(unscaled.logits(ids)) - their_logits(hf_model, ids)).max() > 0.1


def test_packed_documents(pair):
    hf_model, ours, _ = pair("yarn")
    ids = tokens(1, 96, seed=1)
    lengths = [30, 50, 16]
    segments = np.repeat([1, 2, 3], lengths)[None]
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    visible = (segments[:, :, None] == segments[:, None]) & np.tri(96, dtype=bool)
    mask = np.where(visible, 0.0, np.finfo(np.float32).min).astype(np.float32)[:, None]
    expected = their_logits(hf_model, ids, mask, positions)
    assert_close(ours.logits(ids, positions=positions, segment_ids=segments), expected)
    # A document does not notice packing.
    alone = ours.logits(ids[:, 30:80])
    assert_close(alone, expected[:, 30:80])


def test_right_padded_batch(pair):
    hf_model, ours, _ = pair("none-gqa")
    ids = tokens(3, 80, seed=2)
    lengths = np.array([80, 41, 7])
    mask = (np.arange(80) < lengths[:, None]).astype(np.int64)
    expected = their_logits(hf_model, ids, mask)
    actual = np.asarray(ours.logits(ids, segment_ids=mask))
    for row, length in enumerate(lengths):
        assert_close(actual[row, :length], expected[row, :length])


def test_positions_with_a_jump_give_the_logits_of_transformers(pair):
    hf_model, ours, _ = pair("yarn")
    ids = tokens(1, 40, seed=3)
    positions = np.concatenate([np.arange(15), np.arange(LENGTH - 25, LENGTH)])[None]
    assert_close(
        ours.logits(ids, positions=positions), their_logits(hf_model, ids, positions=positions)
    )


def test_loss_equals_that_of_transformers(pair):
    hf_model, ours, _ = pair("yarn")
    ids = tokens(2, 100, seed=4)
    logits = torch.from_numpy(their_logits(hf_model, ids))[:, :-1]
    targets = torch.from_numpy(ids)[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    np.testing.assert_allclose(ours.loss(ids), expected.numpy(), atol=TIGHT)


@pytest.mark.parametrize(
    "case, kernel",
    [
        ("yarn", "blocked"),
        pytest.param("biases-head-dim", "dense", marks=pytest.mark.slow),
        pytest.param("linear-tied", "blocked", marks=pytest.mark.slow),
    ],
)
def test_gradients(pair, case, kernel):
    hf_model, ours, _ = pair(case)
    ids = tokens(2, 91, seed=5)
    weights = np.random.default_rng(6).uniform(0, 1, (2, 90)).astype(np.float32)
    for parameter in hf_model.parameters():
        parameter.grad = None
    x = torch.from_numpy(ids)
    logits = hf_model(x[:, :-1], attention_mask=torch.ones_like(x[:, :-1]), use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), x[:, 1:], reduction="none")
    (losses * torch.from_numpy(weights)).sum().backward()
    batch = {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "weights": weights,
        "positions": np.tile(np.arange(90), (2, 1)),
        "segment_ids": np.ones((2, 90)),
    }
    batch = {
        k: jnp.asarray(v, jnp.float32 if k == "weights" else jnp.int32) for k, v in batch.items()
    }
    options: Any = {"config": ours.config, "kernel": kernel, "dtype": "float32", "remat": "none"}
    params = jax.tree.map(jnp.asarray, ours.params)

    @jax.jit
    @jax.grad
    def gradient(params: Any) -> Any:
        return batch_loss(params, batch, ours.rotation(90), attention=Causal(), **options)[0]

    gradients = gradient(params)
    names = dict(hf_model.named_parameters())
    our_slots = slots(gradients)
    assert our_slots.keys() == names.keys()
    for name, slot in our_slots.items():
        expected = names[name].grad.numpy()
        assert np.abs(slot.get() - expected).max() <= 1e-4 * np.abs(expected).max(), name


@pytest.mark.parametrize("case", ["none-gqa", "yarn"])
def test_greedy_decoding(pair, case):
    hf_model, ours, _ = pair(case)
    new = 24
    # The second prompt crosses the end of the window.
    prompts = [tokens(1, n, seed=n)[0] for n in (20, WINDOW - 5)]
    generated = ours.generate(prompts, max_new_tokens=new)
    compared = 0
    for row, prompt in enumerate(prompts):
        ids = torch.from_numpy(prompt[None])
        out = hf_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            temperature=None,
            top_p=None,
            output_scores=True,
            return_dict_in_generate=True,
            eos_token_id=None,
            pad_token_id=0,
        )
        top = [score[0].topk(2).values for score in out.scores]
        # Up to the first step whose best two logits are too close to compare.
        sure = next((i for i, (a, b) in enumerate(top) if a - b < 1e-4), new)
        np.testing.assert_array_equal(
            generated[row, :sure], out.sequences[0, len(prompt) :][:sure].numpy()
        )
        compared += sure
    assert compared > new


@pytest.mark.parametrize("case", ["yarn", "none-mqa-tied", "longrope"])
def test_export_reloads_in_transformers(pair, case, tmp_path):
    hf_model, ours, _ = pair(case)
    out = export(ours, tmp_path / "m", dtype="float32", seq_len=LENGTH, max_shard_size=100_000)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager"
    )
    ids = tokens(1, LENGTH, seed=7)
    np.testing.assert_array_equal(their_logits(reloaded.eval(), ids), their_logits(hf_model, ids))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = "def f(x):\n    return  x + 1  # é"
    assert tokenizer(text).input_ids == ours.tokenizer.encode(text, bos=True)
    if case != "none-mqa-tied":
        assert reloaded.config.max_position_embeddings == LENGTH
    assert reloaded.generation_config.eos_token_id == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files(tmp_path, dtype):
    """Parameters stored in 16 bits are read exactly: float32 logits agree as tightly as before."""
    torch_llama(tmp_path, rope={"rope_type": "yarn", "factor": float(FACTOR), **ORIGINAL}, **LONG)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = tokens(1, WINDOW - 16)
    assert_close(
        ctxext.load(tmp_path, angles="float32").logits(ids), their_logits(hf_model.eval(), ids)
    )

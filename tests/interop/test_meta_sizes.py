"""Meta's format at the widths of published models, compared number by number.

Models have one of their 32, 40 or 80 layers, which has every kind of tensor at its real size. The
numbers are computed when they are read. The 13B, whose files are two, is in `make check`; the 7B
and the 70B, whose shards are cut in the same way, are in `make slow`.
"""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ctxext.interop import meta
from ctxext.interop.hf_weights import StoredModel, WriteOptions, slots
from ctxext.interop.lazy_tensor import STORAGE_DTYPES, LazyTensor
from ctxext.model.config import SHAPES
from ctxext.model.decoder import param_shapes
from ctxext.rope import Unscaled
from support.llamas import tokenizer

SPLIT_COLUMNS = ("tok_embeddings", "attention.wo", "feed_forward.w2")
META_NAMES = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "norm": "norm",
    "q_proj": "attention.wq",
    "k_proj": "attention.wk",
    "v_proj": "attention.wv",
    "o_proj": "attention.wo",
    "gate_proj": "feed_forward.w1",
    "up_proj": "feed_forward.w3",
    "down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def numbers(name: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Elements of a tensor: integers that bfloat16 holds, in a pattern that the name decides."""
    a, b, c = hashlib.sha256(name.encode()).digest()[:3]
    values = (rows * (2 * a + 1) + columns * (2 * b + 1) + c) % 251 - 125
    return values.astype(STORAGE_DTYPES["bfloat16"])


def entry(name: str, shape: tuple[int, ...]) -> LazyTensor:
    """A tensor whose elements are computed on reading."""

    def read(index: tuple[slice, ...] | None = None) -> np.ndarray:
        index = index or (slice(None),) * len(shape)
        spans = [np.arange(n)[part] for n, part in zip(shape, index, strict=True)]
        rows = spans[0].astype(np.int32)
        if len(shape) == 1:
            return numbers(name, rows, np.int32(0))
        return numbers(name, rows[:, None], spans[1].astype(np.int32)[None])

    return LazyTensor(shape, "bfloat16", read)


@pytest.mark.parametrize(
    ("shape", "shards"),
    [
        pytest.param("llama2-7b", 1, marks=pytest.mark.slow),
        pytest.param("llama2-13b", 2, marks=pytest.mark.slow),
        pytest.param("llama2-70b", 8, marks=pytest.mark.slow),
    ],
)
def test_numbers_are_in_their_places(shape: str, shards: int, tmp_path: Path) -> None:
    config = dataclasses.replace(SHAPES[shape], num_hidden_layers=1)
    tensors = {name: entry(name, slot.shape) for name, slot in slots(param_shapes(config)).items()}
    model = StoredModel(config, Unscaled(), 4096, tensors, tokenizer())
    meta.write(tmp_path / "m", model, WriteOptions("bfloat16", shards=shards))
    files = [
        torch.load(tmp_path / "m" / f"consolidated.{i:02d}.pth", weights_only=True, mmap=True)
        for i in range(shards)
    ]
    rng = np.random.default_rng(0)
    d = config.head_dim
    for name, tensor in tensors.items():
        *prefix, kind, _ = name.split(".")
        new = f"layers.{prefix[2]}.{META_NAMES[kind]}" if "layers" in prefix else META_NAMES[kind]
        rows = rng.integers(0, tensor.shape[0], 300)
        columns = rng.integers(0, tensor.shape[1] if len(tensor.shape) == 2 else 1, 300)
        expected = numbers(name, rows, columns).astype(np.float32)
        if kind in ("q_proj", "k_proj"):
            # HF's row h d + c d/2 + j is Meta's h d + 2 j + c.
            head = rows // d
            half, pair = np.divmod(rows % d, d // 2)
            rows = head * d + 2 * pair + half
        parts = [file[f"{new}.weight"] for file in files]
        places = list(zip(rows, columns, strict=True))
        if len(tensor.shape) == 1:
            # Every shard has the whole vector.
            stored = [[part[row].item() for row in rows] for part in parts]
        elif META_NAMES[kind] in SPLIT_COLUMNS:
            width = parts[0].shape[1]
            stored = [[parts[c // width][r, c % width].item() for r, c in places]]
        else:
            height = parts[0].shape[0]
            stored = [[parts[r // height][r % height, c].item() for r, c in places]]
        np.testing.assert_array_equal(stored, np.tile(expected, (len(stored), 1)), name)
    again = meta.read(tmp_path / "m", original=config.max_position_embeddings)
    assert again.config == config
    # All numbers in the other direction, 4,000 rows at a time.
    for name, tensor in tensors.items():
        for start in range(0, tensor.shape[0], 4000):
            index = (slice(start, start + 4000), *(slice(0, n) for n in tensor.shape[1:]))
            assert again.tensors[name].read(index).tobytes() == tensor.read(index).tobytes(), name
    # Several gigabytes.
    shutil.rmtree(tmp_path / "m")

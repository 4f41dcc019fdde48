"""GGUF, the file of llama.cpp: written tensor by tensor, with the scaling inside, so that its user needs no flags."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.files import atomic_file
from ctxext.interop.gguf_metadata import check as check  # asked before anything is read
from ctxext.interop.gguf_metadata import hyperparameters, rope_keys
from ctxext.interop.gguf_vocabulary import vocabulary
from ctxext.interop.meta_layout import neighbours, rotary_heads
from ctxext.interop.tensor_blocks import Entry, cast, numpy_dtype
from ctxext.model.config import LlamaConfig
from ctxext.parallel import distributed
from ctxext.rope import RopeScaling
from ctxext.tokenization.tokenizer import Tokenizer

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def save(
    path: str | Path,
    config: LlamaConfig,
    tensors: dict[str, Entry],
    scaling: RopeScaling,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    seq_len: int | None = None,
) -> None:
    """Write one .gguf file, all of it or nothing, one tensor in memory. `tensors`: by HF's names, in HF's layout.

    `dtype` is that of the matrices; vectors are float32. Raises ValueError for what the format cannot say, for an
    existing file and if the package `gguf` is missing, OSError if the disk is full.
    """
    path = Path(path)
    if path.suffix != ".gguf":
        raise ValueError(f"GGUF is one file; give it a name such as {path.name or 'model'}.gguf")
    if path.exists():
        raise ValueError(f"{path} already exists; choose another name or remove it first")
    check(config, scaling, dtype=dtype, seq_len=seq_len)
    library = _library()
    keys, divisors = rope_keys(config, scaling, seq_len or config.max_position_embeddings)
    keys |= hyperparameters(config, path.stem, scaling) | vocabulary(tokenizer, config)
    arrays = tensors | (
        {} if divisors is None else {"rope_freqs": Entry(divisors.shape, "", lambda: divisors)}
    )
    if not distributed.is_primary():  # the first process writes what all of them hold
        for entry in tensors.values():
            entry.read()
        return distributed.barrier()
    with atomic_file(path) as temporary:
        writer = library.GGUFWriter(None, "llama")
        _add_keys(library, writer, keys)
        writer.add_file_type({"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}[dtype])
        if dtype == "q8_0":
            writer.add_quantization_version(library.GGML_QUANT_VERSION)
        kinds = {name: _kind(library, entry, dtype) for name, entry in arrays.items()}
        for name, entry in arrays.items():
            shape = library.quant_shape_to_byte_shape(entry.shape, kinds[name])
            writer.add_tensor_info(
                tensor_name(name), shape, np.dtype(np.uint8), int(np.prod(shape)), kinds[name]
            )
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        try:
            for name, entry in arrays.items():
                array = neighbours(entry.read(), rotary_heads(name, config))
                writer.write_tensor_data(_stored(library, array, kinds[name], name))
        finally:
            writer.close()
    distributed.barrier()


def _library() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise ValueError("writing GGUF needs a package: pip install 'ctxext[gguf]'") from None
    logging.getLogger("gguf").setLevel(logging.WARNING)
    return gguf


def tensor_name(name: str) -> str:
    """GGUF's name of an HF tensor."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{OUTER.get(stem, stem)}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.weight"


def _kind(library: Any, entry: Entry, dtype: str) -> Any:
    return library.GGMLQuantizationType["F32" if len(entry.shape) == 1 else TYPES[dtype]]


def _stored(library: Any, array: np.ndarray, kind: Any, name: str) -> np.ndarray:
    """The bytes of a tensor. Raises ValueError for values that are not finite, or not finite once stored."""
    if kind.name == "Q8_0":
        cast(np.abs(array).max() / 127, numpy_dtype("float16"), name)  # the largest scale
        return library.quants.quantize(cast(array, numpy_dtype("float32"), name), kind)
    dtype = next(ours for ours, theirs in TYPES.items() if theirs == kind.name)
    return cast(array, numpy_dtype(dtype), name).view(np.uint8)


def _add_keys(library: Any, writer: Any, keys: dict[str, Any]) -> None:
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
            continue
        kind = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}[type(value)]
        writer.add_key_value(key, value, library.GGUFValueType[kind])

"""GGUF, the format of llama.cpp, written one tensor at a time.

The scaling is in the file, so that its user needs no flags.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from ctxext import progress
from ctxext.files import atomic_file, written_alone
from ctxext.interop.gguf_library import import_library
from ctxext.interop.gguf_metadata import (
    FILE_TYPES,
    QUANTIZED,
    check,
    hyperparameters,
    rope_keys,
)
from ctxext.interop.gguf_names import architecture_of, tensor_name, to_gguf
from ctxext.interop.gguf_vocabulary import vocabulary
from ctxext.interop.hf_weights import StoredModel, WriteOptions, wait_for_primary
from ctxext.interop.lazy_tensor import LazyTensor, cast, num_values, numpy_dtype
from ctxext.interop.meta_layout import rotary_heads, to_interleaved
from ctxext.model.config import LlamaConfig, merge_ids
from ctxext.parallel import distributed

ROPE_FREQS = "rope_freqs.weight"
"""The tensor that holds one divisor for each frequency."""
ABOUT = ("author", "organization", "license", "license.name", "license.link", "url")
"""Keys of `general.*` that an export of a base that had them has too."""


def is_gguf(path: Path) -> bool:
    """True for a GGUF file, by its name or its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(4) == b"GGUF"


def refuse_directory(directory: Path) -> None:
    """Raise ValueError, with a file to give in its place, for a directory that has GGUF files."""
    names = sorted(path.name for path in directory.glob("*.gguf"))
    if not names:
        return
    others = f" or another of the {len(names)} there" if len(names) > 1 else ""
    raise ValueError(
        f"{directory} is no checkpoint, but a directory with GGUF files; give the file, "
        f"{directory / names[0]}{others}"
    )


def write(path: str | Path, model: StoredModel, options: WriteOptions) -> None:
    """Write one .gguf file, completely or not at all, with one tensor in memory.

    `options.dtype` is that of the matrices; vectors are float32. Raises ValueError for what the
    format cannot represent, for an existing file and if the package `gguf` is missing, OSError if
    the disk is full.
    """
    path = Path(path)
    if path.suffix != ".gguf":
        raise ValueError(f"GGUF is one file; give it a name such as {path.name or 'model'}.gguf")
    if path.exists():
        raise ValueError(f"{path} already exists; choose another name or remove it first")
    config = model.config
    tensors = model.tensors
    dtype = options.dtype
    check(config, model.scaling, window=model.window, dtype=dtype)
    library = import_library("writing GGUF")
    keys, divisors = rope_keys(config, model.scaling, model.window)
    keys |= hyperparameters(config, path.stem, model.scaling)
    keys |= {f"general.{name}": model.about[name] for name in ABOUT if name in model.about}
    stops = merge_ids(
        config.eos_token_id,
        (model.generation_config or {}).get("eos_token_id"),
        model.tokenizer.eos_id,
    )
    keys |= vocabulary(model.tokenizer, config, stops)
    named: dict[str, str] = {}
    for name in tensors:
        new_name = tensor_name(name, config)
        named[new_name] = new_name if new_name in named else name
    arrays = to_gguf(_in_order_of_rows(tensors, config), config)
    if not distributed.is_primary():
        return wait_for_primary(arrays)
    if divisors is not None:
        arrays[ROPE_FREQS] = LazyTensor(divisors.shape, "", lambda: divisors)
    types = {name: _type_of(library, tensor, dtype) for name, tensor in arrays.items()}
    with written_alone(path), atomic_file(path) as temporary:
        writer = library.GGUFWriter(None, architecture_of(config).name)
        _add_keys(library, writer, keys)
        writer.add_file_type(FILE_TYPES[dtype][1])
        if dtype in QUANTIZED:
            writer.add_quantization_version(library.GGML_QUANT_VERSION)
        for name, tensor in arrays.items():
            shape = library.quant_shape_to_byte_shape(tensor.shape, types[name])
            size = int(np.prod(shape))
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, types[name])
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        try:
            for name, tensor in progress.each(arrays.items(), num_values):
                description = tensor.describe(named.get(name, name))
                writer.write_tensor_data(
                    _to_bytes(library, tensor.read(), types[name], description)
                )
        finally:
            writer.close()
    distributed.barrier()


def _in_order_of_rows(tensors: dict[str, LazyTensor], config: LlamaConfig) -> dict[str, LazyTensor]:
    """The tensors with the rows in the order of the architecture."""
    neighbours = architecture_of(config).neighbours
    ordered = {}
    for name, tensor in tensors.items():
        heads = rotary_heads(name, config) if neighbours else None
        if heads is not None:
            read = functools.partial(_read_interleaved, tensor, heads)
            tensor = tensor._replace(read=read, chunks=())
        ordered[name] = tensor
    return ordered


def _read_interleaved(tensor: LazyTensor, heads: int) -> np.ndarray:
    return to_interleaved(tensor.read(), heads)


def _type_of(library: Any, tensor: LazyTensor, dtype: str) -> Any:
    """The format's type for a tensor: vectors are always float32."""
    name = "F32" if len(tensor.shape) == 1 else FILE_TYPES[dtype][0]
    return library.GGMLQuantizationType[name]


def _to_bytes(library: Any, array: np.ndarray, ggml_type: Any, name: str) -> np.ndarray:
    """The bytes of a tensor. Raises ValueError if values are not finite, or not once stored."""
    dtype = next(dtype for dtype, (code, _) in FILE_TYPES.items() if code == ggml_type.name)
    if dtype in QUANTIZED:
        largest_scale = np.abs(array).max() / QUANTIZED[dtype].steps
        cast(largest_scale, numpy_dtype("float16"), name)
        return library.quants.quantize(cast(array, numpy_dtype("float32"), name), ggml_type)
    return cast(array, numpy_dtype(dtype), name).view(np.uint8)


def _add_keys(library: Any, writer: Any, keys: dict[str, Any]) -> None:
    value_types = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, library.GGUFValueType[value_types[type(value)]])

"""GGUF files, read and changed with llama.cpp's own Python package."""

from pathlib import Path

import gguf as library
import numpy as np

KIND = library.GGMLQuantizationType


def keys_of(path: Path) -> dict:
    fields = library.GGUFReader(path).fields.items()
    return {name: field.contents() for name, field in fields if not name.startswith("GGUF.")}


def rewrite(source: Path, path: Path, changes: dict, tensors: dict | None = None) -> Path:
    """The file with other keys, None to leave one out, and other tensors, as (numbers, type)."""
    reader = library.GGUFReader(source)
    writer = library.GGUFWriter(path, "llama")
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    for name, value in (keys_of(source) | changes).items():
        if name == "general.architecture":
            if value != "llama":
                writer.kv_data[0][name] = library.GGUFValue(value, library.GGUFValueType.STRING)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            writer.add_key_value(name, value, library.GGUFValueType[kinds[type(value)]])
    stored = {t.name: (np.array(t.data), t.tensor_type) for t in reader.tensors}
    for name, entry in (stored | (tensors or {})).items():
        if entry is not None:
            writer.add_tensor(name, entry[0], raw_dtype=entry[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantized_types() -> list:
    """Every type with blocks that the package makes numbers of."""
    types = []
    for kind in KIND:
        _, size = library.GGML_QUANT_SIZES[kind]
        try:
            library.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        if kind not in (KIND.F32, KIND.F16, KIND.BF16):
            types.append(kind)
    return types


def random_rows(kind, shape: tuple[int, int]) -> np.ndarray:
    """Bytes of a type that mean finite numbers: quantized ones, or random ones where it cannot."""
    rng = np.random.default_rng(kind)
    try:
        return library.quantize(rng.standard_normal(shape).astype(np.float32), kind)
    except NotImplementedError:
        pass
    block, size = library.GGML_QUANT_SIZES[kind]
    # No byte of a float16 scale is above 0x3f, so that its exponent is not all ones.
    return rng.integers(0, 64, (shape[0], shape[1] // block * size), dtype=np.uint8)

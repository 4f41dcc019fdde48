"""The reference reader of GGUF compared with llama.cpp's package and SentencePiece."""

import inspect
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctxext.interop import gguf
from ctxext.interop.hf_weights import WriteOptions, lazy_tensors
from ctxext.methods import Yarn
from ctxext.prove.gguf_parameters import q8_0
from ctxext.prove.reference.gguf import GGUFReference, frequencies
from ctxext.prove.reference.gguf_file import GGUFFile
from ctxext.tokenization.tokenizer import MODEL, SAMPLE_TEXTS
from support.hf_files import stored_model
from support.llamas import LENGTH, TINY, random_params, tokenizer

library = pytest.importorskip("gguf", reason="needs the extra gguf")


def save(path: Path, dtype: str = "float32") -> Path:
    scaling = Yarn(4.0, beta_fast=8.0)
    model = stored_model(TINY, random_params(TINY), scaling, tokenizer(), seq_len=LENGTH)
    gguf.write(path, model, WriteOptions(dtype))
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_keys_and_numbers_are_those_of_the_package(dtype, tmp_path):
    path = save(tmp_path / "m.gguf", dtype)
    ours, theirs = GGUFFile(path), library.GGUFReader(path)
    fields = theirs.fields.items()
    keys = {name: field.contents() for name, field in fields if not name.startswith("GGUF.")}
    assert ours.keys == keys
    assert len(keys) > 20
    assert ours.tensors.keys() == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        values = library.dequantize(tensor.data, tensor.tensor_type)
        expected = values.reshape(tensor.shape[::-1])
        np.testing.assert_array_equal(ours.numbers(tensor.name), expected, tensor.name)


def test_q8_0_rounds_as_the_package_does():
    rng = np.random.default_rng(0)
    scales = np.geomspace(1e-6, 1e3, 64, dtype=np.float32)[:, None]
    values = rng.standard_normal((64, 96)).astype(np.float32) * scales
    values[3, :32] = 0
    kind = library.GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(
        q8_0(values), library.dequantize(library.quantize(values, kind), kind)
    )


def test_token_ids_are_those_of_sentencepiece(tmp_path):
    reader = GGUFReference(save(tmp_path / "m.gguf"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer().files[MODEL])
    rng = np.random.default_rng(0)
    alphabet = list("etaoin  shrdlu\t\n.,(){}=:_0123é日🙂")
    texts = [*SAMPLE_TEXTS, ""]
    texts += ["".join(rng.choice(alphabet, n)) for n in rng.integers(1, 60, 2000)]
    texts += inspect.getsource(inspect).splitlines()[:500]
    for text, ids in zip(texts, reader.token_ids(texts), strict=True):
        assert ids == [1, *processor.encode(text)], repr(text)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_corrupt_files_are_read_or_refused_with_a_value_error(tmp_path_factory, data):
    good = _good(tmp_path_factory)
    leaves = [entry.read() for entry in lazy_tensors(TINY, random_params(TINY)).values()]
    header = len(good) - 4 * sum(leaf.size for leaf in leaves)
    at = data.draw(st.integers(0, header - 9))
    kind = data.draw(st.sampled_from(["byte", "large", "cut"]))
    bad = bytearray(good)
    if kind == "byte":
        bad[at] = data.draw(st.integers(0, 255))
    elif kind == "large":
        bad[at : at + 8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
    else:
        bad = bad[:at]
    path = tmp_path_factory.getbasetemp() / "bad.gguf"
    path.write_bytes(bytes(bad))
    try:
        reader = GGUFReference(path)
        reader.rope(LENGTH)
    except ValueError as error:
        assert "bad.gguf" in str(error) or "is not read here" in str(error)


@pytest.mark.parametrize(
    "keys, divisors",
    [
        ({"llama.rope.freq_base": -2.6e-39}, None),
        ({"llama.rope.freq_base": math.nan}, None),
        ({"llama.rope.freq_base": "10000"}, None),
        ({"llama.rope.scaling.factor": -4.0}, None),
        ({"llama.rope.scaling.factor": 5e-324}, None),
        ({}, np.array([1, 0], np.float32)),
        ({}, np.array([1, np.inf], np.float32)),
    ],
)
def test_numbers_that_cannot_be_frequencies_are_refused(keys, divisors):
    with pytest.raises(ValueError, match="is not read here"):
        frequencies(keys, divisors, 4)


FILES: dict[str, bytes] = {}


def _good(factory) -> bytes:
    if not FILES:
        FILES["good"] = save(factory.mktemp("good") / "m.gguf").read_bytes()
    return FILES["good"]


def test_numbers_that_are_too_large_do_not_hang_or_fill_memory(tmp_path):
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60)
    array = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**60)
    string = struct.pack("<Q", 1) + b"a" + struct.pack("<IQ", 8, 2**62)
    nested = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    for body in (b"", array, string, nested):
        path = tmp_path / "m.gguf"
        path.write_bytes(header + body)
        with pytest.raises(ValueError, match="is not a complete GGUF file"):
            GGUFFile(path)


def test_another_number_of_divisors_than_pairs_is_refused():
    with pytest.raises(ValueError, match=r"shape \(8,\) for 0 pairs is not read here"):
        frequencies({}, np.ones(8, np.float32), 0)

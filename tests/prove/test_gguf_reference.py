"""The reference reader of GGUF compared with llama.cpp's package and SentencePiece."""

import inspect
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ctxext.interop import gguf
from ctxext.interop.hf_weights import WriteOptions
from ctxext.methods import Yarn
from ctxext.prove.artifact import Artifact
from ctxext.prove.gguf_parameters import q8_0
from ctxext.prove.known_incompatibilities import known_incompatibilities
from ctxext.prove.reference import gguf_file
from ctxext.prove.reference.gguf import GGUFReference, frequencies
from ctxext.prove.reference.gguf_file import GGUFFile
from ctxext.rope import Unscaled
from ctxext.tokenization.sentencepiece_pieces import NORMAL, read_pieces, write_model
from ctxext.tokenization.tokenizer import MODEL, SAMPLE_TEXTS, Tokenizer
from support.hf_files import stored_model
from support.llamas import LENGTH, TINY, random_params, tokenizer

library = pytest.importorskip("gguf", reason="needs the extra gguf")
from support.gguf_files import KIND, dequantized_types, random_rows, rewrite  # noqa: E402

FLOAT_KEYS = ("llama.rope.freq_base", "llama.rope.scaling.factor")


def bits(number: float) -> int:
    """Those of a number as a file of GGUF has it."""
    return struct.unpack("<I", struct.pack("<f", number))[0]


def save(path: Path, dtype: str = "float32", beta_fast: float = 8.0) -> Path:
    """With 32 turns the file has the keys of YaRN, with others a divisor for each frequency."""
    scaling = Yarn(4.0, beta_fast=beta_fast)
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


def test_numbers_of_other_types_are_those_of_the_package(tmp_path):
    """In one file of which every matrix has another type."""
    rows = {f"{kind.name}.weight": (random_rows(kind, (2, 512)), kind) for kind in quantized()}
    path = rewrite(save(tmp_path / "m.gguf"), tmp_path / "types.gguf", {}, rows)
    file = GGUFFile(path)
    assert file.uses_library
    assert not GGUFFile(tmp_path / "m.gguf").uses_library
    assert len(rows) > 15
    for name, (data, kind) in rows.items():
        with np.errstate(all="ignore"):
            expected = library.dequantize(data, kind).reshape(2, 512)
        np.testing.assert_array_equal(file.numbers(name), expected, name)
        assert file.tensors[name].kind == kind.name.lower()


def quantized() -> list:
    return [kind for kind in dequantized_types() if kind != KIND.Q8_0]


def test_types_that_are_not_read_are_named(tmp_path, monkeypatch):
    good = save(tmp_path / "m.gguf")
    integers = {"x": (np.zeros(8, np.int32), KIND.I32)}
    path = rewrite(good, tmp_path / "integers.gguf", {}, integers)
    with pytest.raises(ValueError, match="x in .*integers.gguf has type 26, which is not read"):
        GGUFFile(path)
    other = {"x.weight": (random_rows(KIND.Q4_K, (1, 256)), KIND.Q4_K)}
    path = rewrite(good, tmp_path / "q4_k.gguf", {}, other)
    gguf_file._layout.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="type 12, which needs the package gguf: .*float32, float"):
        GGUFFile(path)
    GGUFFile(good)


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


def float_key(good: bytes, key: str) -> int:
    """Where the value of a key with a 32-bit number is: after its name and its type."""
    return good.index(key.encode()) + len(key) + 4


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(["byte", "large", "cut", *FLOAT_KEYS]),
    at=st.integers(0, 2**20),
    value=st.integers(0, 2**64 - 1),
)
# Found by such a search: the frequencies of a negative base are not numbers.
@example(kind="llama.rope.freq_base", at=0, value=bits(-2.6e-39))
@example(kind="llama.rope.freq_base", at=0, value=bits(0.0))
@example(kind="llama.rope.freq_base", at=0, value=bits(math.nan))
@example(kind="llama.rope.freq_base", at=0, value=bits(math.inf))
@example(kind="llama.rope.scaling.factor", at=0, value=bits(-math.inf))
@example(kind="llama.rope.scaling.factor", at=0, value=bits(1e-45))
def test_corrupt_files_are_read_or_refused_with_a_value_error(tmp_path_factory, kind, at, value):
    """What is read has positive frequencies and a positive factor, all of them finite."""
    good = _good(tmp_path_factory, beta_fast=32.0 if kind in FLOAT_KEYS else 8.0)
    header = len(good) - 4 * TINY.num_parameters
    at %= header - 9
    bad = bytearray(good)
    if kind == "byte":
        bad[at] = value % 256
    elif kind == "large":
        bad[at : at + 8] = struct.pack("<Q", value)
    elif kind == "cut":
        bad = bad[:at]
    else:
        at = float_key(good, kind)
        bad[at : at + 4] = struct.pack("<I", value % 2**32)
    path = tmp_path_factory.getbasetemp() / "bad.gguf"
    path.write_bytes(bytes(bad))
    try:
        reader = GGUFReference(path)
        inv_freq, attention_factor = reader.rope(LENGTH)
    except ValueError as error:
        assert "bad.gguf" in str(error) or "is not read here" in str(error)
    else:
        assert (np.isfinite(inv_freq) & (inv_freq > 0)).all()
        assert math.isfinite(attention_factor)


NOT_A_BASE = (-2.6e-39, -1.0, 0.0, 1.0, math.nan, math.inf, -math.inf, "10000", True, None)
YARN = {"llama.rope.scaling.type": "yarn", "llama.context_length": 64}


@pytest.mark.parametrize(
    "keys, divisors",
    [
        *(({"llama.rope.freq_base": value}, None) for value in NOT_A_BASE),
        *(
            ({"llama.rope.scaling.factor": value}, None)
            for value in (-4.0, 5e-324, math.nan, math.inf, "4", True)
        ),
        *(
            ({"llama.rope.scaling.attn_factor": value}, None)
            for value in (-1.0, 0.0, math.nan, math.inf, "1")
        ),
        *(
            (YARN | {"llama.rope.scaling.original_context_length": value}, None)
            for value in (-64, math.nan, math.inf, "64", [64])
        ),
        ({"llama.rope.scaling.type": "yarn"}, None),
        ({}, np.array([1, 0], np.float32)),
        ({}, np.array([1, np.inf], np.float32)),
        ({}, np.array([1, np.nan], np.float32)),
        ({}, np.array([1, -1], np.float32)),
    ],
)
def test_numbers_that_cannot_be_frequencies_are_refused(keys, divisors):
    with pytest.raises(ValueError, match="is not read here"):
        frequencies(keys, divisors, 4)


FILES: dict[float, bytes] = {}


def _good(factory, beta_fast: float) -> bytes:
    if beta_fast not in FILES:
        path = factory.mktemp("good") / "m.gguf"
        FILES[beta_fast] = save(path, beta_fast=beta_fast).read_bytes()
    return FILES[beta_fast]


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


def test_metadata_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    """Each byte of an array takes many in Python."""
    array = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 1, 5000) + bytes(5000)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array)
    assert GGUFFile(path).keys == {"a": [0] * 5000}
    monkeypatch.setattr(gguf_file, "MAX_METADATA", 5000)
    with pytest.raises(ValueError, match="m.gguf .*more than 5,000 bytes before its tensors"):
        GGUFFile(path)


def test_another_number_of_divisors_than_pairs_is_refused():
    with pytest.raises(ValueError, match=r"shape \(8,\) for 0 pairs is not read here"):
        frequencies({}, np.ones(8, np.float32), 0)


def spelling() -> Tokenizer:
    """A tokenizer in which the merges of plain tokens lead to </s>."""
    pieces = list(read_pieces(tokenizer().files[MODEL]))
    *_, first, second = (
        i for i, piece in enumerate(pieces) if piece.kind == NORMAL and len(piece.text) > 2
    )
    for i, text in ((first, "</"), (second, "s>")):
        pieces[i] = pieces[i]._replace(text=text)
    return Tokenizer({MODEL: write_model(pieces, unk=0, bos=1, eos=2)})


def spelled(path: Path, tokenizer: Tokenizer) -> list[str]:
    artifact = Artifact.recognize(path)
    known = known_incompatibilities(artifact, tokenizer)
    return [entry.effect for entry in known if "makes the special token" in entry.effect]


def test_special_tokens_that_merges_lead_to_are_a_known_incompatibility(tmp_path):
    """SentencePiece does not merge into them, and neither do we; llama.cpp does."""
    spells = spelling()
    model = stored_model(TINY, random_params(TINY), Unscaled(), spells)
    gguf.write(tmp_path / "m.gguf", model, WriteOptions("float32"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=spells.files[MODEL])
    assert 2 not in spells.encode("a</s>b")
    assert spells.encode("a</s>b") == processor.encode("a</s>b")
    (effect,) = spelled(tmp_path / "m.gguf", spells)
    assert "the special token <s>, </s> of a text that spells it" in effect
    assert spelled(save(tmp_path / "n.gguf"), tokenizer()) == []


def test_a_name_by_which_llama_cpp_takes_another_tokenizer_is_named(tmp_path):
    path = rewrite(save(tmp_path / "m.gguf"), tmp_path / "n.gguf", {"general.name": "My Phi-3"})
    known = known_incompatibilities(Artifact.recognize(path), tokenizer())
    assert any("general.name is 'My Phi-3'" in entry.effect for entry in known)
    known = known_incompatibilities(Artifact.recognize(tmp_path / "m.gguf"), tokenizer())
    assert not any("general.name" in entry.effect for entry in known)


@pytest.mark.slow
def test_llama_cpp_merges_into_special_tokens(tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    spells = spelling()
    model = stored_model(TINY, random_params(TINY), Unscaled(), spells)
    gguf.write(tmp_path / "m.gguf", model, WriteOptions("float32"))
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    try:
        assert 2 in theirs.tokenize(b"a</s>b", add_bos=False, special=False)
    finally:
        theirs.close()

"""Attention methods against the outputs of the authors' own code, by the definition of pieces."""

import functools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctxext import methods as m
from ctxext.attention.maps import LogLength
from ctxext.attention.pieces import Attention
from ctxext.rope import Rope, RopeBase
from support.attention_by_definition import by_definition
from support.families import lcg

FOLDER = Path(__file__).parents[1] / "golden"


@functools.cache
def cases_of(file: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{file}.json").read_text())["cases"]


def cases(file: str, *names: str) -> list[Any]:
    chosen = [case for case in cases_of(file) if case["method"] in names]
    return [pytest.param(case, id=case["id"]) for case in chosen]


def scale_of(attention: Attention, positions: Any, seq_len: int = 1) -> np.ndarray:
    """The multiplier of the queries of the first piece."""
    scale = attention.pieces(seq_len)[0].query_scale
    assert scale is not None
    return np.asarray(scale(np.asarray(positions)))


@functools.cache
def inputs(seed: int, T: int, heads: int, head_dim: int, gain: float) -> np.ndarray:
    return gain * lcg(seed, T * heads * head_dim).astype(np.float64).reshape(T, heads, head_dim)


def output(attention: Attention, case: dict[str, Any]) -> np.ndarray:
    """What a method makes of the inputs of a case, [T, N H]."""
    p, given = case["params"], case["inputs"]
    heads = {"q": p["n_heads"], "k": p["n_kv_heads"], "v": p["n_kv_heads"]}
    q, k, v = (
        inputs(given[name], p["T"], count, p["head_dim"], given["gain"])
        for name, count in heads.items()
    )
    pieces = attention.pieces(p["T"])
    out = by_definition(pieces, q, k, v, theta=p["rope_theta"], attention=attention)
    return out.reshape(p["T"], -1)


def assert_output(attention: Attention, case: dict[str, Any], key: str = "output") -> None:
    """Equal in the rows that are stored: all, the last ones, or the first four and the last two."""
    expected = np.array(case[key])
    actual = output(attention, case)
    if "first" in case["output_rows"]:
        actual = np.concatenate([actual[:4], actual[-2:]])
    np.testing.assert_allclose(actual[-len(expected) :], expected, atol=5e-6)


def distances(attention: Attention, T: int) -> np.ndarray:
    """Rotary distance of every pair, NaN where hidden."""
    index = np.arange(T)
    out = np.full((T, T), np.nan)
    for piece in attention.pieces(T):
        distance = piece.query_positions(index)[:, None] - piece.key_positions(index)[None]
        visible = piece.mask.visible(index[:, None], index[None])
        out[visible] = np.broadcast_to(distance, visible.shape)[visible]
    return out


def assert_distances(attention: Attention, rows: list[list[float | None]]) -> None:
    table = distances(attention, len(rows))
    for actual, row in zip(table, rows, strict=True):
        expected = [np.nan if value is None else value for value in row]
        np.testing.assert_allclose(actual[: len(row)], expected, atol=1e-4)


@pytest.mark.parametrize("case", cases("attention2", "dca", "dca_no_temperature"))
def test_dca(case):
    p = case["params"]
    with_temperature = case["method"] == "dca"
    length = p["pretraining_length"] if with_temperature else None
    attention = m.DCA(p["chunk_size"], p["local_window"], training_length=length)
    assert attention.depends_on_length == with_temperature
    assert_output(attention, case)
    if with_temperature:
        scale = scale_of(attention, [0, 5], p["T"])
        np.testing.assert_allclose(scale, case["logit_multiplier"], rtol=2e-6)
        last = distances(attention, p["T"])[-1]
        np.testing.assert_array_equal(last, case["distance_last_row"])


@pytest.mark.parametrize("case", cases("attention2", "rerope", "leaky_rerope"))
def test_rerope(case):
    p = case["params"]
    length = p["training_length"]
    if case["method"] == "rerope":
        attention: Attention = m.Rerope(p["window"], training_length=length)
        assert_output(m.LogTemperature(length, inner=m.Rerope(p["window"])), case)
    else:
        attention = m.LeakyRerope(p["window"], p["scaling_factor"], training_length=length)
    assert_output(attention, case)
    if "distance" in case:
        assert_distances(attention, case["distance"])


@pytest.mark.parametrize("case", cases("attention2", "rerope_query_scale"))
def test_the_scale_of_rerope(case):
    scale = LogLength(case["params"]["training_length"])(np.arange(case["params"]["T"]))
    np.testing.assert_allclose(scale, case["query_scale"], rtol=2e-6)


def weight(name: str, *shape: int) -> np.ndarray:
    """A weight of the golden decoder: a norm, the embedding, or a matrix [out, in]."""
    u = lcg(zlib.crc32(name.encode()), int(np.prod(shape))).astype(np.float64).reshape(shape)
    if "norm" in name:
        return 1 + 0.5 * u
    return 2 * u if "embed" in name else u


def streamed_logits(attention: Attention, p: dict[str, Any], tokens: list[int]) -> np.ndarray:
    """Logits [T, V] of the golden decoder, read in one go."""
    D, N, K = p["hidden"], p["n_heads"], p["n_kv_heads"]
    H, F, T = D // N, p["intermediate"], len(tokens)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        rms = np.sqrt((x**2).mean(-1, keepdims=True) + p["rms_norm_eps"])
        return x / rms * weight(name + ".weight", D)

    x = weight("embed_tokens.weight", p["vocab"], D)[tokens]
    for layer in range(p["layers"]):
        own = f"layers.{layer}."

        def linear(x: np.ndarray, name: str, width: int, own: str = own) -> np.ndarray:
            return x @ weight(f"{own}{name}.weight", width, x.shape[-1]).T

        y = norm(x, own + "input_layernorm")
        q = linear(y, "self_attn.q_proj", N * H).reshape(T, N, H)
        k = linear(y, "self_attn.k_proj", K * H).reshape(T, K, H)
        v = linear(y, "self_attn.v_proj", K * H).reshape(T, K, H)
        out = by_definition(attention.pieces(T), q, k, v, theta=p["rope_theta"])
        x = x + linear(out.reshape(T, -1), "self_attn.o_proj", D)
        y = norm(x, own + "post_attention_layernorm")
        gate = linear(y, "mlp.gate_proj", F)
        up = linear(y, "mlp.up_proj", F)
        x = x + linear(gate / (1 + np.exp(-gate)) * up, "mlp.down_proj", D)
    return norm(x, "norm") @ weight("lm_head.weight", p["vocab"], D).T


@pytest.mark.parametrize(
    "case",
    [case for case in cases("attention2", "streaming_llm") if "visible_keys" in case.values[0]],
)
def test_streaming_llm_read_in_one_go_equals_the_authors_token_by_token(case):
    p = case["params"]
    attention = m.StreamingLLM(p["recent_size"], start_size=p["start_size"])
    seen = [np.flatnonzero(~np.isnan(row)).tolist() for row in distances(attention, p["T"])]
    assert seen == case["visible_keys"]
    logits = streamed_logits(attention, p, case["tokens"])
    np.testing.assert_allclose(logits, case["logits"], atol=2e-5)


@pytest.mark.parametrize("case", cases("attention3", "string"))
def test_string_is_the_decoding_of_the_authors(case):
    p = case["params"]
    attention = m.String(
        p["shifted_offset"], p["local_value"], attention_factor=case["logit_multiplier"] ** 0.5
    )
    if "decode_output" in case:
        last = output(attention, case)[-1]
        np.testing.assert_allclose(last, np.ravel(case["decode_output"]), atol=5e-6)
        expected = case["decode_far_distance"] + case["decode_near_distance"]
        np.testing.assert_array_equal(distances(attention, p["T"])[-1], expected)
    else:  # inside the window both are one
        assert_output(attention, case, "prefill_output")


@pytest.mark.parametrize("case", cases("attention3", "jet_long"))
def test_jet_long(case):
    p = case["params"]
    attention = m.JetLong(p["window"], p["w0"])
    assert_output(attention, case)
    if "distance" in case:
        assert_distances(attention, case["distance"])


@pytest.mark.parametrize("case", cases("attention3", "jet_long_group"))
def test_group_sizes_of_jet_long(case):
    method = m.JetLong(case["params"]["window"], 2048)
    sizes = [method.pieces(length)[1].key_positions.size for length in case["length"]]
    assert sizes == case["group_size"]


@pytest.mark.parametrize("case", cases("attention3", "jet_long_freq", "jet_long_freq_spectrum"))
def test_the_frequency_variant_of_jet_long(case):
    p = case["params"]
    betas = {"beta_fast": p["beta_fast"], "beta_slow": p["beta_slow"]}
    attention = m.JetLongFreq(p["window"], p["w0"], **betas)
    length = p.get("length") or p["T"]
    base = RopeBase(p["head_dim"], p["rope_theta"], 1)
    stretch = attention.stretch(Rope(base.inv_freq), base, length)
    np.testing.assert_allclose(stretch.inv_freq, case["far_inv_freq"], rtol=2e-6)
    scale = scale_of(attention, [0, 5], length)
    np.testing.assert_allclose(scale, case["temperature"], rtol=2e-6)
    if "output" in case:
        assert_output(attention, case)


@pytest.mark.parametrize("case", cases("attention3", "s2_attn"))
def test_s2_attn(case):
    """The flash attention file is free of leaks; the other one wraps the shifted groups round."""
    p = case["params"]
    method: Attention = m.S2Attn(p["group_size"])
    if case["sees_future"]:
        if p["group_size"] % 2:
            with pytest.raises(ValueError, match="must be even"):
                m.S2AttnAsReleased(p["T"], p["group_size"])
            return
        method = m.S2AttnAsReleased(p["T"], p["group_size"])
    index = np.arange(p["T"])
    for piece, key in zip(
        method.pieces(p["T"]),
        ("heads_0_to_half_visible", "heads_half_to_end_visible"),
        strict=True,
    ):
        visible = piece.mask.visible(index[:, None], index[None])
        assert [np.flatnonzero(row).tolist() for row in visible] == case[key]
        assert piece.mask.causal == (not np.triu(visible, 1).any())
    assert_output(method, case)


TEMPERATURES = {
    "ministral3": lambda p: m.Ministral3Temperature(**p),
    "llama4": lambda p: m.Llama4Temperature(**p),
    "entropy_abf": lambda p: m.LogTemperature(p["training_length"]),
    "ssmax": lambda p: m.Ssmax(**p),
}


@pytest.mark.parametrize("case", cases("temperature", *TEMPERATURES))
def test_temperatures_by_position(case):
    attention = TEMPERATURES[case["method"]](case["params"])
    expected = case.get("query_scale") or case["score_scale"]
    np.testing.assert_allclose(scale_of(attention, case["position"]), expected, rtol=2e-6)


def test_the_slopes_of_alibi():
    """Of BLOOM and of MPT: compared in `test_layers` for every number of heads."""
    (piece,) = m.Alibi().pieces(1)
    assert piece.bias is not None
    np.testing.assert_allclose(piece.bias(8), 2.0 ** -np.arange(1.0, 9))
    (sixteen,) = m.Alibi(16.0).pieces(1)
    assert sixteen.bias is not None
    np.testing.assert_allclose(sixteen.bias(4), [2.0**-4, 2.0**-8, 2.0**-12, 2.0**-16])

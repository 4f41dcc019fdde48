"""Frequencies per layer type: golden spectra, config.json, and what cannot have them."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ctxext import methods as m
from ctxext.cli.main import main
from ctxext.cli.rope_view import RopeView
from ctxext.export import same_rope
from ctxext.interop import hf
from ctxext.interop.gguf_metadata import rope_keys
from ctxext.interop.meta_rope import rope_json
from ctxext.interop.ropespec import ConfigRope, layer_ropes_from_config, rope_spec
from ctxext.model.parts import Parts
from ctxext.prove.rope_readers import rope_incompatibilities
from ctxext.rope import Rope, RopeBase, RopeScaling, Unscaled, rope_at
from ctxext.rope_by_length import rotation_by_length
from support import families, tiny

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "layer_ropes.json").read_text())
CASES = {case["id"]: case for case in GOLDEN["cases"]}
LENGTHS = {"olmo3": 65536, "gemma3": 131072}
EXTENDED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
"""Of the larger Gemma 3."""


def alternating(rope_parameters, **changes):
    """The config.json of a tiny Ministral with these."""
    data = {k: v for k, v in families.cases()["mistral-sw4"]["params"].items() if "rope" not in k}
    types = ["sliding_attention", "full_attention"]
    return data | {"layer_types": types, "rope_parameters": rope_parameters} | changes


def as_read(name):
    params = CASES[f"config-{name}"]["params"]
    data = {"max_position_embeddings": LENGTHS[name], "layer_types": params["layer_types"]}
    return layer_ropes_from_config(params | data)


def test_published_files_are_read_by_layer_type():
    """Olmo 3 scales its layers with full attention, Gemma 3 has two thetas."""
    olmo = m.FullAttentionOnly(inner=m.Yarn(8.0, attention_factor=1.2079441541679836))
    assert as_read("olmo3") == ConfigRope(5e5, 8192, olmo, None)
    assert as_read("gemma3") == ConfigRope(1e6, 131072, Unscaled(), 1e4)


@pytest.mark.parametrize("name", ["olmo3", "gemma3"])
def test_spectra_of_each_layer_type_are_those_of_transformers(name):
    entries = {
        kind: CASES[f"layer_rope-{name}-{kind}"]["params"]["rope_parameters"]
        for kind in ("full_attention", "sliding_attention")
    }
    data = {"max_position_embeddings": LENGTHS[name], "layer_types": list(entries)}
    read = layer_ropes_from_config(data | {"rope_parameters": entries})
    base = RopeBase(128, read.theta, read.window, sliding_theta=read.sliding_theta)
    rope = rope_at(read.scaling, base, LENGTHS[name])
    assert rope.sliding is not None
    for kind, actual in (("full_attention", rope), ("sliding_attention", rope.sliding)):
        case = CASES[f"layer_rope-{name}-{kind}"]
        np.testing.assert_allclose(actual.inv_freq, case["inv_freq"], rtol=2e-6)
        np.testing.assert_allclose(actual.attention_factor, case["attention_factor"], rtol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "theta"),
    [
        (m.FullAttentionOnly(inner=m.Yarn(4.0)), None),
        (m.FullAttentionOnly(inner=m.Linear(2.0)), 77.0),
        (m.Yarn(4.0), 77.0),
        (Unscaled(), 77.0),
        (m.FullAttentionOnly(inner=m.CoPE(3, inner=m.Yarn(4.0))), 77.0),
        (m.CoPE(3, inner=m.FullAttentionOnly(inner=m.Yarn(4.0))), None),
        (m.FullAttentionOnly(inner=m.NTK(2.0)), 77.0),
        (m.FullAttentionOnly(inner=m.DynamicNTK(4.0)), None),
    ],
    ids=str,
)
def test_a_written_config_json_rotates_each_layer_alike(scaling, theta):
    config, _ = hf.parse_config(alternating(EXTENDED))
    config = tiny.config(
        **{name: getattr(config, name) for name in ("hidden_act", "family")},
        parts=Parts(sliding_window=4, windowed=(True, False), sliding_rope_theta=theta),
    )
    length = 4 * config.max_position_embeddings
    written = hf.config_json(config, scaling, seq_len=length, dtype="float32")
    assert set(written["rope_parameters"]) == {"full_attention", "sliding_attention"}
    assert not {"rope_theta", "rope_scaling"} & written.keys(), "they would be for all layers"
    read = hf.parse_config(json.loads(json.dumps(written)))
    assert same_rope(read, (config, scaling), length)
    other = (config, m.FullAttentionOnly(inner=m.Yarn(8.0)))
    assert not same_rope(read, other, length)
    for refuses in (rope_json, rope_keys):
        with pytest.raises(ValueError, match="GGUF|Meta's format|llama.cpp"):
            refuses(config, scaling, length)


def test_a_model_whose_layers_are_alike_is_written_as_before():
    scaling = m.FullAttentionOnly(inner=m.Yarn(4.0))
    config = tiny.config()
    assert rope_spec(scaling, config, 128) == rope_spec(scaling.inner, config, 128)
    windows = tiny.config(parts=Parts(sliding_window=4, windowed=(True, False)))
    assert rope_spec(m.FullAttentionOnly(), windows, 64) == rope_spec(Unscaled(), windows, 64)
    same = alternating({kind: dict(EXTENDED["full_attention"]) for kind in EXTENDED})
    flat = alternating(EXTENDED["full_attention"])
    assert hf.parse_config(same) == hf.parse_config(flat)
    full = alternating(
        {"full_attention": EXTENDED["full_attention"]}, layer_types=["full_attention"] * 2
    )
    assert hf.parse_config(full)[1] == m.Linear(8.0)


@pytest.mark.parametrize(
    ("rope_parameters", "changes", "message"),
    [
        (EXTENDED | {"chunked_attention": {}}, {}, "chunked_attention next to the types of layers"),
        ({"full_attention": {}}, {}, "lacks an entry for sliding_attention, which layer_types"),
        (EXTENDED | {"sliding_attention": None}, {}, "lacks an entry for sliding_attention"),
        (EXTENDED, {"layer_types": None}, "by types of layers, but there are no layer_types"),
        (
            {
                kind: EXTENDED["full_attention"] | {"factor": 2.0 * (i + 1)}
                for i, kind in enumerate(EXTENDED)
            },
            {},
            "the second must be the same or default",
        ),
        (EXTENDED, {"rope_theta": 1e6}, "rope_theta is given twice"),
    ],
)
def test_what_layers_cannot_have_is_refused(rope_parameters, changes, message):
    with pytest.raises(ValueError, match=message):
        hf.parse_config(alternating(rope_parameters, **changes))


def test_a_model_with_a_window_in_every_layer_has_nothing_to_scale():
    config = tiny.config(parts=Parts(sliding_window=4))
    with pytest.raises(ValueError, match="every layer of this llama has a window of 4 tokens"):
        config.check_scaling(m.FullAttentionOnly(inner=m.Yarn(4.0)))
    config.check_scaling(m.Yarn(4.0))
    tiny.config().check_scaling(m.FullAttentionOnly(inner=m.Yarn(4.0)))


@dataclasses.dataclass(frozen=True)
class TwoTypes(RopeScaling):
    """A method of one's own, with frequencies per layer type."""

    def rope(self, base, seq_len):
        return Rope(base.inv_freq / 2, sliding=Rope(base.inv_freq / 3, 1.2))


def test_a_class_of_ones_own_gives_each_type_its_frequencies():
    base = RopeBase(8, 1e4, 64)
    rope = rope_at(TwoTypes(), base, 64)
    assert rope.sliding is not None
    rotation = rope.rotation()
    assert rotation.sliding is not None
    np.testing.assert_allclose(rotation.sliding.attention_factor, 1.2)
    config = tiny.config(parts=Parts(sliding_window=4, windowed=(True, False)))
    with pytest.raises(ValueError, match="which cannot be exported"):
        rope_spec(TwoTypes(), config, 64)
    assert not rope.equals(rope_at(Unscaled(), base, 64))
    shown = json.loads(RopeView.of([TwoTypes()], config=config, seq_len=None).json())
    slower = config.rope_base().inv_freq / 3
    assert shown["sliding"] == {"inv_freq": slower.tolist(), "attention_factor": 1.2}
    assert "cannot be exported" in shown["hf_config"]


def test_a_command_shows_the_keys_of_the_checkpoint_it_is_for(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(alternating(EXTENDED)))
    method = ["full-attention-only", "--inner", "yarn", "--factor", "16"]
    assert main(["rope", *method, "--init", str(tmp_path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["hf_config"]["rope_parameters"]
    assert shown["sliding_attention"] == EXTENDED["sliding_attention"]
    assert (shown["full_attention"]["rope_type"], shown["full_attention"]["factor"]) == ("yarn", 16)


@dataclasses.dataclass(frozen=True)
class FromTheWindowOn(RopeScaling):
    """Layers of both types rotate alike up to the window only."""

    depends_on_length = True

    def switch_lengths(self, base):
        return (base.original_max_position_embeddings,)

    def rope(self, base, seq_len):
        sliding = Rope(base.inv_freq / 3) if seq_len > 64 else None
        return Rope(base.inv_freq, sliding=sliding)


def test_types_may_differ_at_some_lengths_only():
    base = RopeBase(8, 1e4, 64)
    chosen = rotation_by_length(FromTheWindowOn(), base).of_lengths(jnp.array([[10, 100]]))
    assert chosen.sliding is not None
    (cos, _) = chosen.sliding.tables(jnp.array([[7, 7]]))
    expected = [np.cos(7 * base.inv_freq), np.cos(7 * base.inv_freq / 3)]
    np.testing.assert_allclose(cos[0], expected, atol=1e-6)


@pytest.mark.check
@pytest.mark.usefixtures("readers")
@pytest.mark.parametrize("family", ["Ministral", "Qwen2", "Qwen3"])
def test_transformers_stops_at_entries_by_layer_type(family):
    """As the known incompatibility says; Gemma 3 and Olmo 3 are the families that have them."""
    import transformers

    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    size = {"num_hidden_layers": 2, "intermediate_size": 16, "vocab_size": 16}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
    made = getattr(transformers, f"{family}Config")
    config = made(**shape, **size, **layers, rope_parameters=EXTENDED)
    known = {one.reader: one for one in rope_incompatibilities(config.to_dict())}
    assert "it stops" in known["transformers 5"].effect
    with pytest.raises(KeyError, match="rope_type"):
        transformers.AutoModelForCausalLM.from_config(config)


def test_documents_choose_by_length_in_both_types():
    base = RopeBase(8, 1e4, 64)
    lists = (1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 3.0, 4.0)
    rotation = rotation_by_length(m.FullAttentionOnly(inner=m.LongRope(4.0, *lists)), base)
    chosen = rotation.of_lengths(jnp.array([[10, 100]]))
    assert chosen.sliding is not None
    positions = jnp.array([[7, 7]])
    (full, _), (sliding, _) = chosen.tables(positions), chosen.sliding.tables(positions)
    assert np.abs(full[0, 0] - full[0, 1]).max() > 0.1
    np.testing.assert_array_equal(sliding[0, 0], sliding[0, 1])
    np.testing.assert_allclose(sliding[0, 0], np.cos(7 * base.inv_freq), atol=1e-6)

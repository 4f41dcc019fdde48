"""One rotary embedding as the keys of config.json, written and read.

transformers 5 reads `rope_parameters`, transformers 4 `rope_theta` and `rope_scaling`; both are
written from one `RopeSpec`, so that they cannot disagree. The types themselves are the rows of
`rope_types.ROPE_TYPES`. Layers with a sliding window may have another one, see `layer_ropes`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ctxext.interop.context_lengths import LONGEST, declared_length, linear_window, token_count
from ctxext.interop.layer_ropes import by_layer_type, flat_configs
from ctxext.interop.rope_types import (
    ROPE_TYPES,
    Keys,
    longest_length,
    longrope_keys,
    number,
    refuse_unknown_keys,
    type_of,
    without_neutral,
)
from ctxext.methods.abf import ABF
from ctxext.methods.custom import Custom
from ctxext.methods.full_attention_only import FullAttentionOnly
from ctxext.methods.linear import Linear
from ctxext.methods.long_rope import LongRope
from ctxext.methods.long_rope2 import LongRope2
from ctxext.methods.ntk import NTK, ntk_theta
from ctxext.methods.ntk_by_parts import NTKByParts
from ctxext.model.config import LlamaConfig
from ctxext.rope import (
    Plain,
    Rope,
    RopeBase,
    RopeScaling,
    Unscaled,
    rope_at,
    scaling_factor,
    scaling_name,
)
from ctxext.rope_by_length import checked_switch_lengths

LARGEST_DIVISOR = 1e12
"""The divisor that stands for a frequency of zero, as JSON has no infinity."""

# Methods that are another one with other settings, or with another theta.
EQUIVALENTS: dict[type, Callable[[Any, RopeBase], tuple[RopeScaling, float]]] = {
    NTKByParts: lambda scaling, base: (scaling.yarn, base.theta),
    NTK: lambda scaling, base: (Unscaled(), ntk_theta(base, float(scaling.factor))),
    Plain: lambda scaling, base: (Unscaled(), base.theta),
    ABF: lambda scaling, base: (Unscaled(), scaling.rope_theta),
    LongRope: lambda scaling, base: (scaling.with_numbers(base), base.theta),
    LongRope2: lambda scaling, base: (scaling.long_rope(base).with_numbers(base), base.theta),
}


@dataclasses.dataclass(frozen=True)
class RopeSpec:
    """One rotary embedding in the terms of config.json."""

    rope_type: str
    keys: Keys
    """The keys of this rope_type, as in its row of `ROPE_TYPES`."""
    rope_theta: float
    window: int
    """The window of pre-training, L, in tokens."""
    length: int
    """The extended window, L', in tokens."""
    sliding: "RopeSpec | None" = None
    """That of layers with a sliding window, where it is another one."""

    @property
    def generic(self) -> bool:
        """True for longrope with equal lists, which represents any static spectrum."""
        return (
            self.rope_type == "longrope" and self.keys["short_factor"] == self.keys["long_factor"]
        )

    def config_keys(self) -> dict[str, Any]:
        """The keys of config.json, in the forms of transformers 4 and 5."""
        parameters = {"rope_type": self.rope_type, **self.keys}
        if self.sliding is not None:
            return self._keys_by_layer_type(self.sliding)
        extended = self.length != self.window
        original = {"original_max_position_embeddings": self.window} if extended else {}
        return {
            "max_position_embeddings": self.length,
            **original,
            "rope_theta": self.rope_theta,
            "rope_scaling": None if self.rope_type == "default" else parameters,
            "rope_parameters": {**parameters, "rope_theta": self.rope_theta},
        }

    def _keys_by_layer_type(self, sliding: "RopeSpec") -> dict[str, Any]:
        """The keys of transformers 5, as transformers 4 has none for two rotary embeddings."""

        def entry(spec: RopeSpec) -> dict[str, Any]:
            extended = spec.rope_type != "default" and self.length != self.window
            original = {"original_max_position_embeddings": self.window} if extended else {}
            return {
                "rope_type": spec.rope_type,
                **spec.keys,
                **original,
                "rope_theta": spec.rope_theta,
            }

        extended = self.length != self.window and self.rope_type == "default"
        original = {"original_max_position_embeddings": self.window} if extended else {}
        return {
            "max_position_embeddings": self.length,
            **original,
            "rope_parameters": by_layer_type(entry(self), entry(sliding)),
        }

    def check_alike(self, format_name: str) -> None:
        """Raise ValueError where layers differ, for a format that holds one rotary embedding."""
        if self.sliding is not None:
            raise ValueError(
                "layers with a window have other frequencies than those with full attention, which "
                f"{format_name} cannot represent; use --to hf"
            )


def rope_spec(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> RopeSpec:
    """How config.json represents `scaling` over `config`, for contexts of `seq_len` tokens.

    A static scaling without its own type becomes longrope with equal lists, which holds any
    spectrum to float32. Raises ValueError, with the reason, for frequencies that follow the length
    in a way the format has no type for.
    """
    base = config.rope_base()
    of_full_layers = dataclasses.replace(base, sliding_theta=None)
    has_window = {kind.window is not None for kind in config.layer_kinds if kind.rotates}
    if has_window == {True}:
        return _spec_of_sliding_layers(scaling, base, seq_len)
    in_full_layers = scaling
    if isinstance(scaling, FullAttentionOnly):
        in_full_layers = scaling.inner
    spec = _spec_of_layers(in_full_layers, of_full_layers, seq_len)
    if True not in has_window or _are_alike(scaling, base, spec.length):
        return spec
    return dataclasses.replace(spec, sliding=_spec_of_sliding_layers(scaling, base, spec.length))


def _are_alike(scaling: RopeScaling, base: RopeBase, length: int) -> bool:
    """Whether layers with a window have the same frequencies as the rest, at every length.

    Frequencies that follow the length may be plain up to `length`, the declared one.
    """
    lengths = (length, 2 * length) if scaling.depends_on_length else (length,)
    ropes = (rope_at(scaling, base, length) for length in lengths)
    return all(rope.of_sliding_layers.equals(rope.of_full_layers) for rope in ropes)


def _spec_of_sliding_layers(scaling: RopeScaling, base: RopeBase, seq_len: int) -> RopeSpec:
    sliding = scaling.rope(base, seq_len).sliding
    if sliding is None:
        return _spec_of_layers(scaling, base.of_sliding_layers, seq_len)
    if not sliding.equals(Rope(base.of_sliding_layers.inv_freq)):
        raise ValueError(
            f"{scaling_name(scaling)} scales layers with a window by other frequencies than those "
            "with full attention, which cannot be exported; plain RoPE in one of them can "
            "(FullAttentionOnly)"
        )
    return _spec_of_layers(Unscaled(), base.of_sliding_layers, seq_len)


def _spec_of_layers(scaling: RopeScaling, base: RopeBase, seq_len: int) -> RopeSpec:
    """`rope_spec` of layers that are alike."""
    name = scaling_name(scaling)
    window = base.original_max_position_embeddings
    length = longest_length(scaling, window, seq_len)
    rope = rope_at(scaling, base, length)
    if rope.leading is not None:
        raise ValueError(
            f"{name} keeps plain RoPE at the first {rope.leading[0]} positions, which config.json "
            "cannot represent; export it without them"
        )
    method = scaling
    theta = base.theta
    if type(scaling) in EQUIVALENTS:
        method, theta = EQUIVALENTS[type(scaling)](scaling, base)
    rope_type = type_of(method, window)
    if rope_type is not None:
        row = ROPE_TYPES[rope_type]
        assert row.to_keys is not None
        keys = row.to_keys(method, window)
        # NTK extends the window too, although it is written as plain RoPE with another theta.
        return RopeSpec(rope_type, keys, theta, window, row.length(scaling, window, seq_len))
    factor = length / window
    if scaling.depends_on_length:
        short, long = _short_and_long(name, scaling, base)
        factor = scaling_factor(scaling) or factor
    else:
        short = long = (
            scaling.divisors if isinstance(scaling, Custom) else _divisors(name, rope, base)
        )
    keys = longrope_keys(rope.attention_factor, factor, window, short=short, long=long)
    return RopeSpec("longrope", keys, theta, window, length)


def _short_and_long(
    name: str, scaling: RopeScaling, base: RopeBase
) -> tuple[list[float], list[float]]:
    """The divisors up to the window and beyond, of a scaling that changes there alone."""
    window = base.original_max_position_embeddings
    ropes = [rope_at(scaling, base, length) for length in (window, window + 1)]
    changes_at_window = scaling.switch_lengths(base) is not None
    if changes_at_window:
        changes_at_window = set(checked_switch_lengths(scaling, base)) <= {window}
    if not changes_at_window or ropes[0].attention_factor != ropes[1].attention_factor:
        raise ValueError(
            f"{name} changes its frequencies with the length of the text, which config.json cannot "
            "represent; export a static scaling at the factor you need, such as Yarn"
        )
    short, long = (_divisors(name, rope, base) for rope in ropes)
    return short, long


def rope_to_config(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> dict[str, Any]:
    """The keys of config.json for `scaling` over `config`. Raises as `rope_spec`."""
    return rope_spec(scaling, config, seq_len).config_keys()


def _divisors(name: str, rope: Rope, base: RopeBase) -> list[float]:
    usable = np.isfinite(rope.inv_freq) & (rope.inv_freq >= 0)
    if not usable.all() or not math.isfinite(rope.attention_factor):
        raise ValueError(f"{name} gives frequencies that are negative or not finite")
    return frequency_divisors(rope, base).tolist()


def frequency_divisors(rope: Rope, base: RopeBase) -> np.ndarray:
    """Frequencies of `base` over those of `rope`, float64 [H/2].

    `LARGEST_DIVISOR` stands for a frequency of zero.
    """
    with np.errstate(divide="ignore"):
        return np.minimum(base.inv_freq / rope.inv_freq, LARGEST_DIVISOR)


class ConfigRope(NamedTuple):
    """What a config.json says of the rotary embeddings of all layers."""

    theta: float
    window: int
    """The window of pre-training, L, in tokens."""
    scaling: RopeScaling
    sliding_theta: float | None
    """That of layers with a sliding window; None: the one of all layers."""


def layer_ropes_from_config(config_json: dict[str, Any]) -> ConfigRope:
    """The rotary embeddings of a config.json, which may be by layer type.

    Raises ValueError as `rope_from_config`, and for layers with a window that have a scaling of
    their own.
    """
    of_full_layers, of_windows = flat_configs(config_json)
    theta, window, scaling = rope_from_config(of_full_layers)
    if of_windows is None:
        return ConfigRope(theta, window, scaling, None)
    sliding_theta, _, sliding_scaling = rope_from_config(of_windows)
    if sliding_scaling != scaling:
        if sliding_scaling != Unscaled():
            raise ValueError(
                f"rope_parameters has {scaling_name(scaling)} for full_attention and "
                f"{scaling_name(sliding_scaling)} for sliding_attention; the second must be the "
                "same or default"
            )
        scaling = FullAttentionOnly(inner=scaling)
    return ConfigRope(theta, window, scaling, None if sliding_theta == theta else sliding_theta)


def rope_from_config(config_json: dict[str, Any]) -> tuple[float, int, RopeScaling]:
    """(rope_theta, original window L in tokens, scaling) of a config.json, in either form or both.

    Raises ValueError naming the key for contradictions, missing lengths, unknown types and keys.
    """
    keys, theta = _one_form(config_json)
    rope_type = keys.get("rope_type") or "default"
    if rope_type not in ROPE_TYPES:
        raise ValueError(
            f"rope_type {rope_type[:80]!r} is not supported; known: {', '.join(ROPE_TYPES)}"
        )
    row = ROPE_TYPES[rope_type]
    if "rope_type" not in keys and "factor" in keys:
        raise ValueError(
            "rope_scaling has a factor but no rope_type, which transformers reads as no scaling at "
            "all; add the rope_type (linear, yarn, ...)"
        )
    refuse_unknown_keys(rope_type, keys)
    partial = _agreed_value("partial_rotary_factor", config_json, keys)
    if "partial_rotary_factor" not in row.keys and partial not in (None, 1.0):
        raise ValueError("partial_rotary_factor other than 1 is not supported")
    window, length = _windows(config_json, rope_type, keys, theta)
    keys = keys | {"partial_rotary_factor": partial}
    return theta, window, row.from_keys(keys, window, length)


def _windows(
    config_json: dict[str, Any], rope_type: str, keys: Keys, theta: float
) -> tuple[int, int]:
    """The original window L and the extended window L', in tokens."""
    key = "original_max_position_embeddings"
    original = token_count({key: _agreed_value(key, config_json, keys)}, key)
    factor = None
    if rope_type == "linear" or keys.get("factor") is not None:
        factor = number(keys, "factor")
    if factor is not None and rope_type == "linear" and original is None:
        original = linear_window(config_json, theta, Linear(factor).factor)
    length = declared_length(config_json, factor)
    if factor == 1:  # nothing was extended
        original = length if original is None else original
    if original is None and ROPE_TYPES[rope_type].needs_window:
        raise ValueError(
            f"rope_type {rope_type!r} needs original_max_position_embeddings, the window before "
            f"extension; transformers would silently assume {length}"
        )
    if original is not None and original > length:
        raise ValueError(
            f"original_max_position_embeddings {original} is longer than max_position_embeddings "
            f"{length}; one of the two is wrong"
        )
    window = length if original is None else original
    if factor is not None and not factor * window < LONGEST:
        raise ValueError(
            f"factor {factor:g} times {window} tokens is more than the {LONGEST - 1} positions "
            "there are"
        )
    return window, length


def _one_form(config_json: dict[str, Any]) -> tuple[Keys, float]:
    """The keys of the scaling without aliases, and theta; both forms may be there if they agree."""
    forms = [
        without_neutral(_without_aliases(name, config_json[name]))
        for name in ("rope_scaling", "rope_parameters")
        if config_json.get(name) is not None
    ]
    theta = _agreed_value("rope_theta", config_json, *forms)
    scalings = [{k: v for k, v in form.items() if k != "rope_theta"} for form in forms]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        one, other = scalings
        differing = sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))
        raise ValueError(
            f"rope_scaling and rope_parameters contradict each other in {', '.join(differing)}; "
            "remove one"
        )
    # Configs from before the key existed are Llama 1 and 2, whose code has this number in it.
    theta = 10000.0 if theta is None else number({"rope_theta": theta}, "rope_theta")
    if theta <= 1:
        raise ValueError(f"rope_theta must be more than 1, got {theta:g}")
    return (scalings[0] if scalings else {}), theta


def _without_aliases(name: str, form: Any) -> Keys:
    """The keys under `name`, with one `rope_type` in place of the older `type`."""
    if not isinstance(form, dict):
        raise ValueError(f"{name} must be an object, got {repr(form)[:80]}")
    rope_types = set()
    for key in ("rope_type", "type"):
        value = form.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{key} must be a name, got {repr(value)[:80]}")
        if value:
            rope_types.add("longrope" if value == "su" else value)  # the first LongRoPE files
    if len(rope_types) > 1:
        raise ValueError(
            f"{name} has both type {form['type']!r} and rope_type {form['rope_type']!r}; remove one"
        )
    keys = {k: v for k, v in form.items() if k not in ("rope_type", "type")}
    return keys | {"rope_type": rope_types.pop()} if rope_types else keys


def _agreed_value(key: str, *sources: dict[str, Any]) -> Any:
    """The value of `key` in whichever sources have it.

    Raises ValueError if they contradict each other.
    """
    values = [source[key] for source in sources if source.get(key) is not None]
    if any(value != values[0] for value in values):
        one, other = (repr(value)[:80] for value in (values[0], values[-1]))
        raise ValueError(f"{key} is given twice, as {one} and {other}; remove the wrong one")
    return values[0] if values else None

"""One rotary embedding, lowered to the keys of config.json and raised from them.

transformers 5 reads `rope_parameters`, transformers 4 `rope_theta` and `rope_scaling`; both come from one object here,
so that they cannot disagree.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ctxext.interop.context_lengths import LONGEST, declared, integer, linear_window
from ctxext.methods.abf import ABF
from ctxext.methods.custom import Custom
from ctxext.methods.linear import Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.long_rope import LongRope, su_attention_factor
from ctxext.methods.ntk import NTK, DynamicNTK, ntk_theta
from ctxext.methods.ntk_by_parts import NTKByParts
from ctxext.methods.p_rope import PRope
from ctxext.methods.yarn import Yarn, yarn_attention_factor
from ctxext.model.config import LlamaConfig
from ctxext.rope import Rope, RopeBase, RopeScaling, Unscaled

LARGEST_DIVISOR = 1e12  # stands for a frequency of zero: JSON has no infinity
COMMON = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
}
KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    # Whether a yarn checkpoint was fine-tuned changes nothing: its factor is static.
    "yarn": {
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "finetuned",
    },
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "longrope": {
        "factor",
        "attention_factor",
        "short_factor",
        "long_factor",
        "short_mscale",
        "long_mscale",
    },
    "proportional": {"factor"},
}


def lower_hf(scaling: RopeScaling, config: LlamaConfig, seq_len: int) -> dict[str, Any]:
    """The keys of config.json that say `scaling` over `config`, for contexts of `seq_len` tokens.

    A static scaling without a type of its own travels as `longrope` with equal lists: any spectrum, to float32.
    Raises ValueError for what depends on the length in a way that the format cannot say.
    """
    scaling = (
        scaling.yarn if isinstance(scaling, NTKByParts) and type(scaling) is NTKByParts else scaling
    )
    window, base = config.max_position_embeddings, config.rope_base()
    factor = float(getattr(scaling, "factor", 1.0))
    length, theta = max(seq_len, round(factor * window)), config.rope_theta
    kind, rope = type(scaling), scaling.rope(base, length)
    if rope.leading is not None:
        raise ValueError(
            f"{kind.__name__} keeps plain RoPE at the first {rope.leading[0]} positions, which "
            "config.json cannot say; export it without them"
        )
    if kind is Unscaled:
        spec: dict[str, Any] = {"rope_type": "default"}
    elif isinstance(scaling, NTK) and kind is NTK:
        spec, theta = {"rope_type": "default"}, ntk_theta(base, factor)
    elif isinstance(scaling, ABF) and kind is ABF:
        spec, theta = {"rope_type": "default"}, scaling.rope_theta
    elif kind is Linear:
        spec = {"rope_type": "linear", "factor": factor}
    elif kind is DynamicNTK:
        spec, length = (
            {"rope_type": "dynamic", "factor": factor},
            window,
        )  # growth is measured from this length
    elif isinstance(scaling, Llama3) and kind is Llama3:
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        length = seq_len if seq_len > window else length  # Llama 3.2 has factor 32 and goes to 16 L
        spec = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": window,
        }
    elif isinstance(scaling, Yarn) and kind is Yarn and _says_yarn(scaling, factor * window):
        spec, length = _yarn(scaling, factor, window), round(factor * window)
    elif isinstance(scaling, LongRope) and kind is LongRope:
        spec = _longrope(
            rope.attention_factor, factor, window, scaling.short_factor, scaling.long_factor
        )
    elif scaling.depends_on_length:
        raise ValueError(
            f"{kind.__name__} changes its frequencies with the length of the text, which config.json "
            "cannot say; export a static scaling at the factor you need, such as Yarn"
        )
    else:
        divisors = (
            scaling.divisors
            if isinstance(scaling, Custom)
            else _divisors(kind.__name__, rope, base)
        )
        spec = _longrope(rope.attention_factor, length / window, window, divisors, divisors)
    original = {} if length == window else {"original_max_position_embeddings": window}
    return {
        "max_position_embeddings": length,
        **original,
        "rope_theta": theta,
        "rope_scaling": None if spec["rope_type"] == "default" else spec,
        "rope_parameters": {**spec, "rope_theta": theta},
    }


def _says_yarn(scaling: Yarn, length: float) -> bool:
    # transformers 4 takes the factor from the two lengths, so they must say the same.
    return scaling.extrapolation_factor == 1 and length == round(length)


def _yarn(scaling: Yarn, factor: float, window: int) -> dict[str, Any]:
    spec = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": window,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
    }
    if scaling.attention_factor not in (None, yarn_attention_factor(factor)):
        spec["attention_factor"] = scaling.attention_factor
    return spec if scaling.truncate else {**spec, "truncate": False}


def _divisors(name: str, rope: Rope, base: RopeBase) -> list[float]:
    if not (
        np.all(np.isfinite(rope.inv_freq))
        and np.all(rope.inv_freq >= 0)
        and math.isfinite(rope.attention_factor)
    ):
        raise ValueError(f"{name} gives frequencies that are negative or not finite")
    with np.errstate(divide="ignore"):
        return np.minimum(base.inv_freq / rope.inv_freq, LARGEST_DIVISOR).tolist()


def _longrope(
    m: float, factor: float, window: int, short: Iterable[float], long: Iterable[float]
) -> dict[str, Any]:
    # For any static spectrum the lists are equal, because readers disagree on when to switch between them; vLLM reads m
    # from the two mscales.
    return {
        "rope_type": "longrope",
        "factor": factor,
        "original_max_position_embeddings": window,
        "attention_factor": float(m),
        "short_factor": list(short),
        "long_factor": list(long),
        "short_mscale": float(m),
        "long_mscale": float(m),
    }


def raise_hf(config_json: dict[str, Any]) -> tuple[float, int, RopeScaling]:
    """(rope_theta, original window L in tokens, scaling) that a config.json says, in either form or both.

    Raises ValueError naming the key for contradictions, missing lengths, unknown types and keys.
    """
    spec, theta = _one_spec(config_json)
    kind = spec.get("rope_type") or "default"
    if kind not in KEYS:
        raise ValueError(f"rope_type {kind[:80]!r} is not supported; known: {', '.join(KEYS)}")
    if kind == "default" and "rope_type" not in spec and "factor" in spec:
        raise ValueError(
            "rope_scaling has a factor but no rope_type, which transformers reads as no scaling at all; "
            "add the rope_type (linear, yarn, ...)"
        )
    unknown = sorted(spec.keys() - KEYS[kind] - COMMON)
    if unknown:
        raise ValueError(
            f"rope_type {kind!r} has no {', '.join(unknown)}; remove what is not needed"
        )
    partial = _agreeing("partial_rotary_factor", config_json, spec)
    if kind != "proportional" and partial not in (None, 1.0):
        raise ValueError("partial_rotary_factor other than 1 is not supported for model_type llama")
    original = _agreeing("original_max_position_embeddings", config_json, spec)
    integer({"original_max_position_embeddings": original}, "original_max_position_embeddings")
    factor = _number(spec, "factor") if kind == "linear" or spec.get("factor") is not None else None
    if factor is not None and kind == "linear" and original is None:
        original = linear_window(config_json, theta, Linear(factor).factor)
    length = declared(config_json, factor)
    if kind in ("yarn", "llama3", "longrope") and original is None:
        raise ValueError(
            f"rope_type {kind!r} needs original_max_position_embeddings, the window before extension; "
            f"transformers would quietly take {length}"
        )
    if kind == "dynamic" and original not in (None, length):
        raise ValueError(
            "rope_type 'dynamic' grows from max_position_embeddings; "
            f"set it to original_max_position_embeddings ({original})"
        )
    if original is not None and original > length:
        raise ValueError(
            f"original_max_position_embeddings {original} is longer than max_position_embeddings "
            f"{length}; one of the two is wrong"
        )
    window = length if original is None else original
    if factor is not None and not factor * window < LONGEST:
        raise ValueError(
            f"factor {factor:g} times {window} tokens is more than the {LONGEST - 1} positions there are"
        )
    return theta, window, _scaling(kind, spec | {"partial_rotary_factor": partial}, window, length)


def _one_spec(config_json: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The scaling without aliases, and theta; old and new keys may both be there if they say the same."""
    forms = {}
    for name in ("rope_scaling", "rope_parameters"):
        form = config_json.get(name)
        if form is None:
            continue
        if not isinstance(form, dict):
            raise ValueError(f"{name} must be an object, got {repr(form)[:80]}")
        for key in ("rope_type", "type"):
            if form.get(key) is not None and not isinstance(form[key], str):
                raise ValueError(f"{key} must be a name, got {repr(form[key])[:80]}")
        # "su" is what the first LongRoPE checkpoints call it.
        kinds = {
            "longrope" if form[key] == "su" else form[key]
            for key in ("rope_type", "type")
            if form.get(key)
        }
        if len(kinds) > 1:
            raise ValueError(
                f"{name} says both type {form['type']!r} and rope_type {form['rope_type']!r}; remove one"
            )
        forms[name] = {k: v for k, v in form.items() if k not in ("rope_type", "type")}
        forms[name] |= {"rope_type": kinds.pop()} if kinds else {}
    theta = _agreeing("rope_theta", config_json, *forms.values())
    specs = [{k: v for k, v in form.items() if k != "rope_theta"} for form in forms.values()]
    if len(specs) == 2 and specs[0] != specs[1]:
        keys = sorted(
            k for k in specs[0].keys() | specs[1].keys() if specs[0].get(k) != specs[1].get(k)
        )
        raise ValueError(
            f"rope_scaling and rope_parameters contradict each other in {', '.join(keys)}; remove one"
        )
    # Configs from before the key existed are Llama 1 and 2, whose code has this number in it.
    theta = 10000.0 if theta is None else _number({"rope_theta": theta}, "rope_theta")
    if theta <= 1:
        raise ValueError(f"rope_theta must be more than 1, got {theta:g}")
    return (specs[0] if specs else {}), theta


def _agreeing(key: str, *places: dict[str, Any]) -> Any:
    """The value of `key` in whichever places have it, which must be the same."""
    values = [place[key] for place in places if place.get(key) is not None]
    if any(value != values[0] for value in values):
        one, other = (repr(value)[:80] for value in (values[0], values[-1]))
        raise ValueError(f"{key} is given twice, as {one} and {other}; remove the wrong one")
    return values[0] if values else None


def _number(spec: dict[str, Any], key: str) -> float:
    value = spec.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e300:
        raise ValueError(
            f"{key} must be a number, got {repr(value)[:80]}"
            if key in spec
            else f"{key} is missing"
        )
    return float(value)


def _scaling(kind: str, spec: dict[str, Any], window: int, length: int) -> RopeScaling:
    if kind == "default":
        return Unscaled()
    if kind == "longrope":
        return _searched(spec, window, length)
    if kind == "proportional":
        given = {
            key: 1.0 if spec.get(key) is None else _number(spec, key)
            for key in ("factor", "partial_rotary_factor")
        }
        return PRope(**given)
    factor = _number(spec, "factor")
    if kind == "linear":
        return Linear(factor)
    if kind == "dynamic":
        return DynamicNTK(factor)
    if kind == "llama3":
        return Llama3(factor, _number(spec, "low_freq_factor"), _number(spec, "high_freq_factor"))
    m = None if spec.get("attention_factor") is None else _number(spec, "attention_factor")
    if (
        m is None and spec.get("mscale") and spec.get("mscale_all_dim")
    ):  # as transformers: both, or neither counts
        top, bottom = (
            0.1 * _number(spec, key) * math.log(factor) + 1 for key in ("mscale", "mscale_all_dim")
        )
        m = top / bottom
    betas = {key: _number(spec, key) for key in ("beta_fast", "beta_slow") if spec.get(key)}
    return Yarn(factor, **betas, attention_factor=m, truncate=bool(spec.get("truncate", True)))


def _searched(spec: dict[str, Any], window: int, length: int) -> RopeScaling:
    short, long = spec.get("short_factor"), spec.get("long_factor")
    if not isinstance(short, list) or not isinstance(long, list):
        raise ValueError("rope_type 'longrope' needs the lists short_factor and long_factor")
    short, long = (tuple(_number({"divisor": d}, "divisor") for d in x) for x in (short, long))
    factor = length / window if spec.get("factor") is None else _number(spec, "factor")
    default = su_attention_factor(factor, window)
    m = default if spec.get("attention_factor") is None else _number(spec, "attention_factor")
    for key in ("short_mscale", "long_mscale"):
        if spec.get(key) not in (None, m):
            raise ValueError(
                f"longrope says {key} {spec[key]} but attention_factor {m}; readers would disagree"
            )
    return (
        Custom(long, m)
        if short == long
        else LongRope(factor, short, long, None if m == default else m)
    )

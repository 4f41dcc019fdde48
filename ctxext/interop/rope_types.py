"""The rope types of config.json: one row per type, used for writing and for reading.

A new scaling that the format has a type for is one more row of `ROPE_TYPES`.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ctxext.methods.custom import Custom
from ctxext.methods.linear import Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.long_rope import LongRope, su_attention_factor
from ctxext.methods.ntk import DynamicNTK
from ctxext.methods.p_rope import PRope
from ctxext.methods.yarn import Yarn, yarn_attention_factor
from ctxext.rope import RopeScaling, Unscaled, scaling_factor

Keys = dict[str, Any]


def scaled_length(scaling: RopeScaling, window: int) -> int:
    """factor x L, in tokens; L for a scaling without a factor."""
    factor = scaling_factor(scaling)
    return window if factor is None else round(factor * window)


def longest_length(scaling: RopeScaling, window: int, seq_len: int) -> int:
    """`max_position_embeddings` of most types: at least `seq_len`, and at least factor x L."""
    return max(seq_len, scaled_length(scaling, window))


class RopeType(NamedTuple):
    """How config.json represents one method.

    L is the original window and L' the extended one, in tokens.
    """

    method: type[RopeScaling]
    keys: frozenset[str]
    """The keys a file may have for this type, besides `COMMON_KEYS`."""
    from_keys: Callable[[Keys, int, int], RopeScaling]
    """(keys, L, L') -> method. Raises ValueError naming the key that is missing or wrong."""
    to_keys: Callable[[Any, int], Keys] | None = None
    """(method, L) -> keys; None for a type that is read and never written."""
    can_write: Callable[[Any, int], bool] = lambda scaling, window: True
    """(method, L) -> whether this type means the same frequencies to every reader."""
    length: Callable[[Any, int, int], int] = longest_length
    """(method, L, requested L') -> `max_position_embeddings`."""
    needs_window: bool = False
    """True where a file without `original_max_position_embeddings` is ambiguous."""


COMMON_KEYS = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
    }
)


NEUTRAL: Keys = {
    "factor": 1.0,
    "attention_factor": 1.0,
    "attn_factor": 1.0,
    "extrapolation_factor": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "short_mscale": 1.0,
    "long_mscale": 1.0,
    "partial_rotary_factor": 1.0,
    "truncate": True,
    "apply_yarn_scaling": True,
}
"""Values that change nothing in any reader, under a type that does not have the key."""


def without_neutral(keys: Keys) -> Keys:
    """The keys that can change something: without null, and without `NEUTRAL` values.

    A key that its type has is kept whatever its value.
    """
    row = ROPE_TYPES.get(keys.get("rope_type") or "default")
    needed = row.keys if row else frozenset()

    def matters(key: str, value: Any) -> bool:
        if value is None:
            return False
        if key in needed or key not in NEUTRAL:
            return True
        neutral = NEUTRAL[key]
        return value != neutral or isinstance(value, bool) != isinstance(neutral, bool)

    return {key: value for key, value in keys.items() if matters(key, value)}


def refuse_unknown_keys(rope_type: str, keys: Keys) -> None:
    """Raise ValueError for keys that this type does not have, with the key to use instead."""
    unknown = sorted(keys.keys() - ROPE_TYPES[rope_type].keys - COMMON_KEYS)
    if rope_type == "yarn" and "attn_factor" in unknown:
        product = number(keys, "attn_factor") * yarn_attention_factor(number(keys, "factor"))
        raise ValueError(
            f"attn_factor {keys['attn_factor']} multiplies YaRN's own factor in vLLM and llama.cpp "
            f"and is ignored by transformers; write attention_factor {product:.6g}, which is the "
            "whole factor, instead"
        )
    if rope_type == "yarn" and "extrapolation_factor" in unknown:
        value = keys["extrapolation_factor"]
        raise ValueError(
            f"extrapolation_factor {value} is read by vLLM and ignored by transformers; if the "
            "model was trained with it, remove the key here and write the frequencies as longrope, "
            f"which both read: ctxext export --method yarn --factor {keys.get('factor')} "
            f"--extrapolation-factor {value}"
        )
    if unknown:
        raise ValueError(
            f"rope_type {rope_type!r} has no {', '.join(unknown)}; remove what is not needed"
        )


def number(keys: Keys, key: str) -> float:
    """The number under `key`. Raises ValueError if it is missing or is not a finite number."""
    value = keys.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e300:
        if key not in keys:
            raise ValueError(f"{key} is missing")
        raise ValueError(f"{key} must be a number, got {repr(value)[:80]}")
    return float(value)


def _optional_number(keys: Keys, key: str) -> float | None:
    return None if keys.get(key) is None else number(keys, key)


# linear, dynamic


def _factor_keys(scaling: Linear | DynamicNTK, window: int) -> Keys:
    return {"factor": float(scaling.factor)}


def _read_dynamic(keys: Keys, window: int, length: int) -> DynamicNTK:
    if window != length:
        raise ValueError(
            "rope_type 'dynamic' grows from max_position_embeddings; "
            f"set it to original_max_position_embeddings ({window})"
        )
    return DynamicNTK(number(keys, "factor"))


# yarn


def _yarn_keys(scaling: Yarn, window: int) -> Keys:
    factor = float(scaling.factor)
    keys: Keys = {
        "factor": factor,
        "original_max_position_embeddings": window,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
    }
    if scaling.attention_factor not in (None, yarn_attention_factor(factor)):
        keys["attention_factor"] = scaling.attention_factor
    if not scaling.truncate:
        keys["truncate"] = False
    return keys


def _yarn_is_unambiguous(scaling: Yarn, window: int) -> bool:
    # transformers 4 takes the factor from the ratio of the two lengths, so L' has to be factor x L.
    length = float(scaling.factor) * window
    return scaling.extrapolation_factor == 1 and length == round(length)


def _read_yarn(keys: Keys, window: int, length: int) -> Yarn:
    factor = number(keys, "factor")
    attention_factor = _optional_number(keys, "attention_factor")
    # As in transformers, mscale counts only together with mscale_all_dim.
    if attention_factor is None and keys.get("mscale") and keys.get("mscale_all_dim"):
        numerator, denominator = (
            0.1 * number(keys, key) * math.log(factor) + 1 for key in ("mscale", "mscale_all_dim")
        )
        attention_factor = numerator / denominator
    betas = {key: number(keys, key) for key in ("beta_fast", "beta_slow") if keys.get(key)}
    truncate = bool(keys.get("truncate", True))
    return Yarn(factor, **betas, attention_factor=attention_factor, truncate=truncate)


# llama3


def _llama3_keys(scaling: Llama3, window: int) -> Keys:
    return {
        "factor": float(scaling.factor),
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": window,
    }


def _llama3_length(scaling: Llama3, window: int, seq_len: int) -> int:
    # Not at least factor x L: Llama 3.2 has factor 32 and an extended window of 16 L.
    return seq_len if seq_len > window else scaled_length(scaling, window)


def _read_llama3(keys: Keys, window: int, length: int) -> Llama3:
    return Llama3(
        number(keys, "factor"), number(keys, "low_freq_factor"), number(keys, "high_freq_factor")
    )


# longrope


def longrope_keys(
    attention_factor: float,
    factor: float,
    window: int,
    *,
    short: Iterable[float],
    long: Iterable[float],
) -> Keys:
    """The keys of longrope for the divisors `short` up to L and `long` beyond.

    Equal lists represent any static spectrum, because readers disagree on when to switch between
    the two.
    """
    return {
        "factor": factor,
        "original_max_position_embeddings": window,
        "attention_factor": float(attention_factor),
        "short_factor": list(short),
        "long_factor": list(long),
        # vLLM takes the attention factor from these two.
        "short_mscale": float(attention_factor),
        "long_mscale": float(attention_factor),
    }


def _long_rope_keys(scaling: LongRope, window: int) -> Keys:
    attention_factor = scaling.attention_factor
    if attention_factor is None:
        attention_factor = su_attention_factor(scaling.factor, window)
    # Names of published lists were replaced by `with_numbers`.
    assert not isinstance(scaling.short_factor, str)
    assert not isinstance(scaling.long_factor, str)
    return longrope_keys(
        attention_factor,
        float(scaling.factor),
        window,
        short=scaling.short_factor,
        long=scaling.long_factor,
    )


def _divisors(keys: Keys, key: str) -> tuple[float, ...]:
    return tuple(number({"divisor": divisor}, "divisor") for divisor in keys[key])


def _read_longrope(keys: Keys, window: int, length: int) -> RopeScaling:
    if not all(isinstance(keys.get(key), list) for key in ("short_factor", "long_factor")):
        raise ValueError("rope_type 'longrope' needs the lists short_factor and long_factor")
    short = _divisors(keys, "short_factor")
    long = _divisors(keys, "long_factor")
    factor = length / window if keys.get("factor") is None else number(keys, "factor")
    default = su_attention_factor(factor, window)
    attention_factor = _optional_number(keys, "attention_factor")
    if attention_factor is None:
        attention_factor = default
    for key in ("short_mscale", "long_mscale"):
        if keys.get(key) not in (None, attention_factor):
            raise ValueError(
                f"longrope has {key} {keys[key]} but attention_factor {attention_factor}; "
                "readers would disagree, so make them equal"
            )
    if short == long:
        return Custom(long, attention_factor)
    return LongRope(factor, short, long, None if attention_factor == default else attention_factor)


# proportional


def _read_proportional(keys: Keys, window: int, length: int) -> PRope:
    factor = _optional_number(keys, "factor")
    partial = _optional_number(keys, "partial_rotary_factor")
    return PRope(
        factor=1.0 if factor is None else factor,
        partial_rotary_factor=1.0 if partial is None else partial,
    )


ROPE_TYPES: dict[str, RopeType] = {
    "default": RopeType(
        Unscaled,
        keys=frozenset(),
        from_keys=lambda keys, window, length: Unscaled(),
        to_keys=lambda scaling, window: {},
    ),
    "linear": RopeType(
        Linear,
        keys=frozenset({"factor"}),
        from_keys=lambda keys, window, length: Linear(number(keys, "factor")),
        to_keys=_factor_keys,
    ),
    "dynamic": RopeType(
        DynamicNTK,
        keys=frozenset({"factor"}),
        from_keys=_read_dynamic,
        to_keys=_factor_keys,
        length=lambda scaling, window, seq_len: window,  # growth is measured from L
    ),
    "yarn": RopeType(
        Yarn,
        keys=frozenset(
            {
                "factor",
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
                "finetuned",  # changes nothing: the factor is static either way
            }
        ),
        from_keys=_read_yarn,
        to_keys=_yarn_keys,
        can_write=_yarn_is_unambiguous,
        length=lambda scaling, window, seq_len: scaled_length(scaling, window),
        needs_window=True,
    ),
    "llama3": RopeType(
        Llama3,
        keys=frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
        from_keys=_read_llama3,
        to_keys=_llama3_keys,
        length=_llama3_length,
        needs_window=True,
    ),
    "longrope": RopeType(
        LongRope,
        keys=frozenset(
            {
                "factor",
                "attention_factor",
                "short_factor",
                "long_factor",
                "short_mscale",
                "long_mscale",
            }
        ),
        from_keys=_read_longrope,
        to_keys=_long_rope_keys,
        needs_window=True,
    ),
    # Written as longrope, which older readers know too.
    "proportional": RopeType(
        PRope,
        keys=frozenset({"factor", "partial_rotary_factor"}),
        from_keys=_read_proportional,
    ),
}


def type_of(scaling: RopeScaling, window: int) -> str | None:
    """The rope_type that represents `scaling` over the window L; None if no type does."""
    for name, row in ROPE_TYPES.items():
        if type(scaling) is row.method and row.to_keys is not None:
            return name if row.can_write(scaling, window) else None
    return None

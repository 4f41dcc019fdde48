"""The shape and the frequencies that a GGUF file declares, as a config.json of the same model.

So that they are checked, and read, by the rules of config.json.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ctxext.interop import validation
from ctxext.interop.families.gguf_architecture import GGUFArchitecture
from ctxext.interop.gguf_metadata import NEUTRAL
from ctxext.interop.meta_rope import SCALED_ROPE_WINDOW
from ctxext.interop.ropespec import frequency_divisors
from ctxext.methods.llama3 import Llama3
from ctxext.methods.yarn import yarn_attention_factor
from ctxext.rope import RopeBase

Keys = Mapping[str, Any]

SIZES = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
}
"""Keys after the architecture's name -> those of config.json."""
SHAPE_KEYS = (*SIZES, "attention.key_length", "attention.value_length", "rope.dimension_count")
ORIGINAL = "rope.scaling.original_context_length"
NUMBERS = ("rope.freq_base", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scale_linear")
RULES: dict[str, validation.Rule] = {
    **dict.fromkeys((*SHAPE_KEYS, "vocab_size", ORIGINAL), validation.SIZE),
    **dict.fromkeys(NUMBERS, validation.NUMBER),
    "rope.scaling.type": (lambda value: type(value) is str, "a name"),
    "rope.scaling.finetuned": validation.FLAG,
}
"""For keys after the architecture's name."""
WITHOUT_EFFECT = ("tensor_data_layout",)
"""Where the file's rows came from; their order is the architecture's in any case."""
YARN_CONSTANTS: dict[str, tuple[float, ...]] = {
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
}
"""The only values that every version of llama.cpp reads alike."""


def shape_keys(keys: Keys, architecture: GGUFArchitecture) -> dict[str, Any]:
    """The keys of the architecture, without its name in front.

    Raises ValueError naming a key that is malformed, that changes the model in a way that is not
    supported, or that is not known.
    """
    prefix = f"{architecture.name}."
    rules = RULES | {architecture.epsilon: validation.EPSILON} | dict(architecture.rules)
    own = {key.removeprefix(prefix): keys[key] for key in keys if key.startswith(prefix)}
    for key, value in own.items():
        try:
            validation.check({key: value}, rules)
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from None
        if key in rules or key in WITHOUT_EFFECT:
            continue
        allowed = NEUTRAL.get(key, YARN_CONSTANTS.get(key, ()))
        if key == "rope.scaling.yarn_ext_factor":
            allowed = (-1.0, 1.0 if own.get("rope.scaling.type") == "yarn" else 0.0)
        elif key == "attention.scale":
            allowed = (0.0, head_dim(own, prefix) ** -0.5)
        if not any(_is_close(value, neutral) for neutral in allowed):
            raise ValueError(
                f"{prefix}{key} {str(value)[:60]} is not supported; use the Hugging Face version "
                "of the model"
            )
    return own


def _is_close(value: Any, neutral: Any) -> bool:
    if isinstance(value, float) and isinstance(neutral, float):
        return bool(np.isclose(value, neutral, rtol=1e-6))
    return type(value) is type(neutral) and value == neutral


def head_dim(own: Keys, prefix: str) -> int:
    """The dimension of a head. Raises ValueError if the keys contradict each other about it."""
    heads = _required(own, "attention.head_count", prefix)
    width = _required(own, "embedding_length", prefix)
    result = own.get("attention.key_length", own.get("rope.dimension_count", width // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, result) != result:
            raise ValueError(
                f"{prefix}{key} {own[key]} in heads of {result} is not supported; use the Hugging "
                "Face version of the model"
            )
    return result


def _required(own: Keys, key: str, prefix: str) -> Any:
    if own.get(key) is None:
        raise ValueError(f"the key {prefix}{key} is missing")
    return own[key]


def config_json(
    own: Keys,
    architecture: GGUFArchitecture,
    factors: Mapping[str, np.ndarray],
    original: int | None,
) -> dict[str, Any]:
    """Llama's config.json, without vocabulary and token ids, for what `shape_keys` returned.

    `factors`: the tensors of divisors, by their names without ".weight". `original`: the window of
    pre-training in tokens where the file does not declare it. Raises ValueError for what is
    missing, contradictory, or not read alike by all versions of llama.cpp.
    """
    prefix = f"{architecture.name}."
    if factors and not architecture.reads_divisors:
        raise ValueError(
            f"{min(factors)}.weight is not read by llama.cpp's architecture {architecture.name}; "
            "use the Hugging Face version of the model"
        )
    data = {
        name: own.get(key) if key == "attention.head_count_kv" else _required(own, key, prefix)
        for key, name in SIZES.items()
    }
    declared = own.get(ORIGINAL)
    if declared is not None and original not in (None, declared):
        raise ValueError(
            f"{prefix}{ORIGINAL} is {declared}, --original {original}; leave out the option"
        )
    data["original_max_position_embeddings"] = original if declared is None else declared
    data["head_dim"] = head_dim(own, prefix)
    data["rms_norm_eps"] = _required(own, architecture.epsilon, prefix)
    data["rope_theta"] = own.get("rope.freq_base", 10000.0)
    data["rope_scaling"] = _rope_scaling(own, prefix, factors, data)
    if data["rope_scaling"] is not None and data["original_max_position_embeddings"] is None:
        data["original_max_position_embeddings"] = data["rope_scaling"].get(
            "original_max_position_embeddings"
        )
    return data


def _rope_scaling(
    own: Keys, prefix: str, factors: Mapping[str, np.ndarray], data: dict[str, Any]
) -> dict[str, Any] | None:
    """`rope_scaling`, as llama.cpp understands the keys and divisors without any flags."""
    kind = own.get("rope.scaling.type", "linear")
    factor = float(own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0)) or 1.0)
    attention_factor = float(own.get("rope.scaling.attn_factor", 1.0))
    window = data["original_max_position_embeddings"]
    divisors = factors.get("rope_freqs")
    if kind == "longrope":
        return _longrope(factors, data, attention_factor)
    if kind == "yarn":
        if divisors is not None:
            raise ValueError(f"rope_freqs.weight together with {prefix}rope.scaling.type yarn")
        _check_window(window)
        default = yarn_attention_factor(factor)
        explicit = {} if attention_factor == 1 else {"attention_factor": attention_factor * default}
        return {"rope_type": "yarn", "factor": factor, **explicit}
    if kind not in ("none", "linear"):
        raise ValueError(f"{prefix}rope.scaling.type {kind:.60} is not supported")
    if kind == "none":
        factor = 1.0
    if divisors is None and attention_factor == 1:
        return None if factor == 1 else {"rope_type": "linear", "factor": factor}
    if divisors is None:
        divisors = np.ones(data["head_dim"] // 2)
    divisors = divisors.astype(np.float64) * factor
    if attention_factor == 1:
        llama3 = _as_llama3(divisors, data)
        if llama3 is not None:
            return llama3
    _check_window(window)
    return _generic(divisors, divisors, attention_factor, data)


def _check_window(window: int | None) -> None:
    if window is None:
        raise ValueError(
            "it does not declare the window of pre-training; give it with --original to import "
            "or prove"
        )


def _as_llama3(divisors: np.ndarray, data: dict[str, Any]) -> dict[str, Any] | None:
    """Llama 3's scaling, if these are its divisors; it has always begun from the same window."""
    window = data["original_max_position_embeddings"] or SCALED_ROPE_WINDOW
    factor = float(divisors.max())
    if not (factor > 1 and divisors.min() > 0 and window <= data["max_position_embeddings"]):
        return None
    if len(divisors) != data["head_dim"] // 2 or not 1 < data["rope_theta"] < 1e300:
        return None
    scaling = Llama3(factor)
    base = RopeBase(data["head_dim"], data["rope_theta"], window)
    expected = frequency_divisors(scaling.rope(base, window), base)
    if not np.allclose(divisors, expected, rtol=1e-5):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": window,
    }


def _longrope(
    factors: Mapping[str, np.ndarray], data: dict[str, Any], attention_factor: float
) -> dict[str, Any]:
    missing = {"rope_factors_short", "rope_factors_long"} - factors.keys()
    if missing:
        raise ValueError(f"rope.scaling.type is longrope, but {min(missing)}.weight is missing")
    _check_window(data["original_max_position_embeddings"])
    short = factors["rope_factors_short"].astype(np.float64)
    long = factors["rope_factors_long"].astype(np.float64)
    return _generic(short, long, attention_factor, data)


def _generic(
    short: np.ndarray, long: np.ndarray, attention_factor: float, data: dict[str, Any]
) -> dict[str, Any]:
    """longrope, with the divisors `short` up to the window of pre-training and `long` beyond."""
    window = data["original_max_position_embeddings"]
    return {
        "rope_type": "longrope",
        "factor": data["max_position_embeddings"] / window,
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "attention_factor": attention_factor,
        "original_max_position_embeddings": window,
    }

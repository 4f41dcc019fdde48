"""Ministral 3: a Mistral whose queries are scaled by the logarithm of their positions."""

from typing import Any

from ctxext.interop import validation
from ctxext.interop.families.base import Family
from ctxext.interop.families.llama import read_llama_like
from ctxext.interop.families.mistral import NO_KEYS, refuse_keys, without_keys
from ctxext.model.config import LlamaConfig
from ctxext.model.parts import Parts
from ctxext.rope import RopeScaling

BETA = "llama_4_scaling_beta"
WINDOW = "original_max_position_embeddings"
LENGTH = "max_position_embeddings"
FORMS = ("rope_parameters", "rope_scaling")


def _read(data: dict[str, Any]) -> tuple[LlamaConfig, RopeScaling]:
    """Raises ValueError as `read_llama_like`, and without the keys of the temperature."""
    keys = data.get("rope_parameters")
    if not isinstance(keys, dict) or keys.get(BETA) is None or keys.get(WINDOW) is None:
        raise ValueError(
            f"rope_parameters needs {BETA} and {WINDOW} for model_type ministral3, whose "
            "temperature transformers takes from them"
        )
    validation.check(keys, {BETA: validation.FINITE})
    beta = float(keys[BETA])
    # Files repeat the extended window here.
    repeated = keys.get(LENGTH)
    if repeated not in (None, data.get(LENGTH)):
        raise ValueError(
            f"rope_parameters has {LENGTH} {str(repeated)[:50]}, another than the config.json "
            "around it; remove the wrong one"
        )
    forms = {name: data[name] for name in FORMS if isinstance(data.get(name), dict)}
    of_rope = {
        name: {key: value for key, value in form.items() if key not in (BETA, LENGTH)}
        for name, form in forms.items()
    }

    def parts(data: dict[str, Any], length: int) -> Parts:
        refuse_keys(data, (*NO_KEYS, "layer_types"), "ministral3")
        return Parts(sliding_window=data.get("sliding_window"), temperature_beta=beta)

    return read_llama_like(data | of_rope, "ministral3", parts)


def _write(config: LlamaConfig) -> dict[str, Any]:
    return without_keys(config, NO_KEYS) | {"sliding_window": config.parts.sliding_window}


def _rope_keys(config: LlamaConfig) -> dict[str, Any]:
    return {BETA: config.parts.temperature_beta, WINDOW: config.max_position_embeddings}


MINISTRAL3 = Family(
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    read_config=_read,
    write_config=_write,
    rope_keys=_rope_keys,
)

"""`rope_parameters` by layer type, {"full_attention": {...}, "sliding_attention": {...}}.

Gemma 3 and Olmo 3 are written so by transformers 5. Only types that `layer_types` names have an
entry.
"""

from typing import Any

FULL = "full_attention"
SLIDING = "sliding_attention"


def by_layer_type(full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    """The two entries as one `rope_parameters`."""
    return {FULL: full, SLIDING: sliding}


def flat_configs(config_json: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A config.json as all layers read it, or as those with full attention and those with a window.

    The second is None where there is only one form. Raises ValueError for entries that are not
    known, or that a type of layers in use lacks.
    """
    parameters = config_json.get("rope_parameters")
    if not isinstance(parameters, dict) or not {FULL, SLIDING} & parameters.keys():
        return config_json, None
    others = sorted(str(key)[:50] for key in parameters.keys() - {FULL, SLIDING})
    if others:
        raise ValueError(
            f"rope_parameters has {', '.join(others)} next to the types of layers; only {FULL} and "
            f"{SLIDING} are supported"
        )
    layer_types = config_json.get("layer_types")
    if not isinstance(layer_types, list):
        raise ValueError(
            "rope_parameters is by types of layers, but there are no layer_types; correct "
            "config.json"
        )
    in_use = [name for name in (FULL, SLIDING) if name in layer_types]
    missing = [name for name in in_use if not isinstance(parameters.get(name), dict)]
    if missing:
        raise ValueError(
            f"rope_parameters lacks an entry for {', '.join(missing)}, which layer_types has"
        )
    flat = [config_json | {"rope_parameters": parameters[name]} for name in in_use]
    if not flat:  # other types of layers, which the family refuses by name
        flat = [{k: v for k, v in config_json.items() if k != "rope_parameters"}]
    return flat[0], flat[1] if len(flat) == 2 else None

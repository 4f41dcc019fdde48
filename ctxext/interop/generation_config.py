"""generation_config.json: how a model wants to be sampled, and the tokens that end its answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxext.files import read_json, within
from ctxext.interop import validation
from ctxext.model.config import LlamaConfig, merge_ids

GENERATION_CONFIG = "generation_config.json"
RULES = {
    "bos_token_id": validation.TOKEN_ID,
    "eos_token_id": validation.TOKEN_IDS,
    "pad_token_id": validation.TOKEN_ID,
    "max_length": validation.SIZE,
}
TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
WITHOUT_EFFECT = ("transformers_version", "_from_model_config")
DEFAULTS = {"use_cache": True}
"""Values that transformers takes without the key, and writes into every model that it saves."""


def read_generation_config(directory: str | Path) -> dict[str, Any] | None:
    """The file's contents, None if there is none.

    Raises ValueError, naming the file, for contents that are not an object or ids that are none.
    """
    path = within(directory, GENERATION_CONFIG)
    if not path.exists():
        return None
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold an object")
    try:
        validation.check(settings, RULES)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return settings


def extended_generation_config(
    settings: Mapping[str, Any] | None, config: LlamaConfig, *, window: int
) -> dict[str, Any] | None:
    """The settings for an export with `window` tokens; None if the model has none.

    They are the source's own. Only `max_length`, the most tokens of prompt and answer, grows to the
    new window, unless it was set below the window of pre-training.
    """
    if settings is None:
        return None
    max_length = settings.get("max_length")
    if max_length is not None and config.max_position_embeddings <= max_length < window:
        return {**settings, "max_length": window}
    return dict(settings)


def different_settings(
    actual: Mapping[str, Any] | None, expected: Mapping[str, Any] | None, config: LlamaConfig
) -> list[str]:
    """The keys in which two files differ; ids that a file leaves out are those of config.json."""
    in_config = {name: getattr(config, name) for name in TOKEN_KEYS}

    def complete(settings: Mapping[str, Any] | None) -> dict[str, Any]:
        given = {
            key: value
            for key, value in (settings or {}).items()
            if value not in (None, DEFAULTS.get(key)) and key not in WITHOUT_EFFECT
        }
        if "eos_token_id" in given:
            given["eos_token_id"] = merge_ids(given["eos_token_id"])
        return {**in_config, **given}

    in_config["eos_token_id"] = merge_ids(config.eos_token_id)
    one = complete(actual)
    other = complete(expected)
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))

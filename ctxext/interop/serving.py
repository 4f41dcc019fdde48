"""Commands that serve an exported directory in other programs, with the whole context."""

import json
import shlex
from typing import Any

HERE = "DIRECTORY"
"""Stands for the export, which may be moved."""


def serve_commands(settings: dict[str, Any], window: int, *, gguf: bool) -> list[str]:
    """One command per program for a directory with this config.json.

    `window`: tokens of context. `gguf`: whether that format knows the family.
    """
    commands = [
        f"vllm serve {HERE} --max-model-len {window}",
        f"python -m sglang.launch_server --model-path {HERE} --context-length {window}",
    ]
    parameters = settings.get("rope_parameters") or {}
    if gguf and parameters.get("rope_type") != "dynamic":
        commands += [
            f"ctxext export {HERE} --to gguf --dtype float16 --out model.gguf",
            f"llama-server --model model.gguf --ctx-size {window}",
        ]
    return commands


def override_commands(settings: dict[str, Any], window: int) -> list[str]:
    """The same frequencies for the base as it is, without this directory; none if it has none.

    Lists, one number per pair of dimensions, are too long for a command line.
    """
    parameters = settings.get("rope_parameters") or {}
    has_list = any(isinstance(value, list) for value in parameters.values())
    by_layer_type = any(isinstance(value, dict) for value in parameters.values())
    is_plain = parameters.get("rope_type", "default") == "default"
    if not parameters or has_list or is_plain or by_layer_type:
        return []
    old = {key: value for key, value in parameters.items() if key != "rope_theta"}
    length = {"max_position_embeddings": settings["max_position_embeddings"]}
    vllm = shlex.quote(json.dumps({"rope_parameters": parameters, **length}))
    sglang = shlex.quote(json.dumps({"rope_scaling": old, **length}))
    return [
        f"vllm serve BASE --max-model-len {window} --hf-overrides {vllm}",
        f"python -m sglang.launch_server --model-path BASE --context-length {window} "
        f"--json-model-override-args {sglang}",
    ]

"""What the files of a PEFT adapter hold next to its numbers.

Most of adapter_config.json shows in the weights that come of it. Some keys change only what further
training or another program would do, and are named here.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ctxext import loading
from ctxext.files import read_json
from ctxext.interop import hf, peft_base, peft_reader, peft_writer
from ctxext.interop.peft_settings import USED, WITHOUT_EFFECT, read_settings
from ctxext.model.config import LlamaConfig
from ctxext.model.trainable import LoRA
from ctxext.prove.artifact import Artifact
from ctxext.tokenization.tokenizer import Tokenizer

TASKS = (None, "", "CAUSAL_LM")
"""Values of task_type that make PEFT open a model that continues texts."""
OF_WHO_SAVED_IT = (
    "auto_mapping",
    "base_model_name_or_path",
    "init_lora_weights",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
)
"""Keys that PEFT fills in by itself when it saves an adapter again, and the place of the base."""
SETS = ("target_modules", "modules_to_save")
DEFAULTS = {"bias": "none"}


def compare_adapter(artifact: Artifact, lora: LoRA | None) -> tuple[list[str], list[str]]:
    """Compare an adapter's files with its base, and with what a run that trained `lora` writes.

    Returns what is wrong, and what may have no effect on the weights, both in words. Raises
    ValueError for files that cannot be read.
    """
    base = loading.read_checkpoint(artifact.base)
    config = artifact.path / peft_reader.CONFIG
    read_settings(config)  # refuses what is no setting, before the weights are looked at
    settings = read_json(config)
    different = [*_names(artifact), *_task(settings), *_recorded_config(artifact, base.config)]
    noted = list(_tokenizer_files(artifact, base.tokenizer))
    if lora is not None:
        noted += _settings(settings, peft_writer.expected_config_json(base.config, lora, base=""))
    return different, noted


def _names(artifact: Artifact) -> Iterator[str]:
    unknown = peft_reader.names_unknown_to_peft(artifact.path)
    if unknown:
        others = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
        yield (
            f"PEFT passes over {unknown[0]:.150}{others}: names have to begin with "
            f"{peft_reader.PREFIX}, without what training tools put before them"
        )


def _task(settings: dict[str, Any]) -> Iterator[str]:
    task = settings.get("task_type")
    if task not in TASKS:
        yield (
            f"task_type in {peft_reader.CONFIG} is {task!r:.60}, not 'CAUSAL_LM': PEFT opens it as "
            "another kind of model"
        )


def _recorded_config(artifact: Artifact, actual: LlamaConfig) -> Iterator[str]:
    """Yield what differs between the base's config.json and the one that the adapter records.

    Sizes and frequencies are checked where the adapter is opened.
    """
    if not artifact.base_is_recorded:
        return
    recorded, _ = hf.read_config(artifact.path)
    for field in dataclasses.fields(LlamaConfig):
        before = getattr(recorded, field.name)
        now = getattr(actual, field.name)
        if before != now:
            yield (
                f"{field.name} in config.json of the base is {now}; the adapter records {before} "
                "from its training"
            )


def _tokenizer_files(artifact: Artifact, tokenizer: Tokenizer) -> Iterator[str]:
    names = peft_base.other_tokenizer_files(artifact.path, tokenizer)
    if names:
        yield (
            f"{', '.join(names)} next to the adapter are not those of its base, which are read "
            "here; a program that takes the tokenizer from the adapter's directory reads others"
        )


def _settings(stored: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of adapter_config.json that the run would not have written."""
    for key in (*USED, *WITHOUT_EFFECT):
        actual_value = _value(stored, key)
        expected_value = _value(expected, key)
        if key not in OF_WHO_SAVED_IT and actual_value != expected_value:
            yield (
                f"{key} in {peft_reader.CONFIG} is {_in_words(stored, key)}, not "
                f"{_in_words(expected, key)}"
            )


def _value(settings: dict[str, Any], key: str) -> Any:
    """A setting, so that two spellings of the same are equal; None for what is off or absent."""
    value = settings.get(key) or DEFAULTS.get(key)
    if key in SETS and isinstance(value, list):
        return sorted(map(str, value))
    return value


def _in_words(settings: dict[str, Any], key: str) -> str:
    return f"{settings[key]!r:.100}" if key in settings else "missing"

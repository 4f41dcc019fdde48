"""adapter_config.json as others write it: which modules have adapters, of what rank and scale.

Modules are chosen by PEFT's own rules, so that an adapter that lacks one is noticed.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxext.files import read_json
from ctxext.interop import validation

WAY_OUT = "merge the adapter with PEFT, then import the result"
PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base's weights as they are; the others change them."""
USED = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "bias",
    "init_lora_weights",
)
WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
)
"""Keys that do not change what an adapter of a Llama computes when it is run."""
ALL_LINEAR = "all-linear"
"""The target_modules that stand for every matrix of the layers."""
LONGEST_PATTERN = 2000
MOST_STEPS = 10**6
"""Of matching one name with a pattern."""
MOST_ENTRIES = 10**4
"""Of a list or an object; there is at most one for each module."""


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """The settings of a LoRA in adapter_config.json."""

    rank: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    targets: str | tuple[str, ...] = ()
    excluded: str | tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()

    def of_base(self, matrices: Sequence[str], defaults: tuple[str, ...]) -> "AdapterSettings":
        """The settings with names in place of those that PEFT chooses by the base.

        `matrices`: the modules of all layers. `defaults`: PEFT's choice where none are named.
        """
        if self.targets == ALL_LINEAR:
            return dataclasses.replace(self, targets=tuple(matrices))
        return self if self.targets else dataclasses.replace(self, targets=defaults)

    def has_adapter(self, module: str) -> bool:
        """Whether PEFT puts an adapter at a module, by its full name in the base."""
        if self.excluded and _names(self.excluded, module):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.modules_to_save):
            return False
        if not _names(self.targets, module):
            return False
        if isinstance(self.targets, str) or not self.layers or module in self.targets:
            return True
        return _layer_of(module, self.layers_pattern) in self.layers

    def is_saved_whole(self, module: str) -> bool:
        """Whether PEFT stores the module itself, in place of the base's."""
        return any(module.endswith(name) for name in self.modules_to_save)

    def rank_of(self, module: str) -> int:
        """The rank R of the module's adapter."""
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """The factor s of the module's adapter: alpha / R, or alpha / sqrt(R) with rslora."""
        rank = self.rank_of(module)
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (rank**0.5 if self.rslora else rank)


def _names(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return module in names or any(module.endswith(f".{name}") for name in names)


def _layer_of(module: str, patterns: tuple[str, ...]) -> int | None:
    """The number of the layer that a module is in."""
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        return int(match[1]) if match else None
    for pattern in patterns:
        match = re.match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", module)
        if match:
            return int(match["layer"])
    return None


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def read_settings(path: Path) -> AdapterSettings:
    """The settings in an adapter_config.json.

    Raises ValueError naming the file and the key for what is malformed, and for anything but a LoRA
    whose merged weights follow from its own tensors and the base's.
    """
    data = read_json(path)
    if not isinstance(data, dict) or data.get("peft_type") != "LORA":
        raise ValueError(f"{path}: only adapters of peft_type LORA are supported; {WAY_OUT}")
    try:
        _check_supported(data)
        _check_dropout(data.get("lora_dropout"))
        return AdapterSettings(
            rank=_rank("r", data.get("r")),
            alpha=_alpha("lora_alpha", data.get("lora_alpha")),
            rslora=bool(data.get("use_rslora")),
            dora=bool(data.get("use_dora")),
            rank_pattern=_patterns(data, "rank_pattern", _rank),
            alpha_pattern=_patterns(data, "alpha_pattern", _alpha),
            targets=_text_or_texts(data, "target_modules"),
            excluded=_text_or_texts(data, "exclude_modules"),
            layers=_layers(data.get("layers_to_transform")),
            layers_pattern=tuple(_name(name) for name in _texts(data, "layers_pattern")),
            modules_to_save=tuple(_expression(name) for name in _texts(data, "modules_to_save")),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_supported(data: dict[str, Any]) -> None:
    if data.get("bias", "none") is None:
        raise ValueError('bias null stops PEFT too; write "none", if no biases were trained')
    if data.get("bias", "none") != "none":
        raise ValueError(f"bias {data['bias']!r} is not supported, only 'none'; {WAY_OUT}")
    unsupported = sorted(key for key in data.keys() - {*USED, *WITHOUT_EFFECT} if data[key])
    if unsupported:
        raise ValueError(f"{unsupported[0]:.99} is not supported; {WAY_OUT}")
    if data.get("init_lora_weights") not in PLAIN_INITS:
        raise ValueError(
            f"init_lora_weights {str(data['init_lora_weights'])[:50]!r} changes the base too; "
            f"{WAY_OUT}"
        )


def _check_dropout(value: Any) -> None:
    """Raise ValueError for a rate that PEFT cannot make a layer of, though no reader drops out."""
    if value is None:
        return
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"lora_dropout must be a number from 0 to 1, got {str(value)[:50]!r}")


def _rank(key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= validation.LARGEST_SIZE:
        raise ValueError(
            f"{key} must be a whole number from 1 to {validation.LARGEST_SIZE}, got "
            f"{str(value)[:50]!r}"
        )
    return value


def _alpha(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e30:
        raise ValueError(f"{key} must be a positive number, got {str(value)[:50]!r}")
    return float(value)


def _patterns(data: dict[str, Any], key: str, read: Any) -> dict[str, Any]:
    patterns = data.get(key) or {}
    if not isinstance(patterns, dict) or len(patterns) > MOST_ENTRIES:
        raise ValueError(f"{key} must be an object, got {str(patterns)[:50]!r}")
    return {_expression(name): read(f"{key} of {name:.99}", v) for name, v in patterns.items()}


def _text_or_texts(data: dict[str, Any], key: str) -> str | tuple[str, ...]:
    value = data.get(key)
    return _expression(value) if isinstance(value, str) else _texts(data, key)


def _texts(data: dict[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key) or ()
    values = [value] if isinstance(value, str) else value
    is_list = isinstance(values, list | tuple) and len(values) <= MOST_ENTRIES
    if not is_list or not all(isinstance(text, str) for text in values):
        raise ValueError(f"{key} must be a list of names, got {str(value)[:50]!r}")
    return tuple(values)


def _layers(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    values = [number for number in values if number is not None]
    if not all(type(number) is int for number in values):
        raise ValueError(f"layers_to_transform must be a list of numbers, got {str(value)[:50]!r}")
    return tuple(values)


def _expression(pattern: str) -> str:
    """A regular expression of somebody else, if matching it is sure to end soon.

    A quantifier may try every length of a module's name, a group each of its alternatives.
    """
    quantifiers = len(re.findall(r"[*+?{]", pattern))
    alternatives = pattern.count("|") + 1
    steps = 40**quantifiers * alternatives ** pattern.count("(")
    repeated_group = re.search(r"\)[*+{]", pattern)
    if len(pattern) > LONGEST_PATTERN or steps > MOST_STEPS or repeated_group:
        raise ValueError(f"the pattern {pattern[:50]!r} is too complicated; {WAY_OUT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Python will read in another way one day
            re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, FutureWarning, DeprecationWarning, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern {pattern[:50]!r} is malformed: {error}") from None
    return pattern


def _name(text: str) -> str:
    if not re.fullmatch(r"[\w.]+", text):
        raise ValueError(f"layers_pattern: {text[:50]!r} is not a plain name; {WAY_OUT}")
    return text

"""The base of an adapter: which one it was trained on, and with which tokenizer.

A base is known by its name, and by the checksum that our own adapters record.
"""

import json
from pathlib import Path
from typing import Any

from ctxext.files import read_json
from ctxext.interop.peft_reader import CONFIG
from ctxext.model.quantized import QUANTIZED
from ctxext.tokenization.tokenizer import Tokenizer
from ctxext.tokenization.tokenizer_files import FILES

BASE = "base.json"
"""The number type, the checksum and, under quantize, the form of the quantized kernels of the base.

Only our adapters have the file.
"""
DTYPES = ("float32", "bfloat16")
HUB_CACHE = "models--"
"""How the name of a model begins in the cache of the hub: models--owner--name/snapshots/..."""


def recorded_base(adapter: Path) -> dict[str, str] | None:
    """The `dtype` and `checksum` of the base that an adapter records; None if it records none.

    `quantize` is there too if the base was quantized: a name of `QUANTIZED`. Raises ValueError for
    a file that is malformed.
    """
    path = adapter / BASE
    if not path.is_file():
        return None
    values = read_json(path)
    is_object = isinstance(values, dict)
    if not is_object or values.get("dtype") not in DTYPES or "checksum" not in values:
        raise ValueError(
            f"{path} must hold the dtype ({' or '.join(DTYPES)}) and the checksum of the base"
        )
    if values.get("quantize", "nf4") not in QUANTIZED:
        raise ValueError(f"{path}: quantize must be one of {', '.join(QUANTIZED)}")
    return values


def named_base(adapter: Path) -> str:
    """The base that adapter_config.json names, "" if it names none."""
    settings = read_json(adapter / CONFIG)
    named = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    return named if isinstance(named, str) else ""


def another_base(adapter: Path, base: Path) -> str:
    """The name of the base in adapter_config.json if it is not that of `base`, else "".

    A name on the hub, or a path that is not there, is compared by its last part with the name of
    the directory, of its place in the hub's cache, and the one in its config.json. A path that is
    there must be `base` or a directory in it.
    """
    named = named_base(adapter)
    if not named:
        return ""
    place = Path(named).expanduser()
    if place.exists():
        return "" if place.resolve().is_relative_to(base.resolve()) else named
    return "" if _last_part(named) in _names(base) else named


def other_tokenizer_files(adapter: Path, tokenizer: Tokenizer) -> list[str]:
    """The names of tokenizer files next to an adapter that are not those of its base."""
    return [
        name
        for name in FILES
        if (adapter / name).is_file()
        and not _is_same_file((adapter / name).read_bytes(), tokenizer.files.get(name))
    ]


def _is_same_file(content: bytes, other: bytes | None) -> bool:
    """Whether two files are equal, as JSON if they are that."""
    if other is None or content == other:
        return other is not None
    try:
        return json.loads(content) == json.loads(other)
    except (ValueError, RecursionError):
        return False


def _names(base: Path) -> set[str]:
    names = {base.name, base.resolve().name}
    names |= {part.rpartition("--")[2] for part in base.parts if part.startswith(HUB_CACHE)}
    config = base / "config.json"
    values: Any = read_json(config) if config.is_file() else {}
    recorded = values.get("_name_or_path") if isinstance(values, dict) else None
    return {_last_part(name) for name in (*names, recorded) if isinstance(name, str) and name}


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()

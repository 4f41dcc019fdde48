"""Context-extension methods, one file per paper, found by looking into this folder.

Each extends one of the three seams: RopeScaling, Attention or Positions.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.attention.pieces import Attention, Causal
from ctxext.discovery import classes_in_package
from ctxext.nearest import nearest
from ctxext.positions import Contiguous, Positions
from ctxext.rope import Plain, RopeBase, RopeScaling, Unscaled

SEAMS: dict[str, type] = {"rope": RopeScaling, "attention": Attention, "positions": Positions}


@functools.cache
def all_methods() -> dict[str, type]:
    """Every method by its command-line name, such as "dynamic-ntk"."""
    in_files = classes_in_package(__name__, tuple(SEAMS.values()))
    return {method_name(cls): cls for cls in (Unscaled, Plain, Causal, Contiguous, *in_files)}


def method_name(method: Any) -> str:
    """Kebab-case name of a method class or instance, such as dynamic-ntk for DynamicNTK."""
    name = (method if isinstance(method, type) else type(method)).__name__
    if name == "Unscaled":
        return "none"
    for word in ("PoSE", "CoPE", "NoPE", "LoRA"):
        name = name.replace(word, word.capitalize())
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name)
    return words.lower()


def label(methods: Iterable[Any]) -> str:
    """The name of some methods in records and tables: "yarn(factor=4)", joined by " + ".

    Fields at their defaults are left out; no method is "none".
    """
    labels = []
    for method in methods:
        fields = dataclasses.fields(method)
        changed = [f for f in fields if getattr(method, f.name) != f.default]
        values = [f"{f.name}={_short(getattr(method, f.name))}" for f in changed]
        labels.append(method_name(method) + (f"({', '.join(values)})" if values else ""))
    return " + ".join(labels) or "none"


def _short(value: Any) -> str:
    """A number as it is; a long vector as its length and six digits of its hash; names joined.

    A wrapped method has its own label.
    """
    if isinstance(value, RopeScaling | Attention):
        return label([value])
    if isinstance(value, tuple) and value and all(isinstance(item, str) for item in value):
        return "/".join(value)
    if isinstance(value, tuple) and len(value) > 4:
        digest = hashlib.sha256(repr(tuple(map(float, value))).encode()).hexdigest()
        return f"{len(value)} values #{digest[:6]}"
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def seam(method: type) -> str:
    """Which of "rope", "attention", "positions" a method class belongs to."""
    return next(name for name, base in SEAMS.items() if issubclass(method, base))


def find(name: str) -> type:
    """The class called `name`: a command-line name, an alias, a class name, or FILE.py:Class.

    Raises ValueError with a suggestion for an unknown name.
    """
    if ".py:" in name:
        method = class_in_file(name)
        if not issubclass(method, tuple(SEAMS.values())):
            file, _, class_name = name.rpartition(":")
            raise ValueError(
                f"{file} has no method class {class_name}; "
                "it must extend RopeScaling, Attention or Positions"
            )
        return method
    methods = all_methods()
    names = dict(methods)
    for method in methods.values():
        names |= {alias: method for alias in getattr(method, "aliases", ())}
        names[method.__name__.lower()] = method
    key = name.lower().replace("_", "-")
    if key in names:
        return names[key]
    close = nearest(key, names, close=0.5)
    hint = f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(methods))}"
    raise ValueError(f"there is no method {name!r}; {hint} (a file works too: FILE.py:Class)")


def class_in_file(name: str) -> type:
    """The class that FILE.py:Class names; imports the file, once. Raises ValueError without it."""
    file, _, class_name = name.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"{file} does not exist; give a method as FILE.py:Class")
    module_name = f"_ctxext_method_{path.stem}_{abs(hash(str(path))):x}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look up the module of their class
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    found = getattr(sys.modules[module_name], class_name, None)
    if not inspect.isclass(found):
        raise ValueError(f"{file} has no class {class_name}")
    return found


def required_fields(method: type) -> list[dataclasses.Field]:
    """The fields of a method that have no default."""
    return [
        field
        for field in dataclasses.fields(method)
        if field.default is field.default_factory is dataclasses.MISSING
    ]


def make(name: str, **fields: Any) -> Any:
    """An instance of the method `name`. Raises ValueError naming missing or unknown fields."""
    return build(find(name), name, fields)


def build(method: type, name: str, fields: dict[str, Any]) -> Any:
    """An instance of `method`, which messages call `name`.

    Raises ValueError for missing or unknown fields.
    """
    known = [field.name for field in dataclasses.fields(method)]
    unknown = [field for field in fields if field not in known]
    missing = [field.name for field in required_fields(method) if field.name not in fields]
    if unknown or missing:
        wrong = f"has no field {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise ValueError(f"method {name!r} {wrong}; its fields are: {', '.join(known) or 'none'}")
    return method(**fields)


def example(method: type, base: RopeBase, *, factor: float) -> Any:
    """An instance of a method, by its required fields alone, that stretches `base` by `factor`.

    A field's value is its metadata["example"] if it declares one, or follows from its name if that
    is a standard one, or from its type: a method in a new file needs no entry anywhere else. Raises
    ValueError if the method refuses these values.
    """
    types = typing.get_type_hints(method)
    reason: Exception | None = None
    for fraction in (False, True):
        values = {
            field.name: _example_value(field, types[field.name], base, factor, fraction)
            for field in required_fields(method)
        }
        try:
            return method(**values)
        except (TypeError, ValueError) as error:
            reason = error
    raise ValueError(
        f"{method.__name__} refuses the values of its example ({reason}); declare one for each "
        'required field, such as: power: float = field(metadata={"example": 0.5})'
    )


def _example_value(
    field: dataclasses.Field, kind: Any, base: RopeBase, factor: float, fraction: bool
) -> Any:
    """The value of one field; fraction: a number that follows from its type alone is in 0 .. 1."""
    if "example" in field.metadata:
        return field.metadata["example"]
    num_pairs = base.head_dim // 2
    length = round(factor * base.original_max_position_embeddings)
    by_name: dict[str, Any] = {
        "factor": factor,
        "rope_theta": 50 * base.theta,
        "attention_factor": 1.1,
        "max_position_embeddings": length,
        "short_factor": (1.0,) * num_pairs,
        "long_factor": tuple(np.geomspace(1, factor, num_pairs).tolist()),
    }
    by_type: dict[Any, Any] = {
        float: 0.5 if fraction else factor,
        int: 1 if fraction else length,
        bool: False,
        tuple[float, ...]: tuple(np.geomspace(1, factor, num_pairs).tolist()),
        RopeScaling: Unscaled(),
        Attention: Causal(),
    }
    return by_name.get(field.name, by_type.get(kind))


def __getattr__(name: str) -> Any:
    for method in all_methods().values():
        if method.__name__ == name:
            return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Context-extension methods, one file per paper. The list is discovered, not kept."""

import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from ctxext.attention.pieces import Attention, Causal
from ctxext.positions import Contiguous, Positions
from ctxext.rope import RopeScaling, Unscaled

SEAMS: dict[str, type] = {"rope": RopeScaling, "attention": Attention, "positions": Positions}


def _classes(module: ModuleType) -> list[type]:
    found = [
        x
        for x in vars(module).values()
        if inspect.isclass(x) and issubclass(x, tuple(SEAMS.values()))
    ]
    return [x for x in found if x.__module__ == module.__name__ and not inspect.isabstract(x)]


@functools.cache
def all_methods() -> dict[str, type]:
    """Every method by its command-line name, e.g. "dynamic-ntk"."""
    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    classes = [Unscaled, Causal, Contiguous, *(c for module in modules for c in _classes(module))]
    return {method_name(c): c for c in classes}


def method_name(method: Any) -> str:
    """Kebab-case name of a method class or instance: DynamicNTK -> dynamic-ntk, NTKByParts -> ntk-by-parts."""
    name = (method if isinstance(method, type) else type(method)).__name__
    if name == "Unscaled":
        return "none"
    name = name.replace("PoSE", "Pose").replace("LoRA", "Lora")
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name)
    return words.lower()


def label(methods: Iterable[Any]) -> str:
    """What rows and tables call a choice of methods: "yarn(factor=4)", joined by " + "; defaults are left out."""
    labels = []
    for method in methods:
        values = [(f.name, getattr(method, f.name), f.default) for f in dataclasses.fields(method)]
        changed = [f"{name}={_short(value)}" for name, value, default in values if value != default]
        labels.append(method_name(method) + (f"({', '.join(changed)})" if changed else ""))
    return " + ".join(labels) or "none"


def _short(value: Any) -> str:
    """A number as it is; a long vector as its length and six digits of its hash."""
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
        return _from_file(*name.rsplit(":", 1))
    known = all_methods()
    names = dict(known)
    for method in known.values():
        names |= {alias: method for alias in getattr(method, "aliases", ())}
        names[method.__name__.lower()] = method
    key = name.lower().replace("_", "-")
    if key in names:
        return names[key]
    close = difflib.get_close_matches(key, names, 1, 0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
    raise ValueError(f"there is no method {name!r}; {hint} (a file works too: FILE.py:Class)")


def _from_file(file: str, class_name: str) -> type:
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"{file} does not exist; give a method as FILE.py:Class")
    module_name = f"_ctxext_method_{path.stem}_{abs(hash(str(path))):x}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    method = getattr(sys.modules[module_name], class_name, None)
    if not (inspect.isclass(method) and issubclass(method, tuple(SEAMS.values()))):
        raise ValueError(
            f"{file} has no method class {class_name}; it must extend RopeScaling, Attention or Positions"
        )
    return method


def make(name: str, **fields: Any) -> Any:
    """An instance of the method `name`. Raises ValueError naming missing or unknown fields."""
    return build(find(name), name, fields)


def build(method: type, name: str, fields: dict[str, Any]) -> Any:
    """An instance of the dataclass `method`. Raises ValueError, calling it `name`, for missing or unknown fields."""
    known = {field.name: field for field in dataclasses.fields(method)}
    unknown = [field for field in fields if field not in known]
    required = [
        f.name for f in known.values() if f.default is f.default_factory is dataclasses.MISSING
    ]
    missing = [field for field in required if field not in fields]
    if unknown or missing:
        wrong = f"has no field {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise ValueError(f"method {name!r} {wrong}; its fields are: {', '.join(known) or 'none'}")
    return method(**fields)


def __getattr__(name: str) -> Any:
    for method in all_methods().values():
        if method.__name__ == name:
            return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

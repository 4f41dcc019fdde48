"""`layer_types` and `sliding_window` of a config.json: which layers see only a window."""

from typing import Any

from ctxext.interop.layer_ropes import FULL, SLIDING


def windows(
    data: dict[str, Any], window: int | None, default: tuple[bool, ...]
) -> tuple[int | None, tuple[bool, ...]]:
    """(the window, the layers that have it), as `model.parts.Parts` has them.

    `window`: the one in force, None if it is switched off. `default`: the layers with the window in
    a file without layer_types. Raises ValueError for types of layers that are not known here.
    """
    layer_types = data.get("layer_types")
    windowed = default
    if layer_types is not None:
        others = sorted({str(name)[:50] for name in layer_types} - {FULL, SLIDING})
        if others:
            raise ValueError(
                f"layer_types has {', '.join(others)}; only {FULL} and {SLIDING} are supported"
            )
        if len(layer_types) != len(default):
            raise ValueError(
                f"layer_types has {len(layer_types)} names, but num_hidden_layers is {len(default)}"
            )
        windowed = tuple(name == SLIDING for name in layer_types)
        if any(windowed) and window is None:
            raise ValueError(
                f"layer_types has {SLIDING}, but no sliding_window is given, or it is switched off "
                "(use_sliding_window); correct config.json"
            )
    if window is None or not any(windowed):
        return None, ()
    return window, () if all(windowed) else windowed


def names(num_layers: int, window: int | None, windowed: tuple[bool, ...]) -> list[str]:
    """`layer_types` for the parts of a decoder."""
    of_layers = windowed or (window is not None,) * num_layers
    return [SLIDING if is_windowed else FULL for is_windowed in of_layers]

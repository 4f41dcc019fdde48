"""The post_processor of a tokenizer.json: the special tokens that it puts around a text."""

from collections.abc import Callable
from typing import Any

from ctxext.tokenization.tokenizer_files import JSON


def template(bos: tuple[str, int] | None, eos: tuple[str, int] | None = None) -> dict[str, Any]:
    """The post_processor that puts `bos` before every sequence and `eos` after it.

    Both are (text, id), or None for nothing.
    """

    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"Sequence": {"id": name, "type_id": type_id}}]
        if bos is not None:
            parts = [_special(bos[0], type_id), *parts]
        if eos is not None:
            parts = [*parts, _special(eos[0], type_id)]
        return parts

    tokens = [token for token in (bos, eos) if token is not None]
    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {text: _declared(text, token_id) for text, token_id in tokens},
    }


def with_bos(processor: dict[str, Any] | None, bos: str, bos_id: int) -> dict[str, Any]:
    """The same post_processor with `bos` before every sequence, which it must not put there yet."""

    def add(part: dict[str, Any]) -> dict[str, Any]:
        changed = {key: _with_bos_in(part[key], bos) for key in ("single", "pair")}
        declared = {**part.get("special_tokens", {}), bos: _declared(bos, bos_id)}
        return part | changed | {"special_tokens": declared}

    if processor is None:
        return template((bos, bos_id))
    changed = _change_template(processor, add)
    if changed is not None:
        return changed
    parts = processor["processors"] if processor.get("type") == "Sequence" else [processor]
    return {"type": "Sequence", "processors": [*parts, template((bos, bos_id))]}


def without_bos(processor: dict[str, Any], bos: str) -> dict[str, Any]:
    """The same post_processor without the token `bos`.

    Raises ValueError for one that cannot do without it.
    """

    def remove(part: dict[str, Any]) -> dict[str, Any]:
        return part | {
            key: [item for item in part[key] if item.get("SpecialToken", {}).get("id") != bos]
            for key in ("single", "pair")
        }

    changed = _change_template(processor, remove)
    if changed is None:
        raise ValueError(
            f"the post_processor of {JSON} is a {processor.get('type')}, from which {bos} cannot "
            "be removed; use --bos, or replace it by a TemplateProcessing"
        )
    return changed


def _change_template(
    processor: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any] | None:
    """The processor with its TemplateProcessing changed; None if it has none."""
    if processor.get("type") == "TemplateProcessing":
        return change(processor)
    if processor.get("type") != "Sequence":
        return None
    parts = [_change_template(part, change) for part in processor["processors"]]
    if all(part is None for part in parts):
        return None
    kept = [
        old if new is None else new for old, new in zip(processor["processors"], parts, strict=True)
    ]
    return processor | {"processors": kept}


def _with_bos_in(items: list[dict[str, Any]], bos: str) -> list[dict[str, Any]]:
    result = []
    for item in items:
        if "Sequence" in item:
            result.append(_special(bos, item["Sequence"]["type_id"]))
        result.append(item)
    return result


def _special(text: str, type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": type_id}}


def _declared(text: str, token_id: int) -> dict[str, Any]:
    return {"id": text, "ids": [token_id], "tokens": [text]}

"""How variants look and what they are called in charts, the same on a whole page."""

from collections.abc import Iterable, Sequence

from ctxext.report.analysis.records import Variant
from ctxext.report.drawing.svg import Style

Styles = dict[Variant, tuple[str, Style]]
"""(short label, style) of every variant."""


def method_styles(names: Iterable[str]) -> dict[str, Style]:
    """A style per name in order of appearance; the first, grey, is reserved for "none"."""
    others = [name for name in dict.fromkeys(names) if name != "none"]
    return {"none": Style(0), **{name: Style(1 + i) for i, name in enumerate(others)}}


def identity(variant: Variant) -> str:
    """The name that shares a colour and a marker: a method of a checkpoint, trained or not."""
    return variant.model.method + variant.suffix


def variant_styles(variants: Sequence[Variant], styles: dict[str, Style]) -> Styles:
    """One colour and marker per method, dashes for what was not trained."""
    labels = [_short_label(variant) for variant in variants]
    if len(set(labels)) < len(variants):
        labels = [variant.name for variant in variants]
    return {
        variant: (label, styles[identity(variant)]._replace(dashed=not variant.trained))
        for variant, label in zip(variants, labels, strict=True)
    }


def _short_label(variant: Variant) -> str:
    """The names of its methods without their fields, and its training: "yarn, 60 steps"."""
    model = variant.model
    changing = [name for name in (model.rope, model.attention) if name not in ("none", "causal")]
    method = " + ".join(name.partition("(")[0] for name in changing) or "none"
    training = f"{model.steps} steps" if variant.trained else "zero-shot"
    return f"{method}, {training}{variant.suffix}"

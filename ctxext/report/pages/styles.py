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


def identities(variants: Sequence[Variant]) -> dict[Variant, str]:
    """The name by which each variant has its colour and marker.

    A method of a checkpoint has one, trained or not. Of several variants that were trained with the
    same method, such as two checkpoints of a run, all but the most trained have one of their own.
    """
    shared: dict[tuple[str, bool], Variant] = {}
    for variant in sorted(variants, key=lambda v: -v.model.steps):
        shared.setdefault((variant.model.method + variant.suffix, variant.trained), variant)
    return {
        variant: variant.model.method + variant.suffix
        if shared[variant.model.method + variant.suffix, variant.trained] == variant
        else variant.name
        for variant in variants
    }


def variant_styles(variants: Sequence[Variant], styles: dict[str, Style]) -> Styles:
    """One colour and marker per method, dashes for what was not trained."""
    labels = [_short_label(variant) for variant in variants]
    if len(set(labels)) < len(variants):
        labels = [variant.name for variant in variants]
    names = identities(variants)
    return {
        variant: (label, styles[names[variant]]._replace(dashed=not variant.trained))
        for variant, label in zip(variants, labels, strict=True)
    }


def _short_label(variant: Variant) -> str:
    """The names of its methods without their fields, and its training: "yarn, 60 steps"."""
    model = variant.model
    parts = [" + ".join(name.partition("(")[0] for name in model.changes) or "none"]
    if model.steps:
        parts.append(f"{model.steps} steps")
    if model.adapter:
        parts.append(f"adapter {model.adapter}")
    if not model.is_trained and model.train_seq_len is not None:
        parts.append("zero-shot")
    return ", ".join(parts) + variant.suffix

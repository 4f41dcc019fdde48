"""`ctxext methods` and `ctxext rope`: what there is, and what a method makes of the frequencies."""

import dataclasses
import json
from typing import Any

import numpy as np

from ctxext.config import SHAPES
from ctxext.methods import all_methods, label, seam
from ctxext.rope import RopeBase, RopeScaling


def methods_table(*, as_json: bool) -> str:
    """Every discovered method: name, seam, paper, fields with their defaults."""
    rows = []
    for name, method in sorted(all_methods().items(), key=lambda item: (seam(item[1]), item[0])):
        fields = {f.name: None if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(method)}
        rows.append({
            "name": name,
            "aliases": list(getattr(method, "aliases", ())),
            "seam": seam(method),
            "paper": getattr(method, "paper", ""),
            "summary": (method.__doc__ or "").split("\n")[0],
            "fields": fields,
            "required": [f.name for f in dataclasses.fields(method) if f.default is dataclasses.MISSING],
        })  # fmt: skip
    if as_json:
        return json.dumps(rows, indent=2)
    lines = [f"{'name':<17} {'seam':<10} {'arXiv':<11} fields"]
    for row in rows:
        fields = [key if key in row["required"] else f"{key}={value}" for key, value in row["fields"].items()]
        lines.append(f"{row['name']:<17} {row['seam']:<10} {row['paper']:<11} {', '.join(fields)}".rstrip())
    return "\n".join(lines)


def rope_table(method: Any, head_dim: int, theta: float, original: int, seq_len: int | None, *, as_json: bool) -> str:
    """inv_freq, attention factor and HF keys of a frequency method. Raises ValueError for another kind of method."""
    from ctxext.interop import ropespec

    if not isinstance(method, RopeScaling):
        raise ValueError(f"{label([method])} does not change frequencies; ctxext methods shows which do")
    base = RopeBase(head_dim, theta, original)
    if method.depends_on_length and seq_len is None:
        raise ValueError(f"{label([method])} depends on the length; give --seq-len")
    rope = method.rope(base, seq_len or original)
    try:
        config = dataclasses.replace(
            SHAPES["llama2-7b"], head_dim=head_dim, rope_theta=theta, max_position_embeddings=original
        )
        keys: Any = ropespec.lower_hf(method, config, seq_len or original)
    except ValueError as error:
        keys = f"not representable: {error}"
    if as_json:
        return json.dumps({
            "method": label([method]), "inv_freq": rope.inv_freq.tolist(), "attention_factor": rope.attention_factor,
            "leading_positions": rope.leading[0] if rope.leading else 0, "hf_config": keys,
        }, indent=2)  # fmt: skip
    lines = [f"{label([method])}: head_dim {head_dim}, theta {theta:g}, window {original}",
             f"attention factor {rope.attention_factor:.9g} (logits x {rope.attention_factor**2:.6g})",
             f"{'pair':>4} {'inv_freq':>15} {'of base':>9} {'wavelength':>12} {'turns in window':>16}"]  # fmt: skip
    if rope.leading:
        lines.insert(2, f"plain RoPE at the first {rope.leading[0]} positions")
    for i, (f, f0) in enumerate(zip(rope.inv_freq, base.inv_freq, strict=True)):
        wavelength = 2 * np.pi / f if f else np.inf
        lines.append(f"{i:>4} {f:>15.9g} {f / f0:>9.4f} {wavelength:>12.1f} {original / wavelength:>16.2f}")
    return "\n".join([*lines, f"HF config.json: {json.dumps(keys)}"])

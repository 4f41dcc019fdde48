"""`ctxext methods` and `ctxext rope`: what there is, and what a method makes of the frequencies."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ctxext.cli import support_matrix
from ctxext.methods import all_methods, label, seam
from ctxext.model.config import SHAPES
from ctxext.report.analysis.wavelengths import Spectrum, spectrum
from ctxext.rope import Rope, RopeBase, RopeScaling


def methods_table(*, as_json: bool) -> str:
    """Every discovered method: name, seam, paper, fields with their defaults, and where it can be exported."""
    rows = []
    for name, method in sorted(all_methods().items(), key=lambda item: (seam(item[1]), item[0])):
        fields = {
            f.name: None if f.default is dataclasses.MISSING else f.default
            for f in dataclasses.fields(method)
        }
        rows.append(
            {
                "name": name,
                "aliases": list(getattr(method, "aliases", ())),
                "seam": seam(method),
                "paper": getattr(method, "paper", ""),
                "summary": (method.__doc__ or "").split("\n")[0],
                "fields": fields,
                "formats": support_matrix.places(
                    support_matrix.example(method, SHAPES["llama2-7b"]), SHAPES["llama2-7b"]
                ),
                "required": [
                    f.name for f in dataclasses.fields(method) if f.default is dataclasses.MISSING
                ],
            }
        )
    if as_json:
        return json.dumps(rows, indent=2)
    names = "".join(f"{name:<14}" for name in support_matrix.COLUMNS)
    lines = [f"{'name':<17} {'seam':<10} {'arXiv':<11} {names} fields"]
    for row in rows:
        fields = [
            key if key in row["required"] else f"{key}={value}"
            for key, value in row["fields"].items()
        ]
        cells = "".join(f"{place['how']:<14}" for place in row["formats"].values())
        lines.append(
            f"{row['name']:<17} {row['seam']:<10} {row['paper']:<11} {cells} {', '.join(fields)}".rstrip()
        )
    reasons = '--json has the reason of every "refused".'
    return "\n".join([*lines, "", *support_matrix.LEGEND, reasons])


@dataclasses.dataclass(frozen=True)
class RopeView:
    """What methods make of one base at `seq_len` tokens, and which pairs `target` tokens take to new angles."""

    methods: tuple[RopeScaling, ...]
    base: RopeBase
    seq_len: int
    target: int

    @classmethod
    def of(
        cls, methods: Sequence[Any], head_dim: int, theta: float, original: int, seq_len: int | None
    ) -> "RopeView":
        """Without `seq_len` the target is the largest factor times `original`.

        Raises ValueError for methods of another kind, and for those that depend on a length that is not given.
        """
        for method in methods:
            if not isinstance(method, RopeScaling):
                raise ValueError(
                    f"{label([method])} does not change frequencies; ctxext methods shows which do"
                )
            if method.depends_on_length and seq_len is None:
                raise ValueError(f"{label([method])} depends on the length; give --seq-len")
        if seq_len is not None and seq_len < 1:
            raise ValueError(f"--seq-len must be at least 1, got {seq_len}")
        target = seq_len or round(
            original * max(float(getattr(method, "factor", 1.0)) for method in methods)
        )
        return cls(tuple(methods), RopeBase(head_dim, theta, original), seq_len or original, target)

    def json(self) -> str:
        """An object for one method, a list of them for several."""
        found = [
            {
                "method": label([method]),
                "inv_freq": rope.inv_freq.tolist(),
                "attention_factor": rope.attention_factor,
                "leading_positions": rope.leading[0] if rope.leading else 0,
                "hf_config": self._keys(method),
            }
            for method, rope in self._ropes()
        ]
        return json.dumps(found[0] if len(found) == 1 else found, indent=2)

    def text(self) -> str:
        """Per method the attention factor and how many pairs never turn and are extrapolated; then a line per pair."""
        base, window = self.base, self.base.original_max_position_embeddings
        lines = [
            f"head_dim {base.head_dim}, theta {base.theta:g}, window {window:,}, target {self.target:,} tokens"
        ]
        if self.target == window:
            lines[0] += " (--seq-len gives another target)"
        for (method, rope), s in zip(self._ropes(), self.spectra, strict=True):
            n = len(s.wavelengths)
            lines += [
                f"{s.method}: attention factor {rope.attention_factor:.9g} (logits x "
                f"{rope.attention_factor**2:.6g})",
                f"  {s.slow.sum()} of {n} pairs never turn in {window:,} tokens; {(~s.seen).sum()} never did in "
                f"pre-training; {s.extrapolated(self.target).sum()} are extrapolated at {self.target:,}",
                *(
                    [f"  plain RoPE at the first {rope.leading[0]} positions"]
                    if rope.leading
                    else []
                ),
                f"  HF config.json: {json.dumps(self._keys(method))}",
            ]
        return "\n".join([*lines, *(self._one() if len(self.methods) == 1 else self._several())])

    def plot(self, out: Path) -> Path:
        """Draw the wavelengths into FILE.svg or FILE.html."""
        from ctxext import report

        return report.plot_wavelengths(self.methods, self.base, self.seq_len, self.target, out)

    @cached_property
    def spectra(self) -> list[Spectrum]:
        return [spectrum(method, self.base, self.seq_len) for method in self.methods]

    def _one(self) -> Iterator[str]:
        (spectrum,), ((_, rope),) = self.spectra, self._ropes()
        yield f"{'pair':>4} {'inv_freq':>15} {'of base':>9} {'wavelength':>12} {'turns in window':>16}"
        for i, (f, f0, wave) in enumerate(
            zip(rope.inv_freq, self.base.inv_freq, spectrum.wavelengths, strict=True)
        ):
            yield f"{i:>4} {f:>15.9g} {f / f0:>9.4f} {wave:>12.1f} {spectrum.window / wave:>16.2f}"

    def _several(self) -> Iterator[str]:
        widths = [max(12, len(s.method)) for s in self.spectra]
        yield "wavelengths, tokens; * is extrapolated at the target"
        yield "pair " + "  ".join(
            f"{s.method:>{w}}" for s, w in zip(self.spectra, widths, strict=True)
        )
        far = [s.extrapolated(self.target) for s in self.spectra]
        for i in range(len(self.base.inv_freq)):
            cells = [
                f"{f'{s.wavelengths[i]:.1f}' + ' *'[int(x[i])]:>{w + 1}}"
                for s, x, w in zip(self.spectra, far, widths, strict=True)
            ]
            yield (f"{i:>4} " + " ".join(cells)).rstrip()

    def _ropes(self) -> list[tuple[RopeScaling, Rope]]:
        return [(method, method.rope(self.base, self.seq_len)) for method in self.methods]

    def _keys(self, method: RopeScaling) -> Any:
        """The HF keys, or why there are none."""
        from ctxext.interop import ropespec

        base = self.base
        config = dataclasses.replace(
            SHAPES["llama2-7b"],
            head_dim=base.head_dim,
            rope_theta=base.theta,
            max_position_embeddings=base.original_max_position_embeddings,
        )
        try:
            return ropespec.rope_to_config(method, config, self.seq_len)
        except ValueError as error:
            return f"not representable: {error}"

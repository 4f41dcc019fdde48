"""The frequencies that methods give, as text, data or a drawing."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ctxext.methods import label
from ctxext.model.config import LlamaConfig
from ctxext.model.context import DeclaredContext
from ctxext.report.analysis.wavelengths import Spectrum, spectrum
from ctxext.rope import Rope, RopeBase, RopeScaling, rope_at, scaling_factor


@dataclasses.dataclass(frozen=True)
class RopeView:
    """The frequencies of methods over one model at `seq_len` tokens.

    methods: the name of each, and its frequencies. config: the model that they are for. target: the
    length, in tokens, at which pairs may extrapolate. context: the declared context of the
    checkpoint, None for a shape.
    """

    methods: tuple[tuple[str, RopeScaling], ...]
    config: LlamaConfig
    seq_len: int
    target: int
    context: DeclaredContext | None = None

    @classmethod
    def of(
        cls,
        methods: Sequence[Any],
        *,
        config: LlamaConfig,
        seq_len: int | None,
        context: DeclaredContext | None = None,
        allow_shorter: bool = False,
    ) -> "RopeView":
        """Without `seq_len` the target is the largest factor times the window of `config`.

        With the `context` of a checkpoint, "none" is the checkpoint as it is, and a factor that
        gives less than it declares is refused unless `allow_shorter`. Raises ValueError for methods
        that are not frequencies, and for those that depend on the length without one.
        """
        for method in methods:
            if not isinstance(method, RopeScaling):
                raise ValueError(
                    f"{label([method])} does not change frequencies; ctxext methods lists those "
                    "that do"
                )
            if method.depends_on_length and seq_len is None:
                raise ValueError(f"{label([method])} depends on the length; give --seq-len")
        if seq_len is not None and seq_len < 1:
            raise ValueError(f"--seq-len must be at least 1, got {seq_len}")
        original = config.max_position_embeddings
        named = [(label([method]), method) for method in methods]
        targets = [round(original * (scaling_factor(method) or 1.0)) for method in methods]
        if context is not None:
            if not allow_shorter:
                for method in methods:
                    context.check(method)
            named = [(name, context.resolve(method)) for name, method in named]
            for _, scaling in named:
                config.check_scaling(scaling)
            if any(scaling == context.scaling for _, scaling in named):
                targets.append(context.declared)
        return cls(
            methods=tuple(named),
            config=config,
            seq_len=seq_len or original,
            target=seq_len or max(targets),
            context=context,
        )

    @cached_property
    def base(self) -> RopeBase:
        """The rotary embedding of pre-training."""
        return self.config.rope_base()

    def json(self) -> str:
        """An object for one method, a list of them for several."""
        methods = [
            {
                "method": name,
                "inv_freq": rope.inv_freq.tolist(),
                "attention_factor": rope.attention_factor,
                "leading_positions": rope.leading[0] if rope.leading else 0,
                "sliding": _sliding_json(rope),
                "hf_config": self._hf_config(method),
            }
            for (name, method), rope in self._ropes()
        ]
        return json.dumps(methods[0] if len(methods) == 1 else methods, indent=2)

    def text(self) -> str:
        """For each method a summary, then a line per pair of dimensions."""
        base = self.base
        window = base.original_max_position_embeddings
        header = f"head_dim {base.head_dim}, {self.config.positions}, window {window:,}, "
        header += f"target {self.target:,} tokens"
        if self.target == window:
            header += " (--seq-len gives another target)"
        lines = [header]
        if self.context is not None:
            lines += [self.context.text(method) for _, method in self.methods]
        for ((_, method), rope), waves in zip(self._ropes(), self.spectra, strict=True):
            lines += self._summary(method, rope, waves)
        lines += self._pairs_of_one() if len(self.methods) == 1 else self._pairs_of_several()
        return "\n".join(lines)

    def plot(self, out: Path) -> Path:
        """Draw the wavelengths into FILE.svg or FILE.html."""
        from ctxext import report

        return report.plot_wavelengths(
            [method for _, method in self.methods],
            self.base,
            seq_len=self.seq_len,
            target=self.target,
            out=out,
        )

    @cached_property
    def spectra(self) -> list[Spectrum]:
        """The wavelengths of each method."""
        return [
            dataclasses.replace(spectrum(method, self.base, self.seq_len), method=name)
            for name, method in self.methods
        ]

    def _summary(self, method: RopeScaling, rope: Rope, waves: Spectrum) -> Iterator[str]:
        """The attention factor, how many pairs never turn or are extrapolated, and the HF keys."""
        window = self.base.original_max_position_embeddings
        scale = rope.attention_factor
        yield f"{waves.method}: attention factor {scale:.9g} (logits x {scale**2:.6g})"
        yield (
            f"  {waves.slow.sum()} of {len(waves.wavelengths)} pairs never turn in {window:,} "
            f"tokens; {(~waves.seen).sum()} never did in pre-training; "
            f"{waves.extrapolated(self.target).sum()} are extrapolated at {self.target:,}"
        )
        if rope.leading:
            yield f"  plain RoPE at the first {rope.leading[0]} positions"
        if rope.sliding is not None:
            plain = rope.sliding.equals(Rope(self.base.of_sliding_layers.inv_freq))
            slower = f"inv_freq {rope.sliding.inv_freq[0]:.4g} .. {rope.sliding.inv_freq[-1]:.4g}"
            yield f"  layers with a window: {'plain RoPE' if plain else slower}"
        yield f"  HF config.json: {json.dumps(self._hf_config(method))}"

    def _pairs_of_one(self) -> Iterator[str]:
        (waves,) = self.spectra
        ((_, rope),) = self._ropes()
        columns = f"{'pair':>4} {'inv_freq':>15} {'of base':>9} {'wavelength':>12}"
        yield f"{columns} {'turns in window':>16}"
        pairs = zip(rope.inv_freq, self.base.inv_freq, waves.wavelengths, strict=True)
        for pair, (inv_freq, plain, wavelength) in enumerate(pairs):
            ratio = inv_freq / plain
            turns = waves.window / wavelength
            yield f"{pair:>4} {inv_freq:>15.9g} {ratio:>9.4f} {wavelength:>12.1f} {turns:>16.2f}"

    def _pairs_of_several(self) -> Iterator[str]:
        widths = [max(12, len(waves.method)) for waves in self.spectra]
        names = [
            f"{waves.method:>{width}}" for waves, width in zip(self.spectra, widths, strict=True)
        ]
        yield "wavelengths, tokens; * is extrapolated at the target"
        yield "pair " + "  ".join(names)
        extrapolated = [waves.extrapolated(self.target) for waves in self.spectra]
        for pair in range(len(self.base.inv_freq)):
            line = f"{pair:>4} "
            for waves, marked, width in zip(self.spectra, extrapolated, widths, strict=True):
                cell = f"{waves.wavelengths[pair]:.1f}{'*' if marked[pair] else ' '}"
                line += f"{cell:>{width + 1}} "
            yield line.rstrip()

    def _ropes(self) -> list[tuple[tuple[str, RopeScaling], Rope]]:
        return [(named, rope_at(named[1], self.base, self.seq_len)) for named in self.methods]

    def _hf_config(self, method: RopeScaling) -> Any:
        """The HF keys, or the reason why there are none."""
        from ctxext.interop import ropespec

        try:
            seq_len = self.seq_len
            if self.context is not None and seq_len == self.base.original_max_position_embeddings:
                seq_len = self.context.export_length(method, seq_len)
            return ropespec.rope_to_config(method, self.config, seq_len)
        except ValueError as error:
            return f"not representable: {error}"


def _sliding_json(rope: Rope) -> dict[str, Any] | None:
    """The frequencies of layers with a window, where they have others."""
    if rope.sliding is None:
        return None
    return {
        "inv_freq": rope.sliding.inv_freq.tolist(),
        "attention_factor": rope.sliding.attention_factor,
    }

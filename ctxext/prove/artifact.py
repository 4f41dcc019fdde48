"""The subject of a proof: a model in one of the formats, or a PEFT adapter with its base."""

import dataclasses
from pathlib import Path
from typing import Any

from ctxext import loading
from ctxext.export import same_rope
from ctxext.interop import formats, hf, peft_base, peft_reader
from ctxext.interop.hf_weights import slots
from ctxext.model.config import SIZES
from ctxext.model.decoder import param_shapes
from ctxext.model.lm import LM
from ctxext.parallel.mesh import Mesh
from ctxext.prove import gguf_parameters
from ctxext.prove.file_digests import file_digests
from ctxext.prove.reference.gguf import GGUFReference


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A directory or a file in `format`: a name of `interop.formats.FORMATS`, or "peft".

    `base`: the HF directory that an adapter is read with, otherwise `path` itself. `original`: the
    window of pre-training in tokens, where Meta's format or a GGUF file does not declare it.
    """

    path: Path
    base: Path
    format: str = "hf"
    original: int | None = None

    @classmethod
    def recognize(
        cls, path: Path, base: str | Path | None = None, original: int | None = None
    ) -> "Artifact":
        """The artifact at `path`, with an adapter's `base` in place of the one that it names.

        Raises ValueError for a base that cannot be opened.
        """
        if peft_reader.is_adapter(path):
            return cls(path, _find_base(path, base), "peft")
        name = formats.recognize(path)
        if original is not None and name == "hf":
            raise ValueError(
                f"--original is for Meta's format and GGUF; config.json in {path} declares the "
                "window of pre-training"
            )
        return cls(path, path, name, original)

    @property
    def adapter(self) -> Path | None:
        """The directory, if it holds an adapter."""
        return self.path if self.format == "peft" else None

    @property
    def noun(self) -> str:
        """What it is, in a word."""
        return "adapter" if self.format == "peft" else "export"

    @property
    def base_is_recorded(self) -> bool:
        """True if an adapter records what base it was trained on, so that `open` can check it."""
        return (self.path / peft_base.BASE).is_file()

    @property
    def quantize(self) -> Any:
        """How an adapter's base was quantized in training: a `model.quantized.Quantize`."""
        recorded = peft_base.recorded_base(self.path) if self.format == "peft" else None
        return (recorded or {}).get("quantize", "none")

    @property
    def window(self) -> int:
        """The extended window L' in tokens that it declares."""
        if self.format == "gguf":
            return GGUFReference(self.path).window
        return loading.read_checkpoint(self.base, self.original).window

    def digests(self) -> dict[str, str]:
        """The sha256 of each of its files by name; those of an adapter's base begin with base/."""
        digests = file_digests(self.path)
        if self.format == "peft":
            digests |= {f"base/{name}": value for name, value in file_digests(self.base).items()}
        return digests

    def dtypes(self) -> dict[str, str]:
        """The dtype that each tensor is stored in, by HF's names; float32 for merged parameters."""
        if self.format == "gguf":
            return gguf_parameters.dtypes(self.path)
        if self.format == "peft":
            return dict.fromkeys(slots(param_shapes(hf.read_config(self.base)[0])), "float32")
        tensors = loading.read_checkpoint(self.path, self.original).tensors
        return {name: entry.dtype for name, entry in tensors.items()}

    def open(self, mesh: Mesh, like: LM | None = None, *, as_trained: bool = False) -> LM:
        """The model as ctxext reads it, float32; of a GGUF file only its parameters, with a `like`.

        An adapter is merged into its base as that is stored or, `as_trained`, quantized. Raises
        ValueError for a base of another shape, or with other frequencies or parameters.
        """
        if self.format == "gguf":
            if like is None:
                return loading.load(self.path, mesh=mesh, original=self.original)
            if self.original is not None:
                raise ValueError(
                    "--original is for Meta's format, and for a GGUF file without --against"
                )
            return gguf_parameters.open_like(self.path, like)
        if self.format != "peft":
            return loading.load(self.path, mesh=mesh, original=self.original)
        if self.base_is_recorded:
            self._check_config()
        lm = loading.load(self.base, mesh=mesh)
        if self.base_is_recorded:
            self._check_parameters(lm)
        if as_trained:
            return loading.merge_as_trained(lm, self.path, self.quantize)
        return loading.merge_adapter(lm, self.path, self.base)

    def _check_config(self) -> None:
        recorded, actual = hf.read_config(self.path), hf.read_config(self.base)
        for name in SIZES:
            expected, actual_value = getattr(recorded[0], name), getattr(actual[0], name)
            if expected != actual_value:
                raise ValueError(
                    f"{self.path} was trained on a base with {name} {expected}, {self.base} has "
                    f"{actual_value}; give the right one with --against BASE"
                )
        lengths = {
            recorded[0].max_position_embeddings,
            hf.window(self.path),
            hf.window(self.base),
        }
        if not all(same_rope(recorded, actual, length) for length in lengths):
            raise ValueError(
                f"{self.base} has other frequencies than {self.path} was trained with; write a "
                "base that has them, ctxext export BASE --method NAME ... --out SCALED, and give "
                "it with --against SCALED"
            )

    def _check_parameters(self, lm: LM) -> None:
        adapter = peft_reader.read(self.path, lm.config)
        recorded = peft_base.recorded_base(self.path)
        if recorded is not None and not loading.trained_on(lm, adapter, recorded):
            raise ValueError(
                f"{self.base} does not hold the parameters that {self.path} was trained on; give "
                "the right base with --against BASE"
            )


def _find_base(adapter: Path, base: str | Path | None) -> Path:
    named = base or peft_base.named_base(adapter)
    if not named:
        raise ValueError(
            f"{adapter} names no base; give one with --against BASE, or correct "
            f"base_model_name_or_path in {peft_reader.CONFIG} to compare it with a run"
        )
    try:
        path = loading.locate(named)
        name = formats.recognize(path)
        if name != "hf":
            raise ValueError(
                f"it is in the {name} format; ctxext import {named} --out BASE writes it as PEFT "
                "needs it"
            )
        hf.read_config(path)
    except ValueError as error:
        hint = (
            f"; {adapter / peft_reader.CONFIG} names it as base_model_name_or_path: correct that, "
            "or give another with --against BASE"
        )
        raise ValueError(
            f"the base of {adapter} cannot be opened: {error}{'' if base else hint}"
        ) from None
    return path

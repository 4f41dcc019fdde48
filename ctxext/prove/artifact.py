"""What is proven: an export in any format, or a PEFT adapter on the base that it was trained for."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from ctxext import loading
from ctxext.export import same_rope
from ctxext.files import read_json
from ctxext.interop import hf, meta, peft
from ctxext.interop.hf_weights import slots
from ctxext.model.decoder import param_shapes
from ctxext.model.lm import LM
from ctxext.model.trainable import split
from ctxext.parallel.mesh import Mesh
from ctxext.prove import gguf_parameters
from ctxext.prove.reference import GGUFTextbook
from ctxext.training.checksums import parameter_checksum

SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
Kind = Literal["export", "adapter", "meta", "gguf"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A directory, or a GGUF file; `base`: the HF directory that an adapter is read with, else the same.

    `original`: the window of pre-training in tokens, where Meta's format does not say it.
    """

    directory: Path
    base: Path
    kind: Kind = "export"
    original: int | None = None

    @classmethod
    def of(
        cls, directory: Path, base: str | Path | None = None, original: int | None = None
    ) -> "Subject":
        """`base`: in place of the one that an adapter names. Raises ValueError for one that cannot be opened."""
        if not peft.is_adapter(directory):
            kind = (
                "gguf" if directory.is_file() else "meta" if meta.is_meta(directory) else "export"
            )
            if original is not None and kind != "meta":
                raise ValueError(
                    f"--original is for Meta's format; {directory} says the window of pre-training"
                )
            return cls(directory, directory, kind, original)
        named = base or read_json(directory / peft.CONFIG).get("base_model_name_or_path")
        if not named:
            raise ValueError(f"{directory} names no base; give one with --against BASE")
        try:
            path = loading.locate(named)
            hf.read_config(path)
        except ValueError as error:
            hint = (
                ""
                if base
                else f"; {directory / peft.CONFIG} names it, another can be given with --against BASE"
            )
            raise ValueError(f"the base of {directory} cannot be opened: {error}{hint}") from None
        return cls(directory, path, "adapter")

    @property
    def adapter(self) -> Path | None:
        """The directory, if it holds an adapter."""
        return self.directory if self.kind == "adapter" else None

    @property
    def recorded(self) -> bool:
        """True if an adapter says what base it was trained on, so that `open` can compare."""
        return (self.directory / peft.BASE).is_file()

    @property
    def window(self) -> int:
        """The extended window L' in tokens that it declares."""
        if self.kind == "gguf":
            return GGUFTextbook(self.directory).window
        return (
            hf.window(self.base)
            if self.kind != "meta"
            else meta.read(self.directory, self.original).window
        )

    @property
    def report(self) -> Path:
        """Where its proof is written."""
        return (
            self.directory.with_suffix(".proof.json")
            if self.kind == "gguf"
            else self.directory / "proof.json"
        )

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return {"meta": "export", "gguf": "file"}.get(self.kind, self.kind)

    def dtypes(self) -> dict[str, str]:
        """The dtype that each tensor is stored in, by HF's names; that of merged parameters is float32."""
        if self.kind == "gguf":
            return gguf_parameters.dtypes(self.directory)
        if self.kind == "adapter":
            return {name: "float32" for name in slots(param_shapes(hf.read_config(self.base)[0]))}
        found = loading.read_checkpoint(self.directory, self.original)
        return {name: entry.dtype for name, entry in found.tensors.items()}

    def open(self, mesh: Mesh, like: LM | None = None) -> LM:
        """Our own reading, float32; of a GGUF file its parameters in the model `like`.

        Raises ValueError for a base of other shape, frequencies or parameters.
        """
        if self.kind == "gguf":
            if like is None:
                raise ValueError(
                    f"{self.directory} is compared with what it was written from; give that with "
                    "--against RUN or HF_DIR"
                )
            return gguf_parameters.open_like(self.directory, like)
        if self.kind != "adapter":
            return loading.load(self.directory, mesh=mesh, original=self.original)
        if self.recorded:
            self._check_config()
        lm = loading.load(self.base, mesh=mesh)
        if self.recorded:
            self._check_parameters(lm)
        return loading.merge_adapter(lm, self.directory)

    def _check_config(self) -> None:
        trained, here = hf.read_config(self.directory), hf.read_config(self.base)
        for name in SHAPE:
            one, other = (getattr(config, name) for config, _ in (trained, here))
            if one != other:
                raise ValueError(
                    f"{self.directory} was trained on a base with {name} {one}, {self.base} has {other}; "
                    "give the right one with --against BASE"
                )
        lengths = {
            trained[0].max_position_embeddings,
            hf.window(self.directory),
            hf.window(self.base),
        }
        if not all(same_rope(trained, here, length) for length in lengths):
            raise ValueError(
                f"{self.base} has other frequencies than {self.directory} was trained with; write a base "
                "that has them, ctxext export BASE --method NAME ... --out SCALED, and give it with "
                "--against SCALED"
            )

    def _check_parameters(self, lm: LM) -> None:
        lora, _ = peft.read(self.directory, lm.config)
        said = read_json(self.directory / peft.BASE)
        rest = split(lora.init(lm.params, 0), lora.pattern(lm.config))[1]
        if (
            parameter_checksum(jax.tree.map(lambda x: x.astype(jnp.dtype(said["dtype"])), rest))
            != said["checksum"]
        ):
            raise ValueError(
                f"{self.base} does not hold the parameters that {self.directory} was trained on; give the "
                "right base with --against BASE"
            )

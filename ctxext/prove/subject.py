"""What is proven: an export, or a PEFT adapter on the base that it was trained for."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from ctxext import door
from ctxext.export import same_rope
from ctxext.files import read_json
from ctxext.interop import hf, peft
from ctxext.lm import LM
from ctxext.sharding import Mesh
from ctxext.trainable import checksum, split

SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Subject:
    """A directory, and the HF directory whose config.json, tokenizer and tensors it is read with: itself, or a base."""

    directory: Path
    base: Path

    @classmethod
    def of(cls, directory: Path, base: str | Path | None = None) -> "Subject":
        """`base`: in place of the one that an adapter names. Raises ValueError for one that cannot be opened."""
        if not peft.is_adapter(directory):
            return cls(directory, directory)
        named = base or read_json(directory / peft.CONFIG).get("base_model_name_or_path")
        if not named:
            raise ValueError(f"{directory} names no base; give one with --against BASE")
        try:
            path = door.locate(named)
            hf.read_config(path)
        except ValueError as error:
            hint = "" if base else f"; {directory / peft.CONFIG} names it, another can be given with --against BASE"
            raise ValueError(f"the base of {directory} cannot be opened: {error}{hint}") from None
        return cls(directory, path)

    @property
    def adapter(self) -> Path | None:
        """The directory, if it holds an adapter."""
        return None if self.base == self.directory else self.directory

    @property
    def recorded(self) -> bool:
        """True if an adapter says what base it was trained on, so that `open` can compare."""
        return (self.directory / peft.BASE).is_file()

    def open(self, mesh: Mesh) -> LM:
        """Our own reading, float32. Raises ValueError for a base of other shape, frequencies or parameters."""
        if self.adapter is None:
            return door.load(self.directory, mesh=mesh)
        if self.recorded:
            self._check_config()
        lm = door.load(self.base, mesh=mesh)
        if self.recorded:
            self._check_parameters(lm)
        return door.adapted(lm, self.directory)

    def _check_config(self) -> None:
        trained, here = hf.read_config(self.directory), hf.read_config(self.base)
        for name in SHAPE:
            one, other = (getattr(config, name) for config, _ in (trained, here))
            if one != other:
                raise ValueError(f"{self.directory} was trained on a base with {name} {one}, {self.base} has {other}; "
                                 "give the right one with --against BASE")  # fmt: skip
        lengths = {trained[0].max_position_embeddings, hf.window(self.directory), hf.window(self.base)}
        if not all(same_rope(trained, here, length) for length in lengths):
            raise ValueError(f"{self.base} has other frequencies than {self.directory} was trained with; write a base "
                             "that has them, ctxext export BASE --method NAME ... --out SCALED, and give it with "
                             "--against SCALED")  # fmt: skip

    def _check_parameters(self, lm: LM) -> None:
        lora, _ = peft.read(self.directory, lm.config)
        said = read_json(self.directory / peft.BASE)
        rest = split(lora.prepare(lm.params, 0), lora.pattern(lm.config))[1]
        if checksum(jax.tree.map(lambda x: x.astype(jnp.dtype(said["dtype"])), rest)) != said["checksum"]:
            raise ValueError(f"{self.base} does not hold the parameters that {self.directory} was trained on; give the "
                             "right base with --against BASE")  # fmt: skip

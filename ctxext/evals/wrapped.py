"""A model around another one, for evaluations that are to be timed or only counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctxext.evals.base import Model


@dataclass
class WrappedModel:
    """Everything that evaluations ask of `model` but its calls, which a subclass answers."""

    model: Model

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def stop_ids(self) -> Sequence[int]:
        return self.model.stop_ids

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def scaling(self) -> Any:
        return self.model.scaling

    @property
    def base_scaling(self) -> Any:
        return self.model.base_scaling

    @property
    def attention(self) -> Any:
        return self.model.attention

    @property
    def semantics(self) -> str:
        return self.model.semantics

    def _padded(self, lengths: Sequence[int]) -> tuple[int, int]:
        """(rows, tokens per row) that the model computes for rows of these lengths."""
        padded = getattr(self.model, "padded", None)
        return padded(lengths) if padded else (len(lengths), max(lengths))

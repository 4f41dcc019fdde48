"""The context that a checkpoint declares as it is, and what another scaling makes of it."""

import dataclasses

from ctxext.rope import (
    Plain,
    RopeScaling,
    RopeWrapper,
    Unscaled,
    scaling_chain,
    scaling_factor,
    scaling_name,
    target_length,
)


def meant_scaling(scaling: RopeScaling | None, carried: RopeScaling) -> RopeScaling:
    """The frequencies that `scaling` means for a checkpoint that carries `carried`.

    `Unscaled` and None are the carried ones, also inside a wrapper; `Plain` is plain RoPE in any
    case.
    """
    if scaling is None or scaling in (Unscaled(), carried):
        return carried
    if scaling == Plain() and carried == Unscaled():
        return carried  # one name in records for one model
    if isinstance(scaling, RopeWrapper):
        return dataclasses.replace(scaling, inner=meant_scaling(scaling.inner, carried))
    return scaling


@dataclasses.dataclass(frozen=True)
class DeclaredContext:
    """The two windows of a checkpoint, in tokens, and the frequencies that it carries.

    A model that was extended before, such as Llama 3.1, declares far more than its window of
    pre-training. A factor counts from the window of pre-training, as in the papers and in
    config.json: YaRN from 8,192 tokens to 1 million has the factor 128.
    """

    original: int
    """L, the window of pre-training: what a factor counts from."""
    declared: int
    """L', the extended window."""
    scaling: RopeScaling
    """The frequencies as the checkpoint is."""
    base_scaling: RopeScaling | None = None
    """Those of the base that a run trained; None for a checkpoint, which is a base itself."""

    @classmethod
    def of(
        cls, original: int, scaling: RopeScaling, declared: int | None = None
    ) -> "DeclaredContext":
        """Where nothing is `declared`, as far as the factor of the scaling reaches."""
        reach = declared or target_length(scaling, original) or original
        return cls(original, max(reach, original), scaling)

    @property
    def base(self) -> RopeScaling:
        """The frequencies that `none` stands for in comparisons: those of the base as it is."""
        return self.scaling if self.base_scaling is None else self.base_scaling

    def resolve(self, scaling: RopeScaling | None) -> RopeScaling:
        """See `meant_scaling`."""
        return meant_scaling(scaling, self.scaling)

    def check(self, scaling: RopeScaling) -> None:
        """Raise ValueError if the factor of `scaling` gives less context than is declared."""
        scaling = self.resolve(scaling)
        target = self._target(scaling)
        if scaling == self.scaling or target is None or target >= self.declared:
            return
        raise ValueError(
            f"{described(scaling)} makes {target:,} tokens, {target / self.original:g} x the "
            f"{self.original:,} of pre-training, but as it is the checkpoint declares "
            f"{self.declared:,}{self._carried()}. A factor counts from the window of pre-training: "
            f"{2 * self.declared / self.original:g} doubles what is declared. To shorten it, give "
            "--allow-shorter"
        )

    def check_length(self, length: int, scaling: RopeScaling, *, asked: int) -> None:
        """Raise ValueError if an export would declare fewer tokens than the checkpoint does.

        length: what `scaling` makes of an export for texts of `asked` tokens.
        """
        is_carried = self.resolve(scaling) == self.scaling
        if is_carried and length < self.declared <= asked:
            raise ValueError(
                f"config.json contradicts itself: max_position_embeddings is {self.declared:,}, "
                f"but {described(self.scaling)} makes {length:,} tokens of the {self.original:,} "
                f"of pre-training. Set it to {length:,}, or correct the factor or the window of "
                f"pre-training; or give --allow-shorter, which writes {length:,}"
            )
        if length < self.declared:
            raise ValueError(
                f"the export would declare {length:,} tokens, but as it is the checkpoint declares "
                f"{self.declared:,}{self._carried()}; give a larger --seq-len or factor, or, to "
                "shorten it, --allow-shorter"
            )

    def export_length(self, scaling: RopeScaling, seq_len: int) -> int:
        """The extended window of a model with `scaling` that was trained at `seq_len` tokens."""
        scaling = self.resolve(scaling)
        if scaling == self.scaling:
            return max(seq_len, self.declared)
        return max(seq_len, self._target(scaling) or 0)

    def is_plain(self, scaling: RopeScaling) -> bool:
        """True if the checkpoint was not extended, and `scaling` does not extend it either."""
        is_changed = self.resolve(scaling) != self.scaling
        return self.declared == self.original and not is_changed

    def text(self, scaling: RopeScaling) -> str:
        """One line for people: what the factor counts from, and what is declared without it."""
        scaling = self.resolve(scaling)
        declared = f"{self.declared:,} tokens{self._carried()}"
        if scaling == self.scaling:
            return f"as the checkpoint is: {declared}, pre-trained with {self.original:,}"
        target = self._target(scaling)
        made = described(scaling)
        if target is not None:
            made += (
                f": {target:,} tokens, {target / self.original:g} x the {self.original:,} of "
                "pre-training"
            )
        elif scaling.depends_on_length:
            made += f": follows the length, from the {self.original:,} tokens of pre-training"
        if self.declared == self.original:
            return made
        return f"{made}; as it is, the checkpoint declares {declared}"

    def _target(self, scaling: RopeScaling) -> int | None:
        """`target_length`; what is declared where `scaling` wraps what extended the checkpoint."""
        if self.declared > self.original and self.scaling in scaling_chain(scaling):
            return self.declared
        return target_length(scaling, self.original)

    def _carried(self) -> str:
        """The scaling of the checkpoint, unless it is plain RoPE."""
        return "" if self.scaling == Unscaled() else f" by {described(self.scaling)}"


def described(scaling: RopeScaling) -> str:
    """The class of a scaling and its factor, if it has one."""
    factor = scaling_factor(scaling)
    name = scaling_name(scaling)
    return name if factor is None else f"{name} with factor {factor:g}"

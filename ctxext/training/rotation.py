"""The frequencies that a run trains with, of a whole batch or of each document."""

from ctxext.attention.length import rotation_for
from ctxext.experiment import Experiment
from ctxext.rope import RopeBase, RopeScaling
from ctxext.rope_by_length import SequenceRotation, rotation_by_length


def training_rotation(
    experiment: Experiment, base_scaling: RopeScaling, base: RopeBase, seq_len: int
) -> SequenceRotation:
    """The rotation of a batch that reaches to `seq_len` tokens, by `train.rope_length`.

    base_scaling: that of the base checkpoint. Raises ValueError for a method that cannot give each
    document what its own length asks for, where that is wanted.
    """
    attention = experiment.attention
    scaling = experiment.effective_scaling(base_scaling)
    if experiment.train.rope_length == "document":
        if attention.depends_on_length:
            raise ValueError(
                f"{type(attention).__name__} follows the length of a batch, not that of each "
                'document; set train.rope_length to "batch"'
            )
        return rotation_by_length(scaling, base)
    return rotation_for(scaling, attention, base, seq_len)

"""The frequencies that a run trains with, of a whole batch or of each document."""

from ctxext.experiment import Experiment
from ctxext.rope import RopeBase, RopeScaling, rotation_at
from ctxext.rope_by_length import SequenceRotation, rotation_by_length


def training_rotation(
    experiment: Experiment, base_scaling: RopeScaling, base: RopeBase, seq_len: int
) -> SequenceRotation:
    """The rotation of a batch that reaches to `seq_len` tokens, by `train.rope_length`.

    base_scaling: that of the base checkpoint. Raises ValueError for a scaling that cannot give each
    document the frequencies of its length, where that is asked for.
    """
    scaling = experiment.effective_scaling(base_scaling)
    if experiment.train.rope_length == "document":
        return rotation_by_length(scaling, base)
    return rotation_at(scaling, base, seq_len)

"""Objectives of training: the seam of losses, and one file per loss."""

import functools

from ctxext.discovery import classes_in_package
from ctxext.losses.base import BATCH as BATCH
from ctxext.losses.base import TEACHER as TEACHER
from ctxext.losses.base import Lengths as Lengths
from ctxext.losses.base import Loss as Loss
from ctxext.losses.base import RotationAt as RotationAt
from ctxext.losses.base import Sums as Sums
from ctxext.losses.base import step_rotations as step_rotations
from ctxext.losses.cross_entropy import CrossEntropy as CrossEntropy
from ctxext.losses.long_ce import LongCE as LongCE
from ctxext.losses.long_red import LongRed as LongRed
from ctxext.methods import method_name


@functools.cache
def all_losses() -> dict[str, type[Loss]]:
    """Every loss by its command-line name, such as "long-ce"."""
    return {method_name(loss): loss for loss in classes_in_package(__name__, Loss)}

"""`--mesh AXIS=DEVICES` as a mesh."""

import pytest

from ctxext.cli.options import parse_mesh
from ctxext.parallel.mesh import Mesh


def test_other_axes_have_one_device():
    assert parse_mesh(["fsdp=8", "tensor=2"]) == Mesh(fsdp=8, tensor=2)
    assert parse_mesh(["fsdp=-1"]) == Mesh(fsdp=-1)
    assert parse_mesh([]) == Mesh()


@pytest.mark.parametrize("argument", ["fdsp=4", "fsdp=four", "fsdp", "4"])
def test_a_bad_option_is_refused_with_the_axes(argument):
    message = f"--mesh {argument}: give AXIS=DEVICES with AXIS one of data, fsdp, seq, tensor"
    with pytest.raises(ValueError, match=message):
        parse_mesh([argument])

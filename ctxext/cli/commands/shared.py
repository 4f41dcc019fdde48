"""What several commands read from their options."""

import argparse
import re
from collections.abc import Sequence
from typing import Any


def read_methods(args: argparse.Namespace, rest: list[str]) -> tuple[Any, ...]:
    """The methods of --method and --attention, with their fields from the other options."""
    from ctxext.cli.overrides import make_methods, parse_fields

    return make_methods(
        [*(args.method or ()), *([args.attention] if args.attention else ())], parse_fields(rest)
    )


def open_model(args: argparse.Namespace, rest: list[str]) -> Any:
    """The model of SOURCE under those methods."""
    from ctxext import loading

    return loading.load(
        args.source,
        method=read_methods(args, rest),
        adapter=args.adapter,
        checkpoint=args.checkpoint,
        dtype=args.compute_dtype,
        mesh=read_mesh(args),
        trust=args.trust_run,
    )


def read_mesh(args: argparse.Namespace) -> Any:
    """The mesh of --mesh."""
    return parse_mesh(args.mesh)


def parse_mesh(arguments: Sequence[str]) -> Any:
    """The mesh of `["fsdp=8", "tensor=2"]`. Raises ValueError for an unknown axis or no number."""
    from ctxext.parallel.mesh import Mesh

    axes = list(Mesh().sizes)
    sizes = {}
    for argument in arguments:
        axis, _, size = argument.partition("=")
        if axis not in axes or not re.fullmatch(r"-?\d+", size):
            raise ValueError(
                f"--mesh {argument}: give AXIS=DEVICES with AXIS one of {', '.join(axes)}"
            )
        sizes[axis] = int(size)
    return Mesh(**sizes)


def refuse_rest(rest: list[str]) -> None:
    """Raises ValueError if an option is left over."""
    if rest:
        raise ValueError(f"unknown option {rest[0]}; see --help")

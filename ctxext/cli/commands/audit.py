"""Tell what a method can see, before anyone trains: leaks, keys counted twice, blind spots.

ctxext audit self-extend --group-size 4 --neighbor-window 1024 --seq-len 16384
ctxext audit mine.py:MyAttention yarn --factor 4 --init meta-llama-dir --plot seen.html
ctxext audit experiments/demo.py

Methods come first, then their fields; attention and frequencies are looked at together. The exit
status is 0 without findings, 1 with findings and 2 for bad input.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxext.cli import base_options, numbers, options

if TYPE_CHECKING:
    from ctxext.audit import Subject

GROUP = "Methods"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        metavar="METHOD|EXPERIMENT",
        nargs="*",
        help="A method by its name or as FILE.py:Class, as with --method; or an experiment.",
    )
    options.add_method(parser)
    base_options.add_base(parser, layers=True)
    options.add_trust(parser)
    parser.add_argument(
        "--seq-len",
        type=numbers.count,
        metavar="N",
        help="The length in tokens; default: factor x L, 2 L without a factor, or the length that "
        "the experiment trains.",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.svg|FILE.html",
        help="Draw which keys each query sees.",
    )
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    from ctxext.audit import audit
    from ctxext.cli.audit_view import AuditView
    from ctxext.report.pages.page import check_drawing

    if args.plot:
        check_drawing(args.plot)
    experiments = [name for name in args.names if Path(name).suffix in (".py", ".json", ".toml")]
    if experiments:
        subject, positions = _of_experiment(args, rest)
    else:
        subject, positions = _of_methods(args, rest)
    result = audit(subject)
    view = AuditView(result, positions)
    page = view.plot(args.plot) if args.plot else None
    print(view.json() if args.json else view.text(), flush=True)
    if page:
        print(f"\nplot: {page}", file=sys.stderr if args.json else sys.stdout)
    return 1 if result.findings else 0


def _of_experiment(args: argparse.Namespace, rest: list[str]) -> "tuple[Subject, str]":
    """The attention and the frequencies that an experiment trains."""
    from ctxext import loading
    from ctxext.audit import Subject
    from ctxext.rope import target_length

    if len(args.names) > 1:
        raise ValueError(
            f"{' '.join(args.names)}: give one experiment, and methods that replace its own with "
            "--method"
        )
    base_options.refuse_shape(args, f"{args.names[0]} is an experiment, which has a model")
    (args.experiment,) = args.names
    experiment = options.read_experiment(args, rest)
    config, carried = loading.base_config(experiment)
    scaling = experiment.effective_scaling(carried)
    target = target_length(scaling, config.max_position_embeddings) or 0
    return (
        Subject(
            attention=experiment.attention,
            scaling=scaling,
            base=config.rope_base(),
            seq_len=args.seq_len or max(experiment.trained_length, target),
            layers=config.layer_kinds,
            heads=(config.num_attention_heads, config.num_key_value_heads),
        ),
        config.positions,
    )


def _of_methods(args: argparse.Namespace, rest: list[str]) -> "tuple[Subject, str]":
    """Methods over the checkpoint of --init, or over a shape."""
    from ctxext import loading
    from ctxext.audit import Subject
    from ctxext.cli.method_options import make_methods
    from ctxext.rope import target_length

    names = [*args.names, *args.method]
    if not names:
        raise ValueError("name a method or an experiment, as in: ctxext audit yarn --factor 4")
    attention, scaling = _by_seam(make_methods(names, rest, known=options.option_names(args)))
    config = base_options.read_base(args)
    if args.init is not None:
        config.check_scaling(scaling)
        scaling = loading.read_context(args.init).resolve(scaling)
    base = config.rope_base()
    window = base.original_max_position_embeddings
    seq_len = args.seq_len or target_length(scaling, window) or 2 * window
    heads = (config.num_attention_heads, config.num_key_value_heads)
    subject = Subject(attention, scaling, base, seq_len, config.layer_kinds, heads)
    return subject, config.positions


def _by_seam(methods: Sequence[Any]) -> tuple[Any, Any]:
    """(attention, frequencies), with the plain ones where none is named."""
    from ctxext.attention.pieces import Attention, Causal
    from ctxext.methods import label
    from ctxext.rope import RopeScaling, Unscaled

    attention = [method for method in methods if isinstance(method, Attention)]
    scaling = [method for method in methods if isinstance(method, RopeScaling)]
    for method in methods:
        if not isinstance(method, Attention | RopeScaling):
            raise ValueError(
                f"{label([method])} chooses positions in training; audit looks at attention and "
                "frequencies"
            )
    for of_seam in (attention, scaling):
        if len(of_seam) > 1:
            raise ValueError(
                f"{label(of_seam)}: name one attention method and one for frequencies at most"
            )
    return (attention or [Causal()])[0], (scaling or [Unscaled()])[0]

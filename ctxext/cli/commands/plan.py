"""Tell whether an experiment fits: memory, operations, the longest context; allocates nothing.

ctxext plan experiments/llama2_7b_yarn_8k.py --topology h100:8
ctxext plan experiments/llama2_7b_yarn_8k.py --mesh.fsdp 16 --train.seq-len 32768
"""

import argparse

from ctxext.cli import options

GROUP = "Train"


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_experiment(parser)
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="The accelerators: v4|v5e|v5p|v6e:CHIPS, h100:8, ...; default: each in turn.",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="Find the longest context that fits, over mesh and rematerialisation.",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="Ask the compiler of the accelerator, which needs no device: extra plan or plan-gpu.",
    )
    parser.add_argument(
        "--precise",
        action="store_true",
        help="With --compile: optimise as much as a real run does, which takes minutes.",
    )
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import loading, requirements
    from ctxext.plan.accelerators import topology
    from ctxext.plan.plan import Plan

    experiment = options.read_experiment(args, rest)
    # A search tries other meshes than that of the experiment.
    is_given = args.topology and not args.search
    num_devices = topology(args.topology)[1] if is_given else None
    requirements.check_context(experiment, num_devices=num_devices)
    plan = Plan.of(
        experiment,
        *loading.base_config(experiment),
        on=args.topology,
        compiled=args.compile,
        precise=args.precise,
        searched=args.search,
    )
    print(plan.json() if args.json else plan.text())

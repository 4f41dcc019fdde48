"""Run every experiment that sweep() of a file yields, here, on Ray or on Slurm; one report.

ctxext sweep experiments/sweep.py --out runs/sweep --jobs 2
ctxext sweep experiments/sweep.py --out runs/sweep --launcher slurm --gpus 8 --partition a100

Methods and leaves, as in `ctxext run`, change all trials. The same command resumes what is not
finished.
"""

import argparse
import json
from pathlib import Path

from ctxext.cli import numbers, options

KEPT = "every finished trial is kept, and what the others had kept themselves"


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_experiment(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="Where each trial has its run directory and its log, and where the report is.",
    )
    parser.add_argument(
        "--launcher",
        default="local",
        choices=["local", "ray", "slurm", "submitit-local"],
        help="Where trials run. ray and slurm need the extras of these names; submitit-local runs "
        "Slurm's jobs on this machine.",
    )
    parser.add_argument(
        "--jobs", type=numbers.integer, default=1, metavar="N", help="Trials at a time."
    )
    parser.add_argument(
        "--cpus",
        type=numbers.integer,
        default=1,
        metavar="N",
        help="CPUs per trial, for ray and slurm.",
    )
    parser.add_argument(
        "--gpus",
        type=numbers.integer,
        default=0,
        metavar="N",
        help="GPUs per trial, for ray and slurm.",
    )
    parser.add_argument(
        "--minutes",
        type=numbers.integer,
        default=240,
        metavar="N",
        help="Time limit of a trial, for slurm; a trial that exceeds it is requeued and resumes.",
    )
    parser.add_argument(
        "--retries",
        type=numbers.integer,
        default=0,
        metavar="N",
        help="How often a failed trial is repeated.",
    )
    parser.add_argument("--partition", metavar="NAME", help="The partition, for slurm.")
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="The Ray cluster to use; by default one is started here.",
    )
    options.add_track(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="Print the command of each trial and run nothing."
    )
    parser.add_argument(
        "--wandb-yaml",
        action="store_true",
        help="Print the configuration for `wandb sweep` and run nothing.",
    )
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    from ctxext import loading, requirements, sweep
    from ctxext.experiment import load_sweep

    experiments = load_sweep(args.experiment, options.base_config(args))
    for experiment in experiments.values():
        changed = options.change_experiment(experiment, args, rest)  # refuses a wrong option
        if changed.init is not None and loading.is_here(changed.init):
            requirements.check_context(changed)
    arguments = [
        *(["--init", args.init] if args.init else []),
        *(word for name in args.method for word in ("--method", name)),
        *(["--follow-links"] if args.follow_links else []),
        "--track",
        args.track,
        *rest,
    ]
    if args.wandb_yaml:
        print(sweep.wandb_yaml(args.experiment, list(experiments), arguments), end="")
        return 0
    trials = [sweep.Trial.of(args.experiment, name, args.out, arguments) for name in experiments]
    if args.dry_run:
        print("\n".join(trial.text for trial in trials))
        return 0
    resources = sweep.Resources(
        jobs=args.jobs,
        cpus=args.cpus,
        gpus=args.gpus,
        minutes=args.minutes,
        retries=args.retries,
        partition=args.partition,
        address=args.address,
    )
    result = sweep.sweep(trials, args.out, args.launcher, resources)
    print(json.dumps(result.data) if args.json else result.text)
    return 1 if result.failed else 0

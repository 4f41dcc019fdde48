"""Run every experiment that sweep() of a file yields, here, on Ray or on Slurm; one report.

ctxext sweep experiments/tiny_sweep.py --out runs/sweep --jobs 2
ctxext sweep overrides.toml --out runs/sweep
ctxext sweep experiments/tiny_sweep.py --out runs/sweep --launcher slurm --gpus 8 --partition a100
ctxext sweep experiments/tiny_sweep.py --out runs/sweep --trials 'yarn-*'

Methods and leaves, as in `ctxext run`, change all trials. The same command resumes what is not
finished.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxext.cli import numbers, options

GROUP = "Train"
KEPT = "every finished trial is kept, and what the others had kept themselves"


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_experiment(parser)
    options.add_budget(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="Where each trial has its run directory and its log, and where the report is.",
    )
    parser.add_argument(
        "--trials",
        nargs="+",
        metavar="PATTERN",
        help="Only the trials with these names, in which * stands for anything; default: all.",
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
        "--dry-run",
        action="store_true",
        help="Print the command of each trial, say how long they will take, and run nothing.",
    )
    parser.add_argument(
        "--wandb-yaml",
        action="store_true",
        help="Print the configuration for `wandb sweep` and run nothing.",
    )
    options.add_resume(parser)
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    from ctxext import loading, requirements, sweep

    by_name = options.read_trials(args, in_file=True)
    if args.trials is not None:
        by_name = sweep.choose(by_name, args.trials)
    experiments = {
        name: options.change_experiment(experiment, args, rest)  # refuses a wrong option
        for name, experiment in by_name.items()
    }
    for experiment in experiments.values():
        if experiment.init is not None and loading.is_here(experiment.init):
            requirements.check_context(experiment)
    arguments = [
        *(["--init", args.init] if args.init else []),
        *(word for name in args.method for word in ("--method", name)),
        *(["--budget", args.budget] if args.budget else []),
        *(["--follow-links"] if args.follow_links else []),
        *(["--trust-run"] if args.trust_run else []),
        "--track",
        args.track,
        *rest,
    ]
    if args.wandb_yaml:
        print(sweep.wandb_yaml(args.experiment, list(experiments), arguments), end="")
        return 0
    for line in missing_texts(experiments):
        print(line, file=sys.stderr)
    trials = [sweep.Trial.of(args.experiment, name, args.out, arguments) for name in experiments]
    if args.dry_run:
        print("\n".join(trial.text for trial in trials))
        runs = [(experiments[trial.name], trial.run) for trial in trials]
        print("\n".join(_estimates(runs)), file=sys.stderr)
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


def missing_texts(experiments: Mapping[str, Any]) -> Iterator[str]:
    """A line for each text that is not there, with the trials that will fail without it."""
    from ctxext import requirements

    needed_by: dict[str, list[str]] = {}
    for name, experiment in experiments.items():
        for sentence in requirements.missing(experiment):
            needed_by.setdefault(sentence, []).append(name)
    for sentence, names in needed_by.items():
        trials = names[0] if len(names) == 1 else f"{len(names)} trials"
        yield f"missing for {trials}: {sentence}"


def _estimates(runs: Sequence[tuple[Any, Path]]) -> Iterator[str]:
    """A line for each of the experiments and run directories, and one for all of them."""
    from ctxext import loading
    from ctxext.progress import duration
    from ctxext.stages.planned import estimate_all

    away = {e.init for e, _ in runs if e.init is not None and not loading.is_here(e.init)}
    if away:
        yield f"time: not estimated, as {', '.join(away)} would have to be downloaded"
        return
    if any(e.init is None and e.model is None for e, _ in runs):
        yield "time: not estimated, as no base is named; give --init DIR"
        return
    seconds = []
    for experiment, one in estimate_all(runs):
        yield f"{experiment.name}: {one.total}"
        seconds.append(one.seconds)
    known = [x for x in seconds if x is not None]
    if len(known) == len(seconds):
        yield f"{len(seconds)} trials, one after the other: about {duration(sum(known))}"

"""What is done with an experiment: run it, train it, plan it."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any


def _base_config(args: argparse.Namespace) -> Callable[[], Any]:
    """Reads the shape of the base that --init names, when a file asks for it."""

    def read() -> Any:
        from ctxext import loading
        from ctxext.experiment import BUNDLED

        return loading.read_config(args.init or BUNDLED)[0]

    return read


def read_experiment(args: argparse.Namespace, rest: list[str]) -> Any:
    """The experiment file with --init, --method and leaf overrides applied."""
    from ctxext.cli.overrides import override, swap_method
    from ctxext.experiment import load_experiment, load_sweep

    base_config = _base_config(args)
    if getattr(args, "trial", None):
        trials = load_sweep(args.experiment, base_config)
        if args.trial not in trials:
            raise ValueError(
                f"{args.experiment} has no trial {args.trial!r}; it has {', '.join(trials)}"
            )
        experiment = trials[args.trial]
    else:
        experiment = load_experiment(args.experiment, base_config)
    if args.init:
        rest = ["--init", args.init, *rest]
    for name in args.method or ():
        experiment = swap_method(experiment, name, rest)
    return override(experiment, rest)


def _inspect(args: argparse.Namespace, experiment: Any) -> bool:
    """Serve --print-config and --dry-run; True if one of them was asked for."""
    from ctxext import loading
    from ctxext.serialization import to_json

    if args.print_config:
        print(json.dumps(to_json(experiment), indent=2))
    if args.dry_run:
        from ctxext.cli.dry_run import dry_run

        config, scaling = loading.base_config(experiment)
        print(dry_run(experiment, config, scaling))
    return args.print_config or args.dry_run


def _trackers(args: argparse.Namespace) -> tuple[str, ...]:
    from ctxext.tracking import parse

    return tuple(name for name in parse(args.track) if not (args.no_wandb and name == "wandb"))


def run(args: argparse.Namespace, rest: list[str]) -> None:
    experiment = read_experiment(args, rest)
    if not _inspect(args, experiment):
        from ctxext import pipeline as module
        from ctxext.cli.compilation import compiled

        with compiled() as count:
            result = module.run(
                experiment, run_dir=args.run_dir, file=args.experiment, track=_trackers(args)
            )
        print(count.text, file=sys.stderr)
        print(json.dumps(result.summary) if args.json else result.text)


def demo(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import demo as module

    args.experiment, args.init, args.method = module.__file__, None, None
    run(args, rest)


def train(args: argparse.Namespace, rest: list[str]) -> None:
    experiment = read_experiment(args, rest)
    if not _inspect(args, experiment):
        from ctxext import pipeline as module
        from ctxext.tracking import kept_offline

        path = module.train_only(
            experiment, args.run_dir, file=args.experiment, track=_trackers(args)
        )
        print(json.dumps({"run": str(path)}) if args.json else f"run directory: {path}")
        if not args.json and (upload := kept_offline(path)):
            print(f"not uploaded: {upload}")


def sweep(args: argparse.Namespace, rest: list[str]) -> int:
    from ctxext import sweep as module
    from ctxext.experiment import load_sweep

    names = list(load_sweep(args.experiment, _base_config(args)))
    given = [*(["--init", args.init] if args.init else []), *(["--track", args.track]), *rest]
    if args.wandb_yaml:
        print(module.wandb_yaml(args.experiment, names, given), end="")
        return 0
    trials = [module.Trial.of(args.experiment, name, args.out, given) for name in names]
    if args.dry_run:
        print("\n".join(trial.text for trial in trials))
        return 0
    resources = module.Resources(
        args.jobs, args.cpus, args.gpus, args.minutes, args.retries, args.partition, args.address
    )
    found = module.sweep(trials, args.out, args.launcher, resources)
    print(json.dumps(found.data) if args.json else found.text)
    return 1 if found.failed else 0


def plan(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import loading
    from ctxext.plan.tables import Plan

    experiment = read_experiment(args, rest)
    found = Plan.of(
        experiment,
        *loading.base_config(experiment),
        on=args.topology,
        compiled=args.compile,
        precise=args.precise,
        searched=args.search,
    )
    print(found.json() if args.json else found.text())

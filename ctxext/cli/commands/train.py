"""Train an experiment, without evaluations and export; the same command resumes it.

ctxext train experiments/demo.py --method lora --rank 8
"""

import argparse
import json

from ctxext.cli import options

GROUP = "Train"
KEPT = "every checkpoint is kept"


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_experiment(parser)
    options.add_trial(parser)
    options.add_run(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    experiment = options.read_experiment(args, rest, trial=args.trial)
    if options.inspect(args, experiment, training_only=True):
        return
    from ctxext import pipeline
    from ctxext.tracking import kept_offline

    path = pipeline.train_only(
        experiment, args.run_dir, file=args.experiment, track=options.read_trackers(args)
    )
    if args.json:
        print(json.dumps({"run": str(path)}))
        return
    print(f"run directory: {path}")
    if upload := kept_offline(path):
        print(f"not uploaded: {upload}")

"""Train, evaluate, export, prove and report an experiment; the same command resumes it.

ctxext run experiments/demo.py
ctxext run experiments/demo.py --init DIR --method yarn --factor 8 --train.steps 400
ctxext run experiments/demo.py --dry-run
ctxext run runs/mine/config.json --train.steps 200

It exits with 1 if the export is not equal to the model, which the proof then says.
"""

import argparse
import json
import sys

from ctxext.cli import options

GROUP = "Train"
KEPT = "every finished record and checkpoint is kept"


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_experiment(parser)
    options.add_budget(parser)
    options.add_trial(parser)
    options.add_run(parser)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    experiment = options.read_experiment(args, rest, trial=args.trial)
    if options.inspect(args, experiment):
        return 0
    from ctxext import pipeline
    from ctxext.cli.compile_cache import count_compilations

    with count_compilations() as count:
        result = pipeline.run(
            experiment,
            run_dir=args.run_dir,
            file=args.experiment,
            track=options.read_trackers(args),
        )
    print(count.text, file=sys.stderr)
    print(json.dumps(result.summary) if args.json else result.text)
    return 0 if result.proof is None or result.proof["equal"] else 1

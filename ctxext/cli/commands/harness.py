"""Run tasks of lm-evaluation-harness on a model, and on its base. Needs the extra lm-eval.

ctxext harness RUN --tasks hellaswag arc_easy --against BASE
"""

import argparse
import json
from pathlib import Path

from ctxext.cli import numbers, options

GROUP = "Measure"


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_semantics(parser)
    parser.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help="Tasks, groups of tasks, or YAML files.",
    )
    parser.add_argument(
        "--include-path", type=Path, metavar="DIR", help="A directory with your own tasks."
    )
    parser.add_argument(
        "--against",
        metavar="RUN|HF_DIR",
        help="Run this model too, and compare document by document.",
    )
    parser.add_argument(
        "--limit",
        type=numbers.number,
        metavar="N",
        help="Documents per task, or below 1 a fraction of them; default: all.",
    )
    parser.add_argument(
        "--num-fewshot",
        type=numbers.integer,
        metavar="K",
        help="Examples in the prompt; default: the task's.",
    )
    parser.add_argument(
        "--max-length",
        type=numbers.count,
        metavar="N",
        help="The longest context in tokens; default: the window of pre-training.",
    )
    parser.add_argument(
        "--seed",
        type=numbers.seed,
        default=0,
        metavar="N",
        help="The seed of tasks that sample.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="Where harness/ is written; default: the run, or runs/eval-<name>.",
    )
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext.harness import tasks

    request = tasks.Request(
        tuple(args.tasks),
        args.include_path,
        args.limit,
        args.num_fewshot,
        args.max_length,
        args.seed,
    )
    methods = options.read_methods(args, rest)
    model = options.open_named_model(args, methods, semantics=args.semantics)
    options.say_context(model.lm.context, model.lm.scaling)
    result = tasks.report(model, request, against=args.against, out=args.out)
    directory = result.save()
    if args.json:
        print(json.dumps(result.data))
    else:
        print(f"{result.text}\n\nresults and samples: {directory}")

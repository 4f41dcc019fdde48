"""What every command does: thin, and everything heavy is imported when it runs."""

import argparse
from collections.abc import Callable
from typing import Any

from ctxext.cli.commands.data import prepare
from ctxext.cli.commands.experiments import demo, plan, run, sweep, train
from ctxext.cli.commands.models import bench, evaluate, export, generate, harness, import_, prove
from ctxext.cli.commands.views import dashboard, methods, report, rope, ruler

COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], Any]] = {
    "demo": demo,
    "run": run,
    "train": train,
    "plan": plan,
    "sweep": sweep,
    "eval": evaluate,
    "harness": harness,
    "export": export,
    "prove": prove,
    "import": import_,
    "prepare": prepare,
    "generate": generate,
    "report": report,
    "ruler": ruler,
    "bench": bench,
    "methods": methods,
    "rope": rope,
    "dashboard": dashboard,
}

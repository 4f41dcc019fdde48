"""The configuration file of `wandb sweep`: the trials by name, run by the same command line."""

import json
from collections.abc import Sequence
from pathlib import Path


def wandb_yaml(file: str | Path, names: Sequence[str], arguments: Sequence[str] = ()) -> str:
    """A grid over the trials; leaves such as optim.learning_rate can be added as parameters.

    arguments: options of every trial.
    """
    command = ["${env}", "ctxext", "run", str(file), *arguments, "${args}"]
    lines = [
        "method: grid",
        "command:",
        *(f"  - {json.dumps(part)}" for part in command),
        "parameters:",
        "  trial:",
        f"    values: {json.dumps(list(names))}",
    ]
    return "\n".join(lines) + "\n"

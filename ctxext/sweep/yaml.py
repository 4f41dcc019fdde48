"""What `wandb sweep` reads: the trials by name, run by the same command line, `${args}` and all."""

import json
from collections.abc import Sequence
from pathlib import Path


def wandb_yaml(file: str | Path, names: Sequence[str], given: Sequence[str] = ()) -> str:
    """A grid over the trials; add parameters such as optim.learning_rate, whose names are leaves of the experiment.

    given: options of every trial.
    """
    command = ["${env}", "ctxext", "run", str(file), *given, "${args}"]
    lines = [
        "method: grid",
        "command:",
        *(f"  - {json.dumps(part)}" for part in command),
        "parameters:",
        "  trial:",
        f"    values: {json.dumps(list(names))}",
    ]
    return "\n".join(lines) + "\n"

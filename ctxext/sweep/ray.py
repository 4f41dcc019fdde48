"""Run trials as tasks of a Ray cluster, an existing one or one that is started here."""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from ctxext.sweep.trial import Outcome, Resources, Trial


def launch(trials: Sequence[Trial], resources: Resources) -> Iterator[Outcome]:
    """Run a task for each trial, and run it again elsewhere if its node is lost or it fails.

    The run directories must be on a file system that all nodes share. Raises ValueError without
    ray, or if no cluster answers at `resources.address`.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise ValueError("this launcher needs ray: pip install 'ctxext[ray]'") from None
    try:
        ray.init(
            address=resources.address,
            include_dashboard=False,
            log_to_driver=False,
            ignore_reinit_error=True,
            configure_logging=False,
        )
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster answers at {resources.address}: {error}") from None
    options = {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "max_retries": resources.retries + 3,
    }
    perform = ray.remote(**options)(Trial.perform)
    waiting = {perform.remote(trial, resources.retries): trial for trial in trials}
    while waiting:
        (ended,), _ = ray.wait(list(waiting), num_returns=1)
        trial = waiting.pop(ended)
        try:
            yield ray.get(ended)
        except ray.exceptions.RayError:
            # The node, or its memory, was lost more often than there are retries.
            yield trial.outcome(1)

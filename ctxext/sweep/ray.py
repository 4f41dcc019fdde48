"""Trials as tasks of a Ray cluster, an existing one or one that is started here."""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from ctxext.sweep.trial import Outcome, Resources, Trial


def launch(trials: Sequence[Trial], resources: Resources) -> Iterator[Outcome]:
    """A task for each trial with its CPUs and GPUs; one whose node is lost, or that fails, is done again elsewhere.

    The run directories must be on a file system that all nodes see. Raises ValueError without ray, or if no cluster
    answers at `resources.address`.
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
    room = {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "max_retries": resources.retries + 3,
    }
    perform = ray.remote(**room)(Trial.perform)
    waiting = {perform.remote(trial, resources.retries): trial for trial in trials}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        trial = waiting.pop(done)
        try:
            yield ray.get(done)
        except ray.exceptions.RayError:  # lost more often than it may be: the node, or its memory
            yield trial.outcome(1)

"""The estimate of runs that are only planned: nothing is loaded but their tokenizers."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ctxext import loading
from ctxext.experiment import Experiment
from ctxext.model.decoder import param_shapes
from ctxext.model.lm import LM
from ctxext.parallel.mesh import ONE_DEVICE
from ctxext.rundir import RunDir, default_run_dir
from ctxext.stages import budget
from ctxext.stages.estimate import Estimate, Plan
from ctxext.stages.own_text import for_estimate
from ctxext.stages.speeds import Speeds


def estimate(
    experiment: Experiment,
    run_dir: Path | None = None,
    *,
    training_only: bool = False,
    speeds: Speeds | None = None,
    read_own_text: bool = True,
) -> Estimate:
    """The stages of a run and their times; no weights are loaded.

    run_dir: the directory of the run, of which only what it lacks is counted. speeds: of this
    device with the same base, if they were measured before. read_own_text: look for the documents
    that training holds out, which evaluations may read. Raises ValueError for a budget in
    minutes whose texts cannot be counted, or that is too small.
    """
    base = _base_without_weights(experiment)
    own_text_in = base.tokenizer if base is not None and read_own_text else None
    experiment, notes = for_estimate(experiment, own_text_in)
    run = RunDir(run_dir or default_run_dir(experiment))
    run = run if run.config_file.is_file() else None
    texts = None
    if not training_only and experiment.evals and budget.is_minutes(experiment.budget):
        texts = budget.known_texts(run, experiment.budget)
        if texts is None:
            whole = Plan.of(experiment, base, experiment.evals)
            reason = ""
            if speeds is None:
                speeds, reason = whole.speeds(dry=True, always=True)
            if speeds is None or not whole.is_countable:
                why = reason or "as not all evaluations can be counted"
                raise ValueError(
                    f"--budget {experiment.budget}: the time of the evaluations is not known, "
                    f"{why}; give small or medium"
                )
            texts = budget.texts_within(experiment.budget, whole, speeds)
    scaled = budget.scale(experiment.budget, experiment.evals, texts=texts)
    plan = Plan.of(experiment, base, scaled.evals, run, training_only=training_only)
    reason = ""
    if speeds is None:
        speeds, reason = plan.speeds(dry=True)
    return dataclasses.replace(plan.estimate(speeds, reason), notes=notes)


def estimate_all(
    runs: Sequence[tuple[Experiment, Path]],
) -> Iterator[tuple[Experiment, Estimate]]:
    """The estimate of each of several runs, which time the same base only once."""
    measured: dict[tuple[Any, ...], Speeds] = {}
    for experiment, run_dir in runs:
        key = experiment.init, experiment.model, experiment.train.dtype, experiment.mesh
        one = estimate(experiment, run_dir, speeds=measured.get(key), read_own_text=False)
        if one.speeds is not None:
            measured.setdefault(key, one.speeds)
        yield experiment, one


def _base_without_weights(experiment: Experiment) -> LM | None:
    """What evaluations are counted with: shapes and a tokenizer. None if there is no tokenizer."""
    source = experiment.init or experiment.tokenizer
    if source is None:
        return None
    config, scaling = loading.base_config(experiment)
    tokenizer = loading.open_tokenizer(source)
    mesh = experiment.mesh
    try:
        mesh.build()
    except ValueError:
        mesh = ONE_DEVICE  # only for padding; what is timed asks for the mesh itself
    return LM(
        config,
        param_shapes(config),
        loading.choose_bos(tokenizer, experiment.bos, Path(source)),
        scaling=scaling,
        mesh=mesh,
        declared_context=loading.base_context(experiment),
    )

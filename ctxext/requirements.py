"""The texts that an experiment reads and the context it asks for, checked before it starts."""

import shlex
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctxext import loading
from ctxext.attention import Attention
from ctxext.attention.ring import check_length
from ctxext.data import text_on_disk
from ctxext.data.documents import Field, Found, check_beginnings, check_texts, find_files
from ctxext.data.sources import Prepared, Split, TextOnDisk, TextSource
from ctxext.data.token_files import is_prepared, open_prepared, read_index
from ctxext.experiment import Experiment
from ctxext.losses import CrossEntropy
from ctxext.methods import method_name
from ctxext.model.context import meant_scaling
from ctxext.model.trainable import LoRA
from ctxext.rope import RopeScaling
from ctxext.rope_by_length import checked_switch_lengths
from ctxext.rundir import RunDir
from ctxext.serialization import type_tag
from ctxext.tokenization.answers import training_chat
from ctxext.training import evaluation_set

LOW_FOR_ADAPTERS, MANY_FOR_ADAPTERS = 5e-5, 1000
"""A learning rate below the usual ones of LoRA, and steps with which it was published (2e-5 in
1,000 steps, arXiv 2309.12307)."""


class Requirement(NamedTuple):
    """A directory or file of text, what reads it, and how much it has to hold."""

    text: TextOnDisk
    reader: str
    """The name of an evaluation, or "data" for training."""
    documents: int = 1
    tokens: int = 0
    """In each of those documents, without BOS and EOS."""

    @property
    def path(self) -> str:
        return self.text.path

    @property
    def place(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def field_option(self) -> str:
        return "--data.field" if self.reader == "data" else "the field of its source"

    def how_to_prepare(self, tokenizer: str) -> str:
        """The sentence for a missing text, with the command that makes it."""
        size = ""
        min_tokens = ""
        if self.tokens:
            size = f"{self.documents} documents of at least {self.tokens:,} tokens: "
            min_tokens = f" --min-tokens {self.tokens + 2}"  # `prepare` counts BOS and EOS
        held_out = ""
        if self.reader == "data":
            alternative = ", or name other text with --data.path"
        else:
            held_out = " --held-out 0"  # nothing is trained on it
            alternative = "; `ctxext train` does without it"
        return (
            f"{self.reader} reads {self.path}, which is not there: {size}ctxext prepare YOUR_TEXTS "
            f"--out {shlex.quote(self.path)} --tokenizer {tokenizer}{min_tokens}{held_out}"
            f"{alternative}"
        )


def requirements(experiment: Experiment, *, training_only: bool = False) -> Iterator[Requirement]:
    """The texts that training and, unless `training_only`, the evaluations read."""
    if experiment.train.steps:
        for text in text_on_disk(experiment.data):
            yield Requirement(text, "data")
    if training_only:
        return
    for evaluation in experiment.evals:
        documents = getattr(evaluation, "num_documents", 1)
        tokens = evaluation.required_tokens
        for text in text_on_disk(evaluation):
            yield Requirement(text, evaluation.title, documents, tokens)


def missing(experiment: Experiment, *, training_only: bool = False) -> list[str]:
    """A sentence for each text that is not there; reads nothing."""
    tokenizer = shlex.quote(experiment.init or experiment.tokenizer or "HF_DIR")
    sentences = [
        requirement.how_to_prepare(tokenizer)
        for requirement in requirements(experiment, training_only=training_only)
        if not requirement.place.exists()
    ]
    return list(dict.fromkeys(sentences))


def doubts(experiment: Experiment) -> list[str]:
    """Sentences on settings of the training that can be run, but teach little."""
    steps, optim = experiment.train.steps, experiment.optim
    if not steps:
        return []
    sentences = []
    if optim.warmup_steps >= steps:
        last = optim.learning_rate * steps / (optim.warmup_steps + 1)
        sentences.append(
            f"the learning rate still warms up when the training ends, optim.warmup_steps "
            f"{optim.warmup_steps} of train.steps {steps}: it comes to {last:.2g} of "
            f"{optim.learning_rate:g}; give fewer --optim.warmup-steps"
        )
    is_adapter = isinstance(experiment.trainable, LoRA)
    if is_adapter and optim.learning_rate < LOW_FOR_ADAPTERS and steps < MANY_FOR_ADAPTERS:
        sentences.append(
            f"adapters hardly change in {steps} steps at optim.learning_rate "
            f"{optim.learning_rate:g}, which is one for all parameters: those of LoRA are usually "
            "1e-4 to 2e-4 (--optim.learning-rate 2e-4)"
        )
    return sentences


def unreadable(experiment: Experiment) -> list[str]:
    """A sentence for each text that is there but does not begin as text that can be read.

    And for a chat template that records need and the base does not have.
    """
    sentences = []
    for requirement in requirements(experiment):
        if requirement.place.exists():
            try:
                _check_text(requirement.text, requirement.field_option, check_beginnings)
            except ValueError as error:
                sentences.append(str(error))
    source = experiment.init or experiment.tokenizer
    if source is not None and loading.is_here(source):
        try:
            _check_templates(experiment, [needed.text for needed in requirements(experiment)])
        except ValueError as error:
            sentences.append(str(error))
    return list(dict.fromkeys(sentences))


def check_text(value: Any, *, option: str) -> None:
    """Read every text on disk of a source, or of anything that holds sources.

    Says which files in a directory are not read. `option` chooses the key or column of the text.
    Raises ValueError that names the first file, line, row or entry that cannot be read.
    """
    for text in text_on_disk(value):
        _check_text(text, option, check_texts)


def check_held_out(source: TextSource, *, model: str) -> None:
    """Say how many documents of a held-out part there are, which reads all of them.

    model: a run or a checkpoint. Raises ValueError if there are none, or if the run held out less.
    Of prepared data, that is the share that `ctxext prepare` held out.
    """
    if not isinstance(source, Split):
        return
    path = Path(model)
    if loading.is_run(path):  # a name on the hub is none, and is not downloaded for this
        settings = RunDir(path).settings()
        default = settings["train"].get("held_out", 0.0)
        share = min(_shares_held_out(settings.get("data"), default), default=default)
        if source.share > share:
            advice = f"give at most --held-out {share:g}" if share else "leave --held-out out"
            raise ValueError(
                f"{path} held a share of {share:g} out of training, and may have seen some of the "
                f"documents of --held-out {source.share:g}: {advice}"
            )
    held_out = source.held_out()
    if not held_out.documents:
        raise ValueError(held_out.note)
    print(f"data: {held_out.note}", file=sys.stderr)


def _shares_held_out(data: Any, share: float) -> Iterator[float]:
    """What each text in the data of a run, as JSON, holds out of training.

    share: `train.held_out`, which is that of files of text. Prepared data has its own, which is
    said to be unknown where the directory is gone.
    """
    if isinstance(data, list):
        for item in data:
            yield from _shares_held_out(item, share)
    if not isinstance(data, dict):
        return
    kind = data.get("__type__")
    if kind == type_tag(Split):
        yield data["share"] if data["split"] == "train" else 0.0
        return
    path = data.get("path")
    root = Path(str(path)).expanduser()
    if path is not None and is_prepared(root):
        own = read_index(root).get("held_out")
        yield own if isinstance(own, int | float) else 0.0
    elif kind == type_tag(Prepared):
        print(
            f"data: the run trained on prepared data in {path}, which is not here: what that held "
            "out of training is not known, and --held-out is not compared with it",
            file=sys.stderr,
        )
    elif path is not None:
        yield share
    else:
        yield from _shares_held_out(list(data.values()), share)


def _check_text(text: TextOnDisk, option: str, read: Callable[[Found, Field], None]) -> None:
    root = Path(text.path).expanduser()
    if is_prepared(root):
        return
    if text.field is None:
        read_index(root)  # says what is missing
        return
    found = find_files(root)
    if found.note:
        print(found.note, file=sys.stderr)
    chat_option = "--data.chat-template" if option == "--data.field" else ""
    read(found, Field(text.field, option, chat_option, text.chat_template is not None))


def _check_templates(experiment: Experiment, texts: Collection[TextOnDisk]) -> None:
    """Raise ValueError for a chat template that the tokenizer lacks or that cannot be read."""
    templates = {text.chat_template for text in texts if text.chat_template is not None}
    source = experiment.init or experiment.tokenizer
    if not templates or source is None:
        return
    tokenizer = loading.open_tokenizer(source)
    for template in sorted(templates):
        training_chat(tokenizer, template, "--data.chat-template")


def check_context(
    experiment: Experiment, *, training_only: bool = False, num_devices: int | None = None
) -> None:
    """Raise ValueError for a factor that gives less context than the base checkpoint declares.

    Also for a choice by a measure that is not evaluated during training, for frequencies that
    cannot follow each document, for a loss that cannot train this base, for rows that cannot be cut
    over devices, and for evaluations that this attention cannot answer. With `training_only`, only
    what is trained is checked. num_devices: those that it runs on; without it, rows are not checked
    where mesh.seq is -1, the remaining devices. Reads no weights.
    """
    methods: list[Any] = [] if experiment.rope is None else [experiment.rope]
    if not training_only:
        methods += [*experiment.zero_shot, *experiment.baselines]
    scalings = [method for method in methods if isinstance(method, RopeScaling)]
    if scalings:
        config, base_scaling = loading.base_config(experiment)
        for scaling in scalings:
            config.check_scaling(meant_scaling(scaling, base_scaling))
    _check_attention(experiment, training_only=training_only)
    if experiment.train.steps:
        _check_loss(experiment)
        _check_rows(experiment, num_devices)
    if experiment.train.steps and experiment.train.rope_length == "document":
        config, base_scaling = loading.base_config(experiment)
        for scaling in (experiment.rope, *(() if training_only else experiment.baselines)):
            trained = meant_scaling(scaling, base_scaling)
            checked_switch_lengths(trained, config.rope_base())
    if scalings and not experiment.allow_shorter:
        context = loading.base_context(experiment)
        for scaling in scalings:
            context.check(scaling)
    if experiment.train.eval_every:
        evaluation_set.check(experiment, loading.base_context(experiment))


def _check_attention(experiment: Experiment, *, training_only: bool) -> None:
    """Raise ValueError for evaluations that a method of the experiment cannot answer."""
    trained = experiment.evaluated_attention
    evaluated = [trained, *(m for m in experiment.zero_shot if isinstance(m, Attention))]
    for attention in [] if training_only else evaluated:
        for evaluation in experiment.evals:
            evaluation.check_attention(attention)
    if experiment.train.steps and experiment.train.eval_every:
        seq_lens = evaluation_set.lengths(experiment, loading.base_context(experiment))
        for evaluation in evaluation_set.retrieval_evals(experiment, seq_lens):
            try:
                evaluation.check_attention(trained)
            except ValueError as error:
                raise ValueError(f"train.eval_set: {error}") from error


def _check_rows(experiment: Experiment, num_devices: int | None) -> None:
    """Raise ValueError for rows, or short texts of the loss, that mesh.seq cannot cut."""
    devices = experiment.mesh.seq
    if num_devices is not None:
        devices = experiment.mesh.sizes_over(num_devices)["seq"]
    if devices < 2:
        return
    check_length(experiment.train.seq_len, devices, what="rows (train.seq_len)")
    config, _ = loading.base_config(experiment)
    lengths = experiment.lengths(config.max_position_embeddings)
    for seq_len in experiment.loss.short_passes(lengths):
        check_length(seq_len, devices, what=f"short texts of {method_name(experiment.loss)}")


def _check_loss(experiment: Experiment) -> None:
    """Raise ValueError for a loss that cannot train this base at these lengths."""
    loss = experiment.loss
    if loss.has_teacher and experiment.init is None:
        raise ValueError(
            f"{method_name(loss)} compares with the base, and a model from scratch has none; give "
            "--init DIR, or --method cross-entropy"
        )
    if not isinstance(loss, CrossEntropy):
        config, _ = loading.base_config(experiment)
        loss.check(experiment.lengths(config.max_position_embeddings), config.num_hidden_layers)


def check(experiment: Experiment, *, training_only: bool = False) -> None:
    """Raise ValueError for text that is not there, or that cannot be used.

    All text is read once. Prepared tokens must be complete, made by the experiment's tokenizer, and
    enough for the evaluations.
    """
    if sentences := missing(experiment, training_only=training_only):
        raise ValueError("; ".join(sentences))
    required = list(requirements(experiment, training_only=training_only))
    options = {requirement.text: requirement.field_option for requirement in reversed(required)}
    _check_templates(experiment, options)
    for text, option in options.items():
        _check_text(text, option, check_texts)
    prepared = [requirement for requirement in required if is_prepared(requirement.place)]
    source = experiment.init or experiment.tokenizer
    if not prepared or source is None:
        return
    tokenizer = loading.open_tokenizer(source).with_bos(experiment.bos)
    for requirement in prepared:
        corpus = open_prepared(requirement.place, requirement.text.split, tokenizer)
        markers = (corpus.bos_id is not None) + (corpus.eos_id is not None)
        lengths = np.diff(corpus.offsets) - markers
        enough = int(np.count_nonzero(lengths >= requirement.tokens))
        if enough < requirement.documents:
            raise ValueError(
                f"{requirement.reader} reads {requirement.documents} documents of at least "
                f"{requirement.tokens:,} tokens from {requirement.path}, which has {enough} of "
                f"{len(lengths)}: prepare more text"
            )

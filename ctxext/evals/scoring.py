"""Exam questions put to a model, and what it did with them: written, teacher-forced, chosen."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from ctxext.evals.base import Model
from ctxext.tasks import Example
from ctxext.tasks.base import encode_fragment
from ctxext.tasks.building.scores import failure, score


class Marked(TypedDict):
    """What a row says about the answer to one question."""

    prediction: list[int]
    """Ids that were written, up to the first that ends the answer."""
    text: str
    metric: str
    score: float
    """0..1 by the metric."""
    correct: bool
    """The score is 1."""
    failure: str | None
    """The kind of mistake (`tasks.scores.failure`); None for a right answer."""
    answer_logprobs: list[float]
    answer_nll: float
    """Mean nats per token of the right answer after the true ones before it."""
    answer_probability: float
    choices: int
    """K of the K-way choice, whose chance level is 1/K; 1 where there is nothing to choose from."""
    chosen: bool | None
    """Whether the right answer is the most likely of them, by nats per token; None where there is no choice."""


def mark(lm: Model, exams: Sequence[Sequence[Example]]) -> list[list[Marked]]:
    """Every question of every exam. A text is read once for its questions and for all that is asked about them."""
    prompts = [exam[0].prompt[: _shared(exam[0])] for exam in exams]
    plans = [
        [continuation for example in exam for continuation in _branches(example)] for exam in exams
    ]
    most = max(map(len, plans))
    prefixes = [plan + [plan[-1]] * (most - len(plan)) for plan in plans]
    stop = _stop_ids(lm.tokenizer, exams)
    steps = max(
        len(e.prompt) - _shared(e) + max(e.max_new_tokens, *map(len, [e.answer, *e.choices]))
        for x in exams
        for e in x
    )
    written, nats = lm.continuations(prompts, prefixes, max_new_tokens=steps, stop=stop)
    out = []
    for exam, tokens, losses in zip(exams, written, np.asarray(nats, np.float64), strict=True):
        row, marks = 0, []
        for example in exam:
            size = 2 + len(example.choices)
            marks.append(
                _marked(lm.tokenizer, example, tokens[row], losses[row : row + size], stop)
            )
            row += size
        out.append(marks)
    return out


def _shared(example: Example) -> int:
    return example.num_shared_tokens or len(example.prompt)


def _branches(example: Example) -> list[np.ndarray]:
    """What the continuations of a question begin with: itself, itself and each answer that could be meant."""
    own = example.prompt[_shared(example) :]
    return [own, *(np.concatenate([own, answer]) for answer in (example.answer, *example.choices))]


def _stop_ids(tokenizer: Any, exams: Sequence[Sequence[Example]]) -> list[int]:
    """Ids that end every answer: end of text, and the line's end where all answers are lines."""
    if all(example.metric == "exact" for exam in exams for example in exam):
        return []  # exactly the answer's ids are written
    ends = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    lines = all(example.stop_at_newline for exam in exams for example in exam)
    return ends + ([encode_fragment(tokenizer, "\n")[-1]] if lines else [])


def _marked(
    tokenizer: Any, example: Example, written: np.ndarray, nats: np.ndarray, stop: Sequence[int]
) -> Marked:
    own = len(example.prompt) - _shared(example)
    ids = np.asarray(written)[own:][: example.max_new_tokens].tolist()
    ends = [ids.index(end) for end in stop if end in ids]
    ids = ids[: min(ends)] if ends else ids
    text = tokenizer.decode(ids)
    counted = text.split("\n")[0] if example.stop_at_newline else text
    if example.metric == "exact":
        value = float(ids[: len(example.answer)] == example.answer.tolist())
    else:
        value = score(example.metric, counted, example.references, labels=example.distractors)
    answers = [example.answer, *example.choices]
    losses = [row[own:][: len(answer)] for row, answer in zip(nats[1:], answers, strict=True)]
    means = [float(loss.mean()) for loss in losses]
    mistake = None
    if value < 1:
        references = example.references or (tokenizer.decode(example.answer.tolist()).strip(),)
        prompt = tokenizer.decode(example.prompt.tolist())
        mistake = failure(counted, references, distractors=example.distractors, prompt=prompt)
    return {
        "prediction": ids,
        "text": text,
        "metric": example.metric,
        "score": value,
        "correct": value == 1,
        "failure": mistake,
        "answer_logprobs": (-losses[0]).tolist(),
        "answer_nll": means[0],
        "answer_probability": float(np.exp(-losses[0].sum())),
        "choices": len(answers),
        "chosen": means[0] < min(means[1:]) if means[1:] else None,
    }

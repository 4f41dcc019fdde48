"""Ask a model questions and score its answers: written freely, teacher-forced, and chosen.

A question has one continuation that the model writes, one that is forced to be the right answer,
and one for each wrong answer that it could choose. All of them share one reading of the prompt.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ctxext.evals.base import Model, ids_sha256
from ctxext.evals.record import AnswerScores, Cluster, Condition, Question
from ctxext.tasks import Example
from ctxext.tasks.base import encode_fragment
from ctxext.tasks.building.scores import failure, score


def score_answers(lm: Model, groups: Sequence[Sequence[Example]]) -> list[list[AnswerScores]]:
    """The scores of every question of every group; the questions of a group share one text.

    Each text is read once, for all of its questions and all of their continuations.
    """
    prompts = [group[0].prompt[: _num_shared(group[0])] for group in groups]
    plans = [[prefix for example in group for prefix in _prefixes(example)] for group in groups]
    width = max(map(len, plans))
    prefixes = [plan + [plan[-1]] * (width - len(plan)) for plan in plans]
    stop = _stop_ids(lm, groups)
    max_new_tokens = max(_num_new_tokens(example) for group in groups for example in group)
    written, nll = lm.continuations(prompts, prefixes, max_new_tokens=max_new_tokens, stop=stop)
    scores = []
    for group, tokens, losses in zip(groups, written, np.asarray(nll, np.float64), strict=True):
        first = 0
        group_scores = []
        for example in group:
            last = first + 2 + len(example.choices)
            group_scores.append(
                _scores(lm.tokenizer, example, tokens[first], losses[first:last], stop)
            )
            first = last
        scores.append(group_scores)
    return scores


def answer_losses(lm: Model, groups: Sequence[Sequence[Example]]) -> list[list[float]]:
    """Nats of the whole right answer to every question of every group, teacher-forced.

    Each text is read once, for all of its questions, as in `score_answers`.
    """
    prompts = [group[0].prompt[: _num_shared(group[0])] for group in groups]
    plans = [[_prefixes(example)[1] for example in group] for group in groups]
    width = max(map(len, plans))
    prefixes = [plan + [plan[-1]] * (width - len(plan)) for plan in plans]
    longest = max(len(prefix) for plan in plans for prefix in plan)
    _, nll = lm.continuations(prompts, prefixes, max_new_tokens=longest)
    return [
        [
            float(
                np.asarray(row, np.float64)[len(prefix) - len(example.answer) : len(prefix)].sum()
            )
            for example, prefix, row in zip(group, plan, rows, strict=False)
        ]
        for group, plan, rows in zip(groups, plans, nll, strict=True)
    ]


def _num_shared(example: Example) -> int:
    """Prompt tokens that the questions of a group have in common."""
    return example.num_shared_tokens or len(example.prompt)


def _num_new_tokens(example: Example) -> int:
    """Tokens after the shared prompt: the question's own, and the longest answer to it."""
    own = len(example.prompt) - _num_shared(example)
    return own + max(example.max_new_tokens, len(example.answer), *map(len, example.choices))


def _prefixes(example: Example) -> list[np.ndarray]:
    """The forced beginnings of the continuations of a question.

    The first is the question alone, so that the model writes the answer; the others are the
    question with the right answer and with each wrong choice.
    """
    own = example.prompt[_num_shared(example) :]
    answers = (example.answer, *example.choices)
    return [own, *(np.concatenate([own, answer]) for answer in answers)]


def _stop_ids(lm: Model, groups: Sequence[Sequence[Example]]) -> list[int]:
    """Ids that end every answer: end of text, and the end of the line if all answers are lines."""
    examples = [example for group in groups for example in group]
    if all(example.metric == "exact" for example in examples):
        return []  # exactly as many tokens as the answer has are written
    ends = list(lm.stop_ids)
    if all(example.stop_at_newline for example in examples):
        ends.append(encode_fragment(lm.tokenizer, "\n")[-1])
    return ends


def _scores(
    tokenizer: Any, example: Example, written: np.ndarray, nll: np.ndarray, stop: Sequence[int]
) -> AnswerScores:
    """Scores of one question.

    written: int [T], what the model wrote. nll: float [K + 1, T], of the written continuation,
    the right answer and the K - 1 other choices.
    """
    own = len(example.prompt) - _num_shared(example)
    ids = np.asarray(written)[own:][: example.max_new_tokens].tolist()
    ends = [ids.index(end) for end in stop if end in ids]
    if ends:
        ids = ids[: min(ends)]
    text = tokenizer.decode(ids)
    counted = text.split("\n")[0] if example.stop_at_newline else text
    if example.metric == "exact":
        value = float(ids[: len(example.answer)] == example.answer.tolist())
    else:
        value = score(
            example.metric, example.stem + counted, example.references, labels=example.distractors
        )
    mistake = None
    if value < 1:
        references = example.references or (tokenizer.decode(example.answer.tolist()).strip(),)
        prompt = tokenizer.decode(example.prompt.tolist())
        mistake = failure(counted, references, distractors=example.distractors, prompt=prompt)
    answers = [example.answer, *example.choices]
    losses = [row[own:][: len(answer)] for row, answer in zip(nll[1:], answers, strict=True)]
    means = [float(loss.mean()) for loss in losses]
    return AnswerScores(
        prediction=tuple(ids),
        text=text,
        metric=example.metric,
        score=value,
        correct=value == 1,
        answer_logprobs=tuple((-losses[0]).tolist()),
        answer_nll=means[0],
        answer_probability=float(np.exp(-losses[0].sum())),
        choices=len(answers),
        chosen=means[0] < min(means[1:]) if means[1:] else None,
        failure=mistake,
    )


QUESTION_FACTS = ("needles", "distance", "distances", "haystack", "document")
"""Keys of `Example.meta` that have a typed part in a record; all others go to its `facts`."""


def question(
    example: Example,
    *,
    task: str,
    fields: dict[str, Any],
    needle_item: str,
    condition: Condition = "needle",
    depth: float | None = None,
    suite: str = "",
    label: str = "",
) -> Question:
    """The part of a record that describes the question.

    depth: as requested; None if it is not known where the needle is.
    """
    meta = example.meta
    return Question(
        task=task,
        fields=_plain(fields),
        condition=condition,
        needle_item=needle_item,
        tokens=len(example.prompt) + example.max_new_tokens,
        prompt_sha256=ids_sha256(example.prompt),
        gold=tuple(example.answer.tolist()),
        depth=depth,
        depth_achieved=None if depth is None else example.depth,
        needles=tuple(tuple(span) for span in meta["needles"]),
        distance=meta.get("distance"),
        distances=tuple(meta.get("distances", ())),
        haystack=tuple(tuple(piece) for piece in meta["haystack"]),
        suite=suite,
        label=label,
    )


def cluster(example: Example, item: str, *, text: str | None = None) -> Cluster:
    """The cluster of a question: by its own unit, else the haystack's first document, else alone.

    text: name of the text that several questions share.
    """
    haystack = example.meta["haystack"]
    document = example.meta.get("document", haystack[0][0] if haystack else item)
    return Cluster(document=document, text=text or item)


def facts(example: Example) -> dict[str, Any]:
    """The facts that a task notes about a question beyond the typed parts of a record."""
    return _plain({k: value for k, value in example.meta.items() if k not in QUESTION_FACTS})


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """The same as JSON has it, lists instead of tuples: a record equals what is read back."""
    return json.loads(json.dumps(value))


def nearest_quarter(depth: float) -> float:
    """0, 0.25, 0.5, 0.75 or 1: the depth that a drawn depth counts as in tables."""
    return round(4 * depth) / 4

"""The i-th of several replies to the same request, among replies to others (arXiv 2409.12640)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np

from ctxext.tasks.base import (
    Example,
    SharedContextTask,
    SuiteLayout,
    SuiteOptions,
    Task,
    TaskContext,
)
from ctxext.tasks.building.categories import CATEGORIES
from ctxext.tasks.building.line_questions import (
    AskedLines,
    LineQuestion,
    ask_lines,
    order_lines,
)
from ctxext.tasks.building.placement import lines_that_fit
from ctxext.tasks.building.structured_scores import prefixed_ratio
from ctxext.tasks.building.vocabulary import ADJECTIVES, PLACES, distinct

Part = Literal["start", "whole"]
FORMS = tuple("poem letter riddle speech story song report notice".split())
TOPICS = (*CATEGORIES["animals"], *CATEGORIES["birds"])
ORDINALS = tuple("first second third fourth fifth sixth seventh eighth".split())
VERBS = tuple(
    """
    danced dozed dreamed hesitated hid lingered listened mumbled paused rested shivered sighed sang
    trembled waited wandered wept whistled worked yawned
    """.split()
)
TIMES = ("dawn", "noon", "dusk", "midnight", "sunrise", "teatime", "breakfast", "supper")
REPLIES_WITHOUT_LENGTH = 4
"""Replies to other requests where no length is given."""


class Request(NamedTuple):
    """What is asked for: a form and a topic."""

    form: str
    topic: str

    def __str__(self) -> str:
        return f"{self.form} about the {self.topic}"


class Reply(NamedTuple):
    """The first words of a reply, which no other has, and the whole of it, one line."""

    start: str
    whole: str


class Turn(NamedTuple):
    """A request with the reply to it."""

    request: Request
    reply: Reply

    def ids(self, context: TaskContext) -> list[int]:
        return context.encode(f"\n\nRequest: a {self.request}\nReply: {self.reply.whole}")


@dataclass(frozen=True)
class Mrcr(SharedContextTask):
    """As many requests with replies as fit, `num_similar` of them equal; one is asked for again.

    `Request: a poem about the heron` and `Reply: The amber falcon sang near the mellow museum. ...`
    repeat, and `Request: the second poem about the heron again` ends the prompt. Half of the other
    requests have the same form or the same topic. This is multi-round co-reference resolution
    (arXiv 2409.12640), with our own replies and, for base models, `shots` worked examples about
    other requests of the text.

    start: the answer is the first three words, exactly; the choice is between those of the equal
    requests, right by chance once in `num_similar` times. whole: the answer is the whole reply
    after a word that the question names; the score is `structured_scores.prefixed_ratio`, as
    OpenAI's MRCR scores. A record's `chance_score` is the mean of that ratio over the replies to
    equal requests: what an answer scores that takes any of them.
    """

    name: ClassVar[str] = "mrcr"
    suite_layout: ClassVar[SuiteLayout] = "shared-context"
    part: Part = "start"
    """The first words of a reply, or all of it."""
    num_similar: int = 4
    """Equal requests."""
    shots: int = 2
    """Worked examples before the question, about requests that the text has twice."""

    def __post_init__(self) -> None:
        if self.part not in get_args(Part):
            raise ValueError(
                f"{self.name}: part {self.part!r} is not known; choose one of "
                f"{', '.join(get_args(Part))}"
            )
        if not 2 <= self.num_similar <= len(ORDINALS) or self.shots < 0:
            raise ValueError(
                f"{self.name}: num_similar must be 2 to {len(ORDINALS)}, and shots at least 0"
            )

    @classmethod
    def suite_names(cls) -> tuple[str, ...]:
        return ("mrcr", "mrcr-whole")

    @classmethod
    def for_suite(cls, suite_name: str, options: SuiteOptions) -> tuple[Task, ...]:
        return (cls("whole" if suite_name == "mrcr-whole" else "start"),)

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A reply at each depth, `num_similar` of them to one request, and a question for each."""
        rng = context.rng
        num_groups = -(-len(depths) // self.num_similar)
        requests = _requests(rng, num_groups + self.shots, self.name)
        asked = [request for request in requests[:num_groups] for _ in range(self.num_similar)]
        shown = [request for request in requests[num_groups:] for _ in range(2)]
        replies = _replies(rng)
        turns = list(map(Turn, [*asked, *shown], replies))
        chosen = [*range(len(depths)), *range(len(asked), len(turns), 2)]
        prefixes = list(islice(distinct(rng, "coined"), len(chosen)))
        room = self._room(context, turns, prefixes)
        more = map(Turn, _other_requests(rng, requests), replies)
        if seq_len is None:
            turns += islice(more, REPLIES_WITHOUT_LENGTH)
        else:
            left = seq_len - len(context.bos) - sum(len(turn.ids(context)) for turn in turns)
            left -= (1 + self.shots) * (self._longest_question(context, requests, prefixes) + room)
            turns += lines_that_fit(more, left, lambda turn: len(turn.ids(context)))
        at_depth = {} if seq_len is None else dict(enumerate(map(context.draw_depth, depths)))
        order = order_lines(context, len(turns), at_depth, task=self.name)
        # The turns with the same request as each that is asked about, in the order of the text.
        equal = [[j for j in order if turns[j].request == turns[i].request] for i in chosen]
        asking = [
            self._question(context, group.index(i), turns[i].request, prefix)
            for i, group, prefix in zip(chosen, equal, prefixes, strict=True)
        ]
        answers = [
            self._answer(context, turns[i].reply, prefix)
            for i, prefix in zip(chosen, prefixes, strict=True)
        ]
        shots = zip(asking[len(depths) :], answers[len(depths) :], strict=True)
        tail = [token for ids, answer in shots for token in ids + answer]
        questions = []
        for i in range(len(depths)):
            reply = turns[i].reply
            wrong = [turns[j].reply for j in equal[i] if j != i]
            whole = f"{prefixes[i]} {reply.whole}"
            facts: dict[str, Any] = {
                "name": str(turns[i].request),
                "rank": equal[i].index(i) + 1,
                "num_replies": len(turns),
            }
            if self.part == "whole":
                taken = [f"{prefixes[i]} {other.whole}" for other in [reply, *wrong]]
                ratios = [prefixed_ratio(text, prefixes[i], whole) for text in taken]
                facts["chance_score"] = sum(ratios) / len(ratios)
            question = LineQuestion(
                asking[i],
                answers[i],
                [order.index(i)],
                [reply.start] if self.part == "start" else [prefixes[i], whole],
                distractors=[other.start for other in wrong],
                choices=[self._answer(context, other, prefixes[i]) for other in wrong],
                facts=facts,
            )
            questions.append(question)
        metric = "exact" if self.part == "start" else "prefixed-ratio"
        how = AskedLines(self.name, metric, room, tail)
        lines = [turns[i].ids(context) for i in order]
        return ask_lines(context, seq_len, lines, questions, how)

    def _question(
        self, context: TaskContext, rank: int, request: Request, prefix: str
    ) -> list[int]:
        after = f", after the word {prefix}" if self.part == "whole" else ""
        return context.encode(f"\n\nRequest: the {ORDINALS[rank]} {request} again{after}\nReply:")

    def _answer(self, context: TaskContext, reply: Reply, prefix: str) -> list[int]:
        text = reply.start if self.part == "start" else f"{prefix} {reply.whole}"
        return context.encode(f" {text}")

    def _room(self, context: TaskContext, turns: Sequence[Turn], prefixes: Sequence[str]) -> int:
        """The most tokens of an answer to one of these replies, and of the newline after it."""
        answers = [self._answer(context, turn.reply, "") for turn in turns]
        longest_prefix = max(len(context.encode(f" {prefix}")) for prefix in prefixes)
        return max(map(len, answers)) + longest_prefix + len(context.newline)

    def _longest_question(
        self, context: TaskContext, requests: Sequence[Request], prefixes: Sequence[str]
    ) -> int:
        return max(
            len(self._question(context, rank, request, prefix))
            for rank in range(self.num_similar)
            for request in requests
            for prefix in prefixes
        )


def _requests(rng: np.random.Generator, count: int, task: str) -> list[Request]:
    """Different requests, of which no two share a topic."""
    if count > len(TOPICS) - len(FORMS):
        raise ValueError(f"{task}: ask for fewer questions about a text")
    topics = rng.permutation(TOPICS)[:count].tolist()
    return [Request(str(rng.choice(FORMS)), topic) for topic in topics]


def _other_requests(rng: np.random.Generator, requests: Sequence[Request]) -> Iterator[Request]:
    """Endless requests that equal none of these; half share a form or a topic with one of them."""
    while True:
        request = Request(str(rng.choice(FORMS)), str(rng.choice(TOPICS)))
        similar = requests[int(rng.integers(len(requests)))]
        match int(rng.integers(4)):
            case 0:
                request = request._replace(form=similar.form)
            case 1:
                request = request._replace(topic=similar.topic)
        if request not in requests:
            yield request


def _replies(rng: np.random.Generator) -> Iterator[Reply]:
    """Replies until all pairs of words for a beginning are used up; no two begin alike."""

    def draw(words: Sequence[str]) -> str:
        return str(rng.choice(words))

    for pair in distinct(rng, "words"):
        start = f"The {pair.replace('-', ' ')}"
        first = f"{start} {draw(VERBS)} near the {draw(ADJECTIVES)} {draw(PLACES)}."
        second = f"At {draw(TIMES)}, it {draw(VERBS)} by the {draw(ADJECTIVES)} {draw(PLACES)}."
        yield Reply(start, f"{first} {second}")

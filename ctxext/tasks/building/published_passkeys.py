"""Passkey procedures of papers: length of the text, keys, tokens written, what counts as right.

The wording is our own unless the authors' text is given, which makes the numbers comparable with
published ones.
"""

import abc
import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from ctxext.files import read_json
from ctxext.tasks.base import Example, Task, TaskContext, as_ids, bos_prefix
from ctxext.tasks.building.placement import check_depth
from ctxext.tasks.building.scores import Metric
from ctxext.tokenization.protocol import TokenizerLike


@dataclass(frozen=True)
class Wording:
    """The parts of a prompt: statement, noise, needle, noise again, question, a line each.

    noise: sentences that are repeated and cut by characters; needle: contains {key}; question: ends
    where the key is next.
    """

    type_tag: ClassVar[str] = "passkey-wording"
    statement: str = (
        "A number is hidden somewhere in the pages below, which are otherwise of no interest. "
        "Find it."
    )
    noise: str = (
        "Rain fell on the roof. A dog slept by the door. The tea was warm. Nobody came in. "
        "The day was long."
    )
    needle: str = "The hidden number is {key}. Keep it well: {key} is the hidden number."
    question: str = "Which number was hidden? The hidden number is"

    def __post_init__(self) -> None:
        if "{key}" not in self.needle or not self.noise:
            raise ValueError(
                "a passkey's needle must contain {key}, and its noise must not be empty"
            )


def read_wording(path: str | Path) -> Wording:
    """The parts from a JSON object. Raises ValueError unless it has exactly the four texts."""
    wording = read_json(path)
    names = [field.name for field in fields(Wording)]
    is_complete = isinstance(wording, dict) and set(wording) == set(names)
    if not is_complete or not all(isinstance(text, str) for text in wording.values()):
        raise ValueError(
            f"{path} must hold a JSON object of texts with the keys {', '.join(names)}"
        )
    return Wording(**wording)


@dataclass(frozen=True)
class PasskeyProtocol(Task):
    """A passkey question whose noise is counted in characters: its length is near `seq_len`.

    A record holds the `characters` of noise that were used, and in `tokens` what prompt and answer
    really take. Depth None: the noise before the needle is uniform, in characters. The haystack is
    not used.
    """

    type_tag: ClassVar[str] = "task/passkey/"
    keys: ClassVar[tuple[int, int]] = (1, 50_000)
    """The smallest key and the largest."""
    trials: ClassVar[int]
    """Questions per length, and per depth where depths are prescribed."""
    metric: ClassVar[Metric] = "first-number"
    max_new_tokens: ClassVar[int] = 10
    wording: Wording = Wording()

    @classmethod
    def suite_names(cls) -> tuple[str, ...]:
        """None: `passkey:<protocol>` asks it with the protocol's own depths and trials."""
        return ()

    @classmethod
    def depths(cls) -> tuple[float | None, ...]:
        """The depths of the keys; None: anywhere."""
        return (None,)

    @abc.abstractmethod
    def characters(self, tokenizer: TokenizerLike, seq_len: int) -> int:
        """How many characters of noise correspond to `seq_len` tokens."""

    def prompt(
        self, tokenizer: TokenizerLike, key: int, before: int, after: int
    ) -> tuple[list[int], list[int]]:
        """The ids of a prompt, BOS first, and the span [start, length] of its needle.

        before, after: characters of noise around the needle.
        """
        wording = self.wording
        repeats = max(before, after) // (len(wording.noise) + 1) + 1
        noise = " ".join([wording.noise] * repeats)
        needle = wording.needle.replace("{key}", str(key))
        start = f"{wording.statement}\n{noise[:before]}\n"
        text = f"{start}{needle}\n{noise[:after]}\n{wording.question}"
        first = len(tokenizer.encode(start))
        stop = len(tokenizer.encode(start + needle))
        head = bos_prefix(tokenizer)
        return head + tokenizer.encode(text), [len(head) + first, stop - first]

    def example(
        self, context: TaskContext, seq_len: int | None, depth: float | None = None
    ) -> Example:
        """One key in noise for about `seq_len` tokens; seq_len None: no noise at all."""
        rng = context.rng
        check_depth(depth, self.name)
        total = 0 if seq_len is None else self.characters(context.tokenizer, seq_len)
        before = int(rng.integers(total + 1)) if depth is None else round(depth * total)
        key = int(rng.integers(self.keys[0], self.keys[1] + 1))
        prompt, needle = self.prompt(context.tokenizer, key, before, total - before)
        answer = as_ids(context.encode(f" {key}"))
        distance = len(prompt) - needle[0]
        meta: dict[str, Any] = {
            "name": self.name,
            "value": str(key),
            "needles": [needle],
            "distance": distance,
            "distances": [distance],
            "characters": total,
            "haystack": [],
            "document": f"{key}/{before}",  # each draw is an independent unit for intervals
        }
        return Example(
            as_ids(prompt),
            answer,
            before / total if total else 0.0,
            meta,
            len(answer) if self.metric == "exact" else self.max_new_tokens,
            metric=self.metric,
            references=(str(key),),
        )


@functools.lru_cache(maxsize=256)
def max_noise(task: PasskeyProtocol, tokenizer: TokenizerLike, seq_len: int, step: int) -> int:
    """The largest multiple of `step` characters with which a prompt has at most `seq_len` tokens.

    Measured with a key of five digits in the middle. Raises ValueError if nothing fits.
    """

    def num_tokens(characters: int) -> int:
        before = characters // 2
        return len(task.prompt(tokenizer, 23_456, before, characters - before)[0])

    shortest = num_tokens(0)
    if shortest > seq_len:
        raise ValueError(
            f"{task.name}: the shortest prompt is {shortest} tokens, and {seq_len} are too few"
        )
    return (first_true(lambda count: num_tokens(count * step) > seq_len) - 1) * step


def first_true(holds: Callable[[int], bool]) -> int:
    """The smallest n >= 0 for which `holds(n)`, which must stay true once it is."""
    low = -1
    high = 1
    while not holds(high):
        low = high
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


@dataclass(frozen=True)
class Landmark(PasskeyProtocol):
    """Landmark attention (arXiv 2305.16300): whole hundreds of characters, as many as fit."""

    name: ClassVar[str] = "passkey-landmark"
    trials: ClassVar[int] = 50

    def characters(self, tokenizer: TokenizerLike, seq_len: int) -> int:
        return max_noise(self, tokenizer, seq_len, 100)


@dataclass(frozen=True)
class Yarn(PasskeyProtocol):
    """YaRN (arXiv 2309.00071): steps of 128 characters, as many as stay below `seq_len` tokens."""

    name: ClassVar[str] = "passkey-yarn"
    trials: ClassVar[int] = 20

    def characters(self, tokenizer: TokenizerLike, seq_len: int) -> int:
        return max_noise(self, tokenizer, seq_len - 1, 128)


@dataclass(frozen=True)
class PI(PasskeyProtocol):
    """Position interpolation (arXiv 2306.15595): 32 equally spaced distances, keys of five digits.

    How its prompts are filled is not published: here as far as `seq_len` tokens hold them and the
    answer.
    """

    name: ClassVar[str] = "passkey-pi"
    keys: ClassVar[tuple[int, int]] = (10_000, 99_999)
    trials: ClassVar[int] = 10

    @classmethod
    def depths(cls) -> tuple[float | None, ...]:
        return tuple(i / 32 for i in range(32))

    def characters(self, tokenizer: TokenizerLike, seq_len: int) -> int:
        return max_noise(self, tokenizer, seq_len - self.max_new_tokens, 1)


@dataclass(frozen=True)
class LongLora(PasskeyProtocol):
    """LongLoRA (arXiv 2309.12307): 3.75 characters per token, down to whole 1024s.

    Only the very ids of the key are right.
    """

    name: ClassVar[str] = "passkey-longlora"
    keys: ClassVar[tuple[int, int]] = (1, 49_999)
    trials: ClassVar[int] = 10
    metric: ClassVar[Metric] = "exact"

    def characters(self, tokenizer: TokenizerLike, seq_len: int) -> int:
        return int(3.75 * seq_len // 1024 * 1024)

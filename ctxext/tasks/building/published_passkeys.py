"""Published passkey procedures: how long the text is, which keys, how many tokens are written, what counts as right.

The wording is our own unless the authors' text is given: with it the numbers can be compared with published ones.
"""

import abc
import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ctxext.files import read_json
from ctxext.tasks.base import Encoder, Example, Haystack, Task, beginning, encode_piece
from ctxext.tasks.building.scores import Metric


@dataclass(frozen=True)
class Wording:
    """The parts of a prompt: statement, noise, needle, noise again, question, a line each.

    noise: sentences that are repeated and cut by characters; needle: says {key}; question: ends where the key is next.
    """

    type_tag: ClassVar[str] = "passkey-wording"
    statement: str = "A number is hidden somewhere in the pages below, which are otherwise of no interest. Find it."
    noise: str = "Rain fell on the roof. A dog slept by the door. The tea was warm. Nobody came in. The day was long."
    needle: str = "The hidden number is {key}. Keep it well: {key} is the hidden number."
    question: str = "Which number was hidden? The hidden number is"

    def __post_init__(self) -> None:
        if "{key}" not in self.needle or not self.noise:
            raise ValueError("a passkey's needle must say {key}, and its noise must not be empty")


def read_wording(path: str | Path) -> Wording:
    """The parts from a JSON object. Raises ValueError unless it has exactly the four texts."""
    found, names = read_json(path), [field.name for field in fields(Wording)]
    if (
        not isinstance(found, dict)
        or set(found) != set(names)
        or not all(isinstance(x, str) for x in found.values())
    ):
        raise ValueError(
            f"{path} must hold a JSON object of texts with the keys {', '.join(names)}"
        )
    return Wording(**found)


@dataclass(frozen=True)
class PasskeyProtocol(Task):
    """A passkey question whose noise is counted in characters, so that its tokens are near `seq_len`, not equal to it.

    A row says the `characters` of noise that were used, and in `tokens` what the prompt and the room for the answer
    really take. Depth None: the noise before the needle is uniform, in characters. The haystack is not used.
    """

    type_tag: ClassVar[str] = "task/passkey/"
    keys: ClassVar[tuple[int, int]] = (1, 50_000)
    """The smallest key and the largest."""
    trials: ClassVar[int]
    """Questions per length, and per depth where depths are prescribed."""
    metric: ClassVar[Metric] = "first-number"
    room: ClassVar[int] = 10
    wording: Wording = Wording()

    @classmethod
    def depths(cls) -> tuple[float | None, ...]:
        """Where keys are put; None: anywhere."""
        return (None,)

    @abc.abstractmethod
    def characters(self, tokenizer: Encoder, seq_len: int) -> int:
        """How many characters of noise stand for `seq_len` tokens."""

    def prompt(
        self, tokenizer: Encoder, key: int, before: int, after: int
    ) -> tuple[list[int], list[int]]:
        """Ids, BOS first, of a prompt with so many characters of noise; and the span [start, length] of its needle."""
        words, count = self.wording, max(before, after)
        noise = " ".join([words.noise] * (count // (len(words.noise) + 1) + 1))
        needle = words.needle.replace("{key}", str(key))
        start = f"{words.statement}\n{noise[:before]}\n"
        text = f"{start}{needle}\n{noise[:after]}\n{words.question}"
        first, last = (len(tokenizer.encode(part)) for part in (start, start + needle))
        head = beginning(tokenizer)
        return head + tokenizer.encode(text), [len(head) + first, last - first]

    def example(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depth: float | None = None,
        haystack: Haystack,
    ) -> Example:
        """One key in noise for about `seq_len` tokens; seq_len None: no noise at all."""
        if depth is not None and not 0 <= depth <= 1:
            raise ValueError(f"{self.name}: depth {depth} is outside 0..1")
        n = 0 if seq_len is None else self.characters(tokenizer, seq_len)
        before = int(rng.integers(n + 1)) if depth is None else round(depth * n)
        key = int(rng.integers(self.keys[0], self.keys[1] + 1))
        prompt, needle = self.prompt(tokenizer, key, before, n - before)
        answer = np.asarray(encode_piece(tokenizer, f" {key}"), np.int32)
        distance = len(prompt) - needle[0]
        meta: dict[str, Any] = {
            "name": self.name,
            "value": str(key),
            "needles": [needle],
            "distance": distance,
            "distances": [distance],
            "characters": n,
            "haystack": [],
            "document": f"{key}/{before}",  # the unit of chance is a draw
        }
        room = 0 if self.metric == "exact" else self.room
        return Example(
            np.asarray(prompt, np.int32),
            answer,
            before / n if n else 0.0,
            meta,
            metric=self.metric,
            references=(str(key),),
            room=room,
        )


@functools.lru_cache(maxsize=256)
def most_noise(task: PasskeyProtocol, tokenizer: Encoder, seq_len: int, step: int) -> int:
    """The multiple of `step` characters before the first with which a prompt has more than `seq_len` tokens.

    Measured with a key of five digits in the middle. Raises ValueError if nothing fits.
    """

    def fits(n: int) -> bool:
        return len(task.prompt(tokenizer, 23_456, n // 2, n - n // 2)[0]) <= seq_len

    if not fits(0):
        shortest = len(task.prompt(tokenizer, 23_456, 0, 0)[0])
        raise ValueError(
            f"{task.name}: the shortest prompt is {shortest} tokens, and {seq_len} are too few"
        )
    return (first_true(lambda k: not fits(k * step)) - 1) * step


def first_true(holds: Callable[[int], bool]) -> int:
    """The first whole number from 0 on for which `holds`, which once true stays true."""
    low, high = -1, 1
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Landmark(PasskeyProtocol):
    """Landmark attention (arXiv 2305.16300): whole hundreds of characters, here the most that `seq_len` tokens hold."""

    name: ClassVar[str] = "passkey-landmark"
    trials: ClassVar[int] = 50

    def characters(self, tokenizer: Encoder, seq_len: int) -> int:
        return most_noise(self, tokenizer, seq_len, 100)


@dataclass(frozen=True)
class Yarn(PasskeyProtocol):
    """YaRN (arXiv 2309.00071): 128 characters more until there are `seq_len` tokens, then the number before."""

    name: ClassVar[str] = "passkey-yarn"
    trials: ClassVar[int] = 20

    def characters(self, tokenizer: Encoder, seq_len: int) -> int:
        return most_noise(self, tokenizer, seq_len - 1, 128)


@dataclass(frozen=True)
class PI(PasskeyProtocol):
    """Position interpolation (arXiv 2306.15595): 32 equally spaced distances from the end, keys of five digits.

    How its prompts are filled is not published: here as far as `seq_len` tokens hold them and the answer.
    """

    name: ClassVar[str] = "passkey-pi"
    keys: ClassVar[tuple[int, int]] = (10_000, 99_999)
    trials: ClassVar[int] = 10

    @classmethod
    def depths(cls) -> tuple[float | None, ...]:
        return tuple(i / 32 for i in range(32))

    def characters(self, tokenizer: Encoder, seq_len: int) -> int:
        return most_noise(self, tokenizer, seq_len - self.room, 1)


@dataclass(frozen=True)
class LongLora(PasskeyProtocol):
    """LongLoRA (arXiv 2309.12307): 3.75 characters a token, down to whole 1024s; the very ids of the key are wanted."""

    name: ClassVar[str] = "passkey-longlora"
    keys: ClassVar[tuple[int, int]] = (1, 49_999)
    trials: ClassVar[int] = 10
    metric: ClassVar[Metric] = "exact"

    def characters(self, tokenizer: Encoder, seq_len: int) -> int:
        return int(3.75 * seq_len // 1024 * 1024)

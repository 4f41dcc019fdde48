"""The price of an evaluation, known before it starts: readings, tokens, time and memory.

The time is that of the operations of every call at the speed of this device, which two short
readings measure, with a step of decoding for each new token and what each new shape takes to
compile:

    seconds = sum of calls (matrix FLOPs / r1 + attention FLOPs / r2 + steps x s + tokens x t)

and what passes outside the model, while prompts are built, which counting the calls has measured.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ctxext.evals.work import Call, num_tokens, readings
from ctxext.model.operations import LEAST_ROWS
from ctxext.plan.accelerators import GIB
from ctxext.plan.flops import layer_matrices, visible_pairs
from ctxext.plan.longest_text import text_bytes
from ctxext.progress import duration, part

if TYPE_CHECKING:
    from ctxext.model.lm import LM

SHORT, LONG = 512, 2048
"""Tokens of the readings that measure the speed."""
SHORTEST = 64
"""Tokens of the prompt after which decoding is measured."""
NEW_TOKENS, CONTINUATIONS = 8, 32
"""Tokens that are written at once, in one and in many continuations, to measure decoding."""
UNEVEN_ON_CPU, UNEVEN = 6.0, 32.0
"""How many times slower than in matrices operations in attention can be. On CPUs, whose time other
jobs share, they are hardly slower; accelerators are made for matrices."""
WORTH_MEASURING = 2e13
"""Operations, about a minute of two CPU cores, from which the speed is measured unasked."""


@dataclasses.dataclass(frozen=True)
class Operations:
    """Floating-point operations of reading, 2 per multiply-add."""

    matrices: float
    attention: float

    @property
    def total(self) -> float:
        return self.matrices + self.attention

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(self.matrices + other.matrices, self.attention + other.attention)


@dataclasses.dataclass(frozen=True)
class Speed:
    """What this device makes of a model."""

    matrices: float
    """FLOP/s in matrices."""
    attention: float
    """FLOP/s in attention."""
    step: float
    """Seconds of one step of decoding, whatever it writes."""
    token: float
    """Seconds more for each token that a step writes."""
    compiling: float
    """Seconds that a new shape takes to compile."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The calls of one evaluation of one model."""

    title: str
    lm: "LM"
    calls: Sequence[Call]
    outside: float = 0.0
    """Seconds that pass outside the model."""
    is_control: bool = False
    """Whether it is only there for comparison: of the same weights without the method."""

    @property
    def operations(self) -> Operations:
        """Operations of all readings, padding included."""
        total = Operations(0, 0)
        for call in self.calls:
            total += reading(self.lm, call)
        return total

    def seconds(self, speed: Speed) -> float:
        """Time of the calls, without compiling."""
        operations = self.operations
        attention = operations.attention + sum(written_attention(self.lm, c) for c in self.calls)
        seconds = operations.matrices / speed.matrices + attention / speed.attention + self.outside
        for call in self.calls:
            for steps, tokens in call.steps():
                seconds += steps * (speed.step + tokens * speed.token)
        return seconds

    def shapes(self) -> set[tuple]:
        """The programs that the calls need."""
        method = (self.lm.attention, self.lm.depends_on_length)
        return {(method, call.padded, call.continuations, call.new_tokens) for call in self.calls}

    def cache_bytes(self) -> int:
        """Bytes of keys and values, in the largest call."""
        slots = [
            call.padded[0] * (call.padded[1] + call.continuations * call.new_tokens)
            for call in self.calls
            if call.continuations
        ]
        most = max(slots, default=0)
        return text_bytes(self.lm.config, most, dtype=self.lm.dtype, is_written=True)


@dataclasses.dataclass(frozen=True)
class Price:
    """The price of all evaluations that are still to be done."""

    works: Sequence[Work]
    speed: Speed | None = None
    """Of this device, if it was measured."""
    basis: str = ""
    """When and how the speed was measured, in words."""

    @property
    def operations(self) -> float:
        return sum(work.operations.total for work in self.works)

    @property
    def compiling(self) -> float:
        """Estimated time until all shapes are compiled; 0 without a measured speed."""
        shapes = set().union(*(work.shapes() for work in self.works))
        return len(shapes) * self.speed.compiling if self.speed else 0.0

    @property
    def seconds(self) -> float | None:
        """Estimated time with that of compiling, None without a measured speed."""
        speed = self.speed
        if speed is None:
            return None
        return self.compiling + sum(work.seconds(speed) for work in self.works)

    def sentence(self) -> str:
        """One line: readings, tokens, time."""
        calls = [call for work in self.works for call in work.calls]
        texts = sum(readings(calls).values())
        if not texts:
            return "nothing left to read: all records are there"
        time_text = ""
        if self.seconds:
            basis = f" ({self.basis})" if self.basis else ""
            time_text = f", about {duration(self.seconds)} on this device{basis}"
        sentence = f"to read: {texts:,} texts, {num_tokens(calls):,} tokens{time_text}"
        controls = [work for work in self.works if work.is_control and work.calls]
        if not controls:
            return sentence
        of_base = f"{sum(sum(readings(work.calls).values()) for work in controls):,} of the texts"
        speed = self.speed
        if speed is not None:
            of_base += f", {duration(sum(work.seconds(speed) for work in controls))},"
        return f"{sentence}; {of_base} without the method, as the control (--no-base)"

    def data(self) -> dict[str, Any]:
        """As JSON values: texts and tokens by evaluation, seconds if known, and bytes of memory."""

        def of(calls: Sequence[Call]) -> dict[str, Any]:
            return {"texts": dict(sorted(readings(calls).items())), "tokens": num_tokens(calls)}

        speed = self.speed
        evaluations = [
            {
                "title": work.title,
                "is_control": work.is_control,
                **of(work.calls),
                "seconds": None if speed is None else work.seconds(speed),
            }
            for work in self.works
        ]
        return {
            "evaluations": evaluations,
            **of([call for work in self.works for call in work.calls]),
            "seconds": self.seconds,
            "compiling_seconds": None if speed is None else self.compiling,
            "basis": self.basis,
            "weight_bytes": max((weight_bytes(work.lm) for work in self.works), default=0),
            "cache_bytes": max((work.cache_bytes() for work in self.works), default=0),
        }

    def text(self) -> str:
        """The price by evaluation and length, and the memory."""
        lines = []
        for work in self.works:
            if not work.calls:
                lines.append(f"{work.title}: all records are there")
                continue
            seconds = f", {duration(work.seconds(self.speed))}" if self.speed else ""
            lines.append(f"{work.title}: {by_length(work.calls)}{seconds}")
        if self.speed:
            lines.append(f"compiling: {duration(self.compiling)}")
        memory = f"memory: {memory_text(self.works)}"
        return "\n".join(["texts x tokens, padding included:", *lines, self.sentence(), memory])


def by_length(calls: Iterable[Call]) -> str:
    """How many texts are read, by their tokens with padding: "60 x 256, 60 x 512"."""
    return ", ".join(f"{n:,} x {T:,}" for T, n in sorted(readings(calls).items()))


def memory_text(works: Sequence[Work]) -> str:
    """The weights, and the keys and values of the largest call."""
    weights = max((weight_bytes(work.lm) for work in works), default=0)
    cache = max((work.cache_bytes() for work in works), default=0)
    text = f"{weights / GIB:.2f} GiB of weights"
    return f"{text}, up to {cache / GIB:.2f} GiB of keys and values" if cache else text


def reading(lm: "LM", call: Call) -> Operations:
    """Operations of reading the rows of a call."""
    rows, length = call.padded
    config = lm.config
    scored = 1 if call.continuations else length
    projection = 2 * config.vocab_size * config.hidden_size * scored
    matrices = config.num_hidden_layers * 2 * layer_matrices(config) * length + projection
    pairs = {kind: visible_pairs(lm.attention, length, kind.window) for kind in config.layers.kinds}
    heads = config.num_attention_heads * config.head_dim
    attention = 4 * heads * sum(pairs[kind] for kind in config.layer_kinds)
    return Operations(rows * matrices, rows * attention)


def written_attention(lm: "LM", call: Call) -> float:
    """Operations of the attention of the tokens that a call writes, to all of its prompt."""
    per_pair = 4 * lm.config.num_attention_heads * lm.config.head_dim
    slots = call.padded[1] + call.new_tokens
    pairs = sum(steps * tokens for steps, tokens in call.steps()) * slots
    return lm.config.num_hidden_layers * per_pair * pairs


def measure(lm: "LM", longest: int) -> Speed:
    """The speed of this device with this model, from readings of up to `longest` tokens."""
    short, long = min(SHORT, longest), min(LONG, longest)
    ids = np.arange(long + 1) % lm.config.vocab_size
    _say_timed(f"a reading of {short:,} tokens")
    compiling, short_seconds = _twice(lambda: lm.loss(ids[None, : short + 1]))
    long_seconds = short_seconds
    if long > short:
        _say_timed(f"a reading of {long:,} tokens")
        _, long_seconds = _twice(lambda: lm.loss(ids[None]))
    _say_timed("writing tokens")
    step, token, compiling_answers = _decoding(lm, ids[:SHORTEST])
    compiling = max(compiling, compiling_answers)
    of_short, of_long = (reading(lm, Call((n,), lm.padded([n]))) for n in (short, long))
    uneven = UNEVEN_ON_CPU if jax.default_backend() == "cpu" else UNEVEN
    matrices, attention = rates((of_short, short_seconds), (of_long, long_seconds), uneven=uneven)
    return Speed(matrices, attention, step, token, compiling)


def _say_timed(what: str) -> None:
    """Say at once what is timed, as it is compiled first and takes long on a large model."""
    print(f"timing this device: {what} ...", file=sys.stderr, flush=True)


def measure_now(lm: "LM", longest: int) -> tuple[Speed, str]:
    """`measure`, and in words what it rests on: how long it took, and next to which load."""
    busy = _other_load()
    started = time.perf_counter()
    with part("timing this device"):
        speed = measure(lm, longest)
    return speed, f"measured now in {duration(time.perf_counter() - started)}{busy}"


def _other_load() -> str:
    """A note on other work of this machine's processors, if it is more than half a processor."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if jax.default_backend() != "cpu" or load < 0.5:
        return ""
    return f", with a load of {load:.1f} on {cores} processors before"


def rates(
    short: tuple[Operations, float], long: tuple[Operations, float], *, uneven: float
) -> tuple[float, float]:
    """(matrix, attention) FLOP/s from two readings: (operations, seconds) each.

    Solves matrices / r1 + attention / r2 = seconds for both. Where that has no positive solution,
    as with readings of one length, or makes attention more than `uneven` times slower, as if
    something else had slowed down the longer reading, both rates are that of the longer reading.
    """
    rows = np.array([[x.matrices, x.attention] for x, _ in (short, long)], np.float64)
    seconds = np.array([short[1], long[1]])
    one_rate = long[0].total / long[1]
    if abs(np.linalg.det(rows)) < 1e-9 * np.prod(np.linalg.norm(rows, axis=1)):
        return one_rate, one_rate
    per_operation = np.linalg.solve(rows, seconds)
    if (per_operation <= 0).any():
        return one_rate, one_rate
    if per_operation[1] > uneven * per_operation[0]:
        return one_rate, one_rate
    return float(1 / per_operation[0]), float(1 / per_operation[1])


def weight(lm: "LM", call: Call) -> float:
    """How much longer a call takes than others, where the device was not measured: its operations.

    A step of decoding counts as `step_operations` do.
    """
    per_token = reading(lm, Call((1,), (1, 1), 1)).matrices
    even = Speed(1.0, 1.0, step=LEAST_ROWS * per_token, token=per_token, compiling=0.0)
    return Work("", lm, [call]).seconds(even)


def _twice(call: Callable[[], object]) -> tuple[float, float]:
    """(seconds of compiling, seconds of a call): by how much the first is slower, and the faster.

    The second may be the slower one, next to another job.
    """
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return max(seconds[0] - seconds[1], 0.0), min(seconds)


def _decoding(lm: "LM", prompt: np.ndarray) -> tuple[float, float, float]:
    """(seconds of a step, seconds of each token it writes, seconds of compiling).

    From one and many continuations.
    """
    count, few, many = 2 * NEW_TOKENS, 1, CONTINUATIONS

    def timed(continuations: int, new_tokens: int) -> tuple[float, float]:
        prefixes = [[[]] * continuations]
        return _twice(lambda: lm.continuations(prompt[None], prefixes, max_new_tokens=new_tokens))

    def per_step(continuations: int) -> tuple[float, float]:
        compiling, of_all = timed(continuations, count)
        _, of_one = timed(continuations, 1)
        return compiling, max(of_all - of_one, 0.0) / (count - 1)

    compiling, of_few = per_step(few)
    _, of_many = per_step(many)
    token = max(of_many - of_few, 0.0) / (many - few)
    return max(of_few - few * token, 0.0), token, compiling


def weight_bytes(lm: "LM") -> int:
    """Bytes of all parameters."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(lm.params))

"""The input that every reader gets, and the output that is compared."""

import dataclasses

import numpy as np

from ctxext.model.lm import LM
from ctxext.rope import Angles

PROMPT_TOKENS = 16
CONTINUATION_TOKENS = 64
"""Most tokens of a prompt, and of its greedy continuation."""


class NotRun(Exception):
    """Why a reader cannot read an artifact at all, or not these inputs."""


@dataclasses.dataclass(frozen=True, eq=False)
class ReaderInput:
    """Tokens int64 [T] at increasing positions [T], compared at the indices `compared`."""

    tokens: np.ndarray
    positions: np.ndarray
    compared: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ReaderOutput:
    """How one reader evaluates the artifact; None for what it does not expose.

    `ropes` has the frequencies in radians per token and the attention factor at each of
    `text_lengths`. `inv_freq` and `attention_factor`, `tables` (cos and sin) and `rotated` (the
    first layer's queries and keys [compared, heads, head_dim]) belong to the first input;
    `logits` has one array [compared, vocabulary] per input; `token_ids` are those of
    `token_texts.texts_for`, `chat_ids` those of `token_texts.CONVERSATION`, and `special_ids` those
    of "bos" and "eos". `vocabulary`: the spelling of every token by its id. `reads_model`: its ids
    come from the SentencePiece model alone. `rounded`: its frequencies are float32, so that it is
    compared under these.
    `coarse`: the share of the logits' standard deviation that its lower precision may cost, 0 for
    float32 throughout.
    """

    name: str
    version: str
    logits: list[np.ndarray]
    angles: Angles = "exact"
    rounded: bool = False
    coarse: float = 0.0
    inv_freq: np.ndarray | None = None
    attention_factor: float | None = None
    ropes: list[tuple[np.ndarray, float]] | None = None
    tables: tuple[np.ndarray, np.ndarray] | None = None
    rotated: tuple[np.ndarray, np.ndarray] | None = None
    token_ids: list[list[int]] | None = None
    vocabulary: dict[int, str] | None = None
    reads_model: bool = False
    special_ids: dict[str, int] | None = None
    chat_ids: list[int] | None = None


def text_lengths(first: ReaderInput) -> list[int]:
    """Lengths in tokens at which frequencies are compared: they may change with the length.

    Those of texts that end at the compared positions, within the window of pre-training and beyond
    it, and twice the longest.
    """
    lengths = [int(position) + 1 for position in first.positions[first.compared]]
    return sorted({*lengths, 2 * max(lengths)})


def window_input(compared: list[int], vocab_size: int, *, every: bool) -> ReaderInput:
    """Random tokens up to the last of the positions `compared`.

    At `every` position, or only near those positions and at 48 between: far fewer tokens still meet
    every distance, because each attends to all before it.
    """
    last = compared[-1]
    if every:
        positions = np.arange(last + 1)
    else:
        near = [np.arange(position - 4, position + 5) for position in compared]
        positions = np.concatenate([*near, np.linspace(0, last, 48)])
    positions = positions[(positions >= 0) & (positions <= last)].astype(np.int64)
    positions = np.unique(positions)
    tokens = np.random.default_rng(0).integers(0, vocab_size, len(positions))
    return ReaderInput(tokens, positions, np.searchsorted(positions, compared))


def continuation_input(lm: LM, prompt: np.ndarray, window: int) -> ReaderInput:
    """A prompt and the greedy continuation of it by `lm`, compared where each next token is chosen.

    By induction a reader's own continuation is the same if each of these tokens is its likeliest.
    It ends at `window`, and within the window of pre-training where frequencies grow with the
    length: one pass has only one set of them, and transformers 4 keeps grown ones until it meets a
    text shorter than that window.
    """
    end = lm.config.max_position_embeddings - 1 if lm.scaling.depends_on_length else window
    prompt = prompt[: max(1, min(PROMPT_TOKENS, end - 1))]
    count = max(1, min(CONTINUATION_TOKENS, end - len(prompt)))
    tokens = np.concatenate([prompt, lm.generate(prompt[None], max_new_tokens=count)[0]])
    chosen = np.arange(len(prompt) - 1, len(tokens) - 1)
    return ReaderInput(tokens, np.arange(len(tokens)), chosen)

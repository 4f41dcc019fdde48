"""What readers are asked, and what they answer."""

import dataclasses

import numpy as np

from ctxext.model.lm import LM
from ctxext.rope import Angles

PROMPT, CONTINUED = 16, 64
"""Tokens of a prompt, and of its greedy continuation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """Tokens at increasing positions, and the rows where readers are compared."""

    tokens: np.ndarray
    positions: np.ndarray
    rows: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What a reader makes of the subject; None for what it does not show.

    Frequencies in radians per token, and m; cos and sin, and the first layer's rotated queries and keys [rows, heads,
    head_dim], at the first probe's rows; logits of each probe; ids of `tokenizer.PROBES`. `rounded`: its frequencies
    are float32, so that it is compared under these; `coarse`: the share of the logits' standard deviation that its
    lower precision may cost, 0 for float32 throughout.
    """

    name: str
    version: str
    logits: list[np.ndarray]
    angles: Angles = "exact"
    rounded: bool = False
    coarse: float = 0.0
    inv_freq: np.ndarray | None = None
    attention_factor: float | None = None
    tables: tuple[np.ndarray, np.ndarray] | None = None
    rotated: tuple[np.ndarray, np.ndarray] | None = None
    token_ids: list[list[int]] | None = None


def window_probe(marks: list[int], vocab_size: int, *, every: bool) -> Probe:
    """Random tokens up to the last of `marks`, which are the rows: at `every` position, or near marks and between."""
    # Far fewer tokens than positions still meet every distance, because each attends to all before it.
    near = [np.arange(mark - 4, mark + 5) for mark in marks]
    positions = (
        np.arange(marks[-1] + 1)
        if every
        else np.unique(np.concatenate([*near, np.linspace(0, marks[-1], 48)]))
    )
    positions = positions[(positions >= 0) & (positions <= marks[-1])].astype(np.int64)
    positions = np.unique(positions)
    tokens = np.random.default_rng(0).integers(0, vocab_size, len(positions))
    return Probe(tokens, positions, np.searchsorted(positions, marks))


def continuation(ours: LM, prompt: np.ndarray, window: int) -> Probe:
    """A prompt and our greedy continuation of it, compared where the next token is chosen.

    By induction a reader's own continuation is the same if each of our tokens is its likeliest. Stops at `window`, and
    below the window of pre-training where frequencies grow with the length: one pass has but one set of them, and
    transformers 4 keeps grown ones until a text is shorter than that window.
    """
    end = ours.config.max_position_embeddings - 1 if ours.scaling.depends_on_length else window
    prompt = prompt[: max(1, min(PROMPT, end - 1))]
    count = max(1, min(CONTINUED, end - len(prompt)))
    tokens = np.concatenate([prompt, ours.generate(prompt[None], max_new_tokens=count)[0]])
    return Probe(tokens, np.arange(len(tokens)), np.arange(len(prompt) - 1, len(tokens) - 1))

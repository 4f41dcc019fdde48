"""The texts whose token ids every reader of an artifact gives."""

import json
from pathlib import Path

import numpy as np

from ctxext.prove.artifact import Artifact
from ctxext.tokenization.tokenizer import SAMPLE_TEXTS

CHARACTERS_PER_TOKEN = 6
"""At least as many as the words below have per token, with any tokenizer worth the name."""
LONGEST = {"hf": 1_000_000, "peft": 1_000_000, "meta": 1_000_000, "gguf": 20_000}
"""Most characters; the reference reader of GGUF merges tokens in Python."""
CONVERSATION = ({"role": "user", "content": "Where is  it? "},)
"""Rendered by the chat template of an artifact that has one."""


def texts_for(artifact: Artifact) -> list[str]:
    """The sample texts, and one that has more tokens than any limit that the files name."""
    limit = max(artifact.window, _truncation(artifact.base))
    size = min(CHARACTERS_PER_TOKEN * limit, LONGEST[artifact.format])
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 10**6, size // 8 + 1).tolist()
    return [*SAMPLE_TEXTS, " ".join(f"w{number}" for number in numbers)]


def _truncation(directory: Path) -> int:
    """The tokens to which tokenizer.json cuts a text; 0 if it does not."""
    path = directory / "tokenizer.json"
    truncation = json.loads(path.read_bytes()).get("truncation") if path.is_file() else None
    return truncation.get("max_length", 0) if isinstance(truncation, dict) else 0

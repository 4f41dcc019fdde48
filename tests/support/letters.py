"""One token per character: tokenizers, a random Llama with one, and a text that repeats itself."""

import dataclasses
import json
import string
from pathlib import Path

from ctxext.rope import Unscaled
from ctxext.tokenization.tokenizer import CONFIG, JSON, Tokenizer
from support.hf_files import write_hf
from support.llamas import TINY, random_params

LETTERS = ["<unk>", "<s>", *string.printable[:95], "\n"]
TEXT = '''def area(self, width, height):
    """Return the area of a rectangle."""
    token_48213 = width * height
    if token_48213 < 0:
        raise ValueError("no such rectangle")
    return token_48213

class Queue:
    def __init__(self, maxsize=0):
        self.maxsize = maxsize
        self.items = []

    def put(self, item, block=True, timeout=None):
        self.items.append(item)

    def get(self):
        return self.items.pop(0)

def area(self, width, height):
    """Return the area of a rectangle."""
    token_48213 = width * height
    if token_48213 < 0:
        raise ValueError("no such rectangle")
'''


class Letters:
    """One token per ASCII character, with or without BOS."""

    eos_id, vocab_size = None, 300
    num_ids = vocab_size

    def __init__(self, bos: int | None = 0) -> None:
        self.bos_id = bos
        self.adds_bos = bos is not None

    def encode(self, text, *, bos=False):
        return [0] * bos + [byte + 1 for byte in text.encode()]

    def decode(self, ids):
        return bytes(int(i) - 1 for i in ids if i).decode()

    def spans(self, text):
        return self.encode(text), [(i, i + 1) for i in range(len(text))]


def letters_tokenizer() -> Tokenizer:
    """A BPE tokenizer without merges: every character of LETTERS is a token."""
    special = [
        {
            "id": i,
            "content": LETTERS[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i in (0, 1)
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {letter: i for i, letter in enumerate(LETTERS)},
        "merges": [],
    }
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    single = [start, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": template,
        "decoder": {"type": "Fuse"},
        "model": model,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "unk_token": "<unk>",
    }
    return Tokenizer({JSON: json.dumps(data).encode(), CONFIG: json.dumps(settings).encode()})


def write_letters(folder: Path) -> None:
    """Write an HF directory of a random Llama whose weights are the same on every machine."""
    config = dataclasses.replace(TINY, vocab_size=len(LETTERS), max_position_embeddings=1024)
    write_hf(
        folder, config, random_params(config), Unscaled(), letters_tokenizer(), dtype="float32"
    )

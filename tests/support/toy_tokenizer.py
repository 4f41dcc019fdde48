"""A small SentencePiece tokenizer with Llama's settings, trained once per process."""

import dataclasses
import functools
import inspect
import io

import numpy as np
import sentencepiece

from ctxext.data.corpus import Corpus
from ctxext.data.sources import TextSource


class ToyTokenizer:
    bos_id, eos_id, vocab_size = 1, 2, 512
    num_ids = vocab_size
    adds_bos = True
    bos_note = "texts begin with BOS"

    def __init__(self, model: bytes) -> None:
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [self.bos_id] * bos + self._model.encode(text)

    def decode(self, ids) -> str:
        return self._model.decode([int(i) for i in ids])


@functools.cache
def toy_texts() -> tuple[str, ...]:
    import argparse
    import bdb
    import typing

    return tuple(inspect.getsource(module) for module in (argparse, bdb, typing))


@functools.cache
def toy_model() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in toy_texts() for line in text.splitlines() if line),
        model_writer=model,
        vocab_size=512,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


@functools.cache
def toy_tokenizer() -> ToyTokenizer:
    return ToyTokenizer(toy_model())


def toy_documents(tokenizer: ToyTokenizer) -> list[np.ndarray]:
    return [np.asarray(tokenizer.encode(text), np.int32) for text in toy_texts()]


@dataclasses.dataclass(frozen=True)
class ToySource(TextSource):
    """The toy texts as a source of documents."""

    def open(self, tokenizer) -> Corpus:
        return Corpus.from_texts(toy_texts(), tokenizer)


def toy_source() -> ToySource:
    return ToySource()

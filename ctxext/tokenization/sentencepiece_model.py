"""SentencePiece models: training, opening, and conversion to a tokenizer.json with the same ids."""

import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ctxext.tokenization.added_tokens import SPECIAL_TOKEN
from ctxext.tokenization.bounds import LONGEST_TOKEN, replacement_factor
from ctxext.tokenization.post_processor import template
from ctxext.tokenization.sentencepiece_pieces import USER_DEFINED, fields, read_pieces
from ctxext.tokenization.tokenizer_files import JSON, MODEL

SAMPLE_TEXTS = (
    "The quick brown fox; jumps over 12345 lazy dogs.",
    " leading",
    "trailing ",
    "two  spaces,   three",
    "a",
    " ",
    "  ",
    "\ttab\n\nlines\n",
    "1 2\r\n3",
    "def f(x):\n    return x ** 2  # note",
    "naïve café, über, ß",
    "日本語 and 中文",
    "emoji 🙂🚀",
    "▁",
)
"""Texts on which a converted tokenizer is compared with its model."""

TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
"""A line of tiktoken's format: the bytes of a token in base64, and its rank."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a SentencePiece BPE model (arXiv 1808.06226) with Llama's settings.

    The result is deterministic; ids 0, 1 and 2 are <unk>, <s> and </s>. Raises ValueError if the
    texts are too small for `vocab_size` tokens.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.splitlines() if line),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.99995,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            max_sentence_length=1 << 16,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"a tokenizer of {vocab_size} tokens cannot be trained on these texts: {error}"
        ) from None
    return model.getvalue()


def open_model(model: bytes) -> Any:
    """The SentencePieceProcessor of a model.

    Raises ValueError for anything else, and for a model with more of something than any needs.
    """
    import sentencepiece

    try:
        if not model:  # the library would wait for a model to be loaded later
            raise RuntimeError
        _check_model(model)  # before the library runs the tests that are in it
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        if TIKTOKEN_LINE.match(model):
            raise ValueError(
                f"{MODEL} is in tiktoken's format, as that of Llama 3 is, which is not read; copy "
                f"{JSON} and tokenizer_config.json of the Hugging Face version in its place"
            ) from None
        raise ValueError(
            f"{MODEL} is not a SentencePiece model; remove it if {JSON} is the real one"
        ) from None


def control_tokens(processor: Any) -> set[str]:
    """The texts of the tokens that no text contains, such as "<s>"."""
    ids = range(processor.vocab_size())
    return {
        processor.id_to_piece(i) for i in ids if processor.is_control(i) or processor.is_unknown(i)
    }


def to_tokenizer_json(model: bytes, *, legacy: bool = True) -> dict[str, Any]:
    """The tokenizer.json that gives the ids of a SentencePiece BPE model.

    They differ by design in one point: there, a literal "</s>" in a text is the special token.
    `legacy`: put a space before the text after a special token too, as transformers does with that
    setting. Without it, only the start of a text gets one, and only if the text does not begin with
    a space already: the format cannot add it then, as SentencePiece does. Raises ValueError if the
    two disagree on `SAMPLE_TEXTS`, as they do for models that are not BPE or normalize their input,
    or next to a user-defined token.
    """
    import tokenizers

    processor = open_model(model)
    vocab_size = processor.vocab_size()
    tokens = [processor.id_to_piece(i) for i in range(vocab_size)]
    special_ids = [
        i for i in range(vocab_size) if processor.is_control(i) or processor.is_unknown(i)
    ]
    space: dict[str, Any] = {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
    }
    if not legacy:
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
        space = {"normalizer": None, "pre_tokenizer": metaspace | {"split": False}}
    bos_id = processor.bos_id()
    result = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **SPECIAL_TOKEN} for i in special_ids],
        **space,
        "post_processor": None if bos_id < 0 else template((tokens[bos_id], bos_id)),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokens[processor.unk_id()],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": _merges(processor, tokens, special_ids),
        },
    }
    converted = tokenizers.Tokenizer.from_str(json.dumps(result))
    user_defined = [
        piece.text.replace("▁", " ") for piece in read_pieces(model) if piece.kind == USER_DEFINED
    ]
    for text in (*SAMPLE_TEXTS, *(f"a{token}b {token} c" for token in user_defined)):
        if not legacy and text.startswith((" ", "▁")):
            continue
        if converted.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise ValueError(
                f"{MODEL} cannot be converted to {JSON}: the ids of {text!r} would change "
                "(only BPE models with Llama's settings, and without user-defined tokens that "
                "change them, can be converted)"
            )
    return result


PIECE, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5
"""Fields of a ModelProto."""
CHARSMAP, UNKNOWN_TEXT = 2, 44
"""Fields of a NormalizerSpec and of a TrainerSpec."""


def _check_model(model: bytes) -> None:
    """Raise ValueError for pieces and replacements that are longer than any model needs."""
    for number, value in _texts(model):
        if number == PIECE and len(value) > 4 * LONGEST_TOKEN:
            raise ValueError(f"{MODEL} has a piece of {len(value):,} bytes; copy the file again")
        if number == TRAINER and any(
            inner == UNKNOWN_TEXT and len(text) > LONGEST_TOKEN for inner, text in _texts(value)
        ):
            raise ValueError(f"{MODEL} has a very long text for the unknown; copy the file again")
        if number not in (NORMALIZER, DENORMALIZER):
            continue
        for inner, charsmap in _texts(value):
            if inner == CHARSMAP and replacement_factor(charsmap) > 1:
                raise ValueError(
                    f"{MODEL} replaces a character by {replacement_factor(charsmap):,.0f} bytes, "
                    "more than any model needs; use the tokenizer the model was trained with"
                )


def _texts(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, value) of the fields of a protobuf message that have a length."""
    return (field for field in fields(message) if isinstance(field[1], bytes))


def _merges(processor: Any, tokens: list[str], special_ids: list[int]) -> list[list[str]]:
    """The merges of BPE in order of priority, from the scores of a SentencePiece model.

    A model has a score for each token and merges the pair whose result has the highest; a
    tokenizer.json lists the pairs.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    special = set(special_ids)
    mergeable = [
        i
        for i, token in enumerate(tokens)
        if len(token) > 1 and not (i in special or processor.is_byte(i) or processor.is_unused(i))
    ]
    merges: list[list[str]] = []
    for i in sorted(mergeable, key=lambda i: (-processor.get_score(i), i)):
        splits = [(tokens[i][:k], tokens[i][k:]) for k in range(1, len(tokens[i]))]
        known = [(left, right) for left, right in splits if left in ids and right in ids]
        known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [[left, right] for left, right in known]
    return merges


def special_tokens(processor: Any) -> dict[str, str]:
    """The special tokens of a model, by their names in tokenizer_config.json."""
    ids = {
        "bos_token": processor.bos_id(),
        "eos_token": processor.eos_id(),
        "unk_token": processor.unk_id(),
    }
    return {key: processor.id_to_piece(i) for key, i in ids.items() if i >= 0}

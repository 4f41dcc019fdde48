"""SentencePiece models: trained, opened, and written as the tokenizer.json that gives the same ids."""

import io
import json
from collections.abc import Iterable
from typing import Any

from ctxext.tokenization.added_tokens import JSON, template

MODEL = "tokenizer.model"
PROBES = (
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


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE model (arXiv 1808.06226) with Llama's settings, deterministic; ids 0 1 2 are <unk> <s> </s>.

    Raises ValueError if the texts are too small for `vocab_size` pieces.
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
            f"no tokenizer of {vocab_size} pieces can be made of these texts: {error}"
        ) from None
    return model.getvalue()


def to_tokenizer_json(model: bytes) -> dict[str, Any]:
    """The tokenizer.json that gives the ids of a SentencePiece BPE model, for the tokenizers library.

    One difference by design: there, a literal "</s>" in text is the special token. Raises ValueError if the two
    disagree on probe texts, as for models that are not BPE or normalise their input.
    """
    import tokenizers

    processor = spm_processor(model)
    size = processor.vocab_size()
    pieces = [processor.id_to_piece(i) for i in range(size)]
    ids = {piece: i for i, piece in enumerate(pieces)}
    special = [i for i in range(size) if processor.is_control(i) or processor.is_unknown(i)]
    normal = [
        i
        for i in range(size)
        if not (i in special or processor.is_byte(i) or processor.is_unused(i))
    ]
    scored = sorted(
        (-processor.get_score(i), n) for n, i in enumerate(normal) if len(pieces[i]) > 1
    )
    merges = []
    for _, n in scored:  # by descending score, then by id
        piece = pieces[normal[n]]
        splits = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        merges += sorted(
            ((a, b) for a, b in splits if a in ids and b in ids),
            key=lambda s: (ids[s[0]], ids[s[1]]),
        )
    unk = pieces[processor.unk_id()]
    result = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": pieces[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in special
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None
        if processor.bos_id() < 0
        else template(pieces[processor.bos_id()], processor.bos_id()),
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
            "unk_token": unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [list(pair) for pair in merges],
        },
    }
    fast = tokenizers.Tokenizer.from_str(json.dumps(result))
    for text in PROBES:
        if fast.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise ValueError(
                f"{MODEL} cannot be written as {JSON}: the ids of {text!r} would change "
                "(only BPE models with Llama's settings can)"
            )
    return result


def spm_settings(model: bytes) -> dict[str, Any]:
    """What tokenizer_config.json says of a model: its special tokens, and that it begins with BOS if it has one."""
    processor = spm_processor(model)
    ids = {
        "bos_token": processor.bos_id(),
        "eos_token": processor.eos_id(),
        "unk_token": processor.unk_id(),
    }
    tokens = {key: processor.id_to_piece(i) for key, i in ids.items() if i >= 0}
    return tokens | {
        "add_bos_token": processor.bos_id() >= 0,
        "add_eos_token": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
    }


def spm_processor(model: bytes) -> Any:
    """The model, opened. Raises ValueError if it is none."""
    import sentencepiece

    try:
        if not model:  # which the library takes for a model that is still to come
            raise RuntimeError
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise ValueError(
            f"{MODEL} is not a SentencePiece model; remove it if {JSON} is the real one"
        ) from None

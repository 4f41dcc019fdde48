"""The vocabulary of a GGUF file: text and kind of every token, and how texts become tokens."""

from collections.abc import Sequence
from typing import Any

from ctxext.interop.gguf_byte_level import byte_level_vocabulary
from ctxext.model.config import LlamaConfig
from ctxext.tokenization.added_tokens import added_tokens
from ctxext.tokenization.sentencepiece_pieces import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    read_pieces,
)
from ctxext.tokenization.tokenizer import JSON, MODEL, Tokenizer, to_tokenizer_json
from ctxext.tokenization.tokenizer_files import json_bytes

UNMERGED_SCORE = -10000.0
"""The score of tokens that no merge produces."""
KNOWN_ENDS = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"}
"""Tokens at which every version of llama.cpp stops by their names."""


AROUND = (("a", "b"), ("a ", " b"))
"""Texts before and after an added token, which show what it does to its neighbours."""


def vocabulary(
    tokenizer: Tokenizer, config: LlamaConfig, stop_ids: Sequence[int] = ()
) -> dict[str, Any]:
    """The keys tokenizer.*, with a token for every row of the embedding.

    `stop_ids`: every token that ends an answer. Raises ValueError for a tokenizer that llama.cpp
    would run differently, and for more ends than the format has keys for.
    """
    tokenizer.check_fits(config.vocab_size)
    tokens = [Piece(f"[PAD{i}]", UNMERGED_SCORE, UNUSED) for i in range(config.vocab_size)]
    if MODEL in tokenizer.files:
        keys = _fill_from_sentencepiece(tokens, tokenizer.files[MODEL])
    else:
        keys = byte_level_vocabulary(tokenizer.json_data)
        for text, token_id in tokenizer.json_data["model"]["vocab"].items():
            tokens[token_id] = Piece(text, 0.0, NORMAL)
    for added in added_tokens(tokenizer.files):
        known = tokens[added["id"]]
        if known.kind in (NORMAL, UNUSED):
            kind = CONTROL if added["special"] else USER_DEFINED
            tokens[added["id"]] = Piece(added["content"], known.score, kind)
    kinds = [token.kind for token in tokens]
    found_elsewhere = differently_found(tokenizer, special=False)
    if found_elsewhere:
        raise ValueError(
            f"llama.cpp finds the added token {found_elsewhere[0]!r:.60} wherever a text spells "
            "it, and begins what follows like a text, which gives other ids than this tokenizer "
            '(because of "normalized", "lstrip", "rstrip" or "single_word" of the token, or '
            '"legacy": false); export with --to hf'
        )
    by_text = {token.text: i for i, token in enumerate(tokens)}
    named = {key: by_text.get(text) for key, text in tokenizer.special_tokens.items()}
    ids = {
        "bos": config.bos_token_id if tokenizer.bos_id is None else tokenizer.bos_id,
        "padding": named.get("pad_token") if config.pad_token_id is None else config.pad_token_id,
        "unknown": kinds.index(UNKNOWN) if UNKNOWN in kinds else named.get("unk_token"),
        **_ends(tokenizer, stop_ids, tokens),
    }
    template = tokenizer.chat_template
    return {
        **keys,
        "tokenizer.ggml.tokens": [token.text for token in tokens],
        "tokenizer.ggml.token_type": kinds,
        **{f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None},
        "tokenizer.ggml.add_bos_token": tokenizer.adds_bos,
        "tokenizer.ggml.add_eos_token": tokenizer.adds_eos,
        **({} if template is None else {"tokenizer.chat_template": template}),
    }


def differently_found(tokenizer: Tokenizer, *, special: bool) -> list[str]:
    """The added tokens in whose neighbourhood llama.cpp gives a text other ids.

    llama.cpp cuts a text at them as they are spelled, the longest ones first, and encodes every
    piece like a text of its own. `special`: the special tokens, where a text's are read as such;
    otherwise the others.
    """
    added = added_tokens({JSON: json_bytes(tokenizer.json_data)})
    found = [token for token in added if special or not token.get("special")]
    found.sort(key=lambda token: len(token["content"].encode()), reverse=True)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, special=special)

    def encode_as_llama_cpp(text: str) -> list[int]:
        pieces: list[str | int] = [text]
        for token in found:
            pieces = [part for piece in pieces for part in _cut(piece, token)]
        return [
            token_id
            for piece in pieces
            for token_id in ([piece] if isinstance(piece, int) else encode(piece))
        ]

    def is_found(token: dict[str, Any]) -> bool:
        texts = [before + token["content"] + after for before, after in AROUND]
        return all(encode(text) == encode_as_llama_cpp(text) for text in texts)

    of_this_kind = [token for token in added if bool(token.get("special")) == special]
    return [token["content"] for token in of_this_kind if not is_found(token)]


def _cut(piece: str | int, token: dict[str, Any]) -> list[str | int]:
    """A piece of a text, with the id of a token wherever it spells it."""
    if isinstance(piece, int) or token["content"] not in piece:
        return [piece]
    first, *others = piece.split(token["content"])
    parts: list[str | int] = [first]
    for other in others:
        parts += [token["id"], other]
    return [part for part in parts if part != ""]


def _fill_from_sentencepiece(tokens: list[Piece], model: bytes) -> dict[str, Any]:
    """Put a model's tokens in their places; returns the keys that go with them."""
    to_tokenizer_json(model)  # refuses models without Llama's settings
    for token_id, token in enumerate(read_pieces(model)):
        tokens[token_id] = token
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [token.score for token in tokens],
        "tokenizer.ggml.add_space_prefix": True,
    }


def _ends(
    tokenizer: Tokenizer, stop_ids: Sequence[int], tokens: list[Piece]
) -> dict[str, int | None]:
    """The keys of the tokens that end an answer: of a text, of a turn, of a message.

    llama.cpp stops at all of them, and at some names without any key. Raises ValueError if that is
    not enough.
    """
    first = tokenizer.eos_id if tokenizer.eos_id in stop_ids else next(iter(stop_ids), None)
    others = [i for i in stop_ids if i != first and tokens[i].text not in KNOWN_ENDS]
    if len(others) > 2:
        names = ", ".join(tokens[i].text for i in others)
        raise ValueError(
            f"GGUF has keys for three ends of an answer, and this model also stops at {names}; "
            "export with --to hf, or leave some out of eos_token_id in generation_config.json"
        )
    keys = ("eos", "eot", "eom")
    return dict(zip(keys, (first, *others), strict=False))

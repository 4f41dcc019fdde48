"""The tokenizer of a GGUF file, as the files that Hugging Face's directories have."""

from collections.abc import Mapping
from typing import Any

from ctxext.interop.gguf_byte_level import LLAMA_CPP_NAMES, pre_tokenizer
from ctxext.interop.gguf_vocabulary import KNOWN_ENDS
from ctxext.model.config import merge_ids
from ctxext.tokenization.added_tokens import SPECIAL_TOKEN
from ctxext.tokenization.post_processor import template
from ctxext.tokenization.sentencepiece_model import to_tokenizer_json
from ctxext.tokenization.sentencepiece_pieces import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    write_model,
)
from ctxext.tokenization.tokenizer import CONFIG, JSON, MODEL, Tokenizer
from ctxext.tokenization.tokenizer_files import json_bytes

Keys = Mapping[str, Any]

PREFIX = "tokenizer.ggml."
KINDS = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Names in tokenizer_config.json -> those in the keys of token ids."""
ENDS = ("eos", "eot", "eom")
DEFAULT_IDS: dict[str, dict[str, int]] = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "gpt2": {}}
"""What llama.cpp takes for a key that is absent, by the model of the tokenizer.

Those of gpt2 there are tokens of GPT-2 itself, and none here.
"""
ADDS_BOS = {"llama": True, "gpt2": False}
"""The same for `add_bos_token`; true for Llama 3's way to split too."""


class GGUFVocabulary:
    """The tokens of a file with their kinds, and the ids that have a meaning.

    Raises ValueError naming the key that is missing or malformed, or names a kind of tokenizer that
    is not read.
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        model = keys.get(f"{PREFIX}model")
        if not isinstance(model, str) or model not in DEFAULT_IDS:
            raise ValueError(
                f"{PREFIX}model {model!r:.60} is not supported, only "
                f"{' and '.join(map(repr, DEFAULT_IDS))}"
            )
        self.model = model
        self.pre = keys.get(f"{PREFIX}pre")
        if not isinstance(self.pre, str | None):
            raise ValueError(f"{PREFIX}pre must be a name")
        self.tokens: list[str] = self.values("tokens", str)
        self.kinds: list[int] = self.values("token_type", int, len(self.tokens))
        unknown_kinds = set(self.kinds) - set(KINDS)
        if unknown_kinds:
            raise ValueError(f"{PREFIX}token_type has {min(unknown_kinds)}, which is no kind")
        self._check_twice()
        named = dict.fromkeys([*NAMES.values(), *ENDS])
        self.ids = {name: self._id(name) for name in named}

    def values(self, name: str, kind: type, length: int | None = None) -> list[Any]:
        """A key that is a list of one `kind` of values, of this length if there is one."""
        value = self.keys.get(f"{PREFIX}{name}")
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise ValueError(f"{PREFIX}{name} is missing, or is not a list of {kind.__name__}")
        if length is not None and len(value) != length:
            raise ValueError(f"{PREFIX}{name} has {len(value)} entries for {length} tokens")
        return value

    def _check_twice(self) -> None:
        seen: set[str] = set()
        for token in (t for t, kind in zip(self.tokens, self.kinds, strict=True) if kind != UNUSED):
            if not token or token in seen:
                raise ValueError(f"{PREFIX}tokens has {token!r:.60} twice, or an empty token")
            seen.add(token)

    def _id(self, name: str) -> int | None:
        key = f"{PREFIX}{name}_token_id"
        value = self.keys.get(key, DEFAULT_IDS[self.model].get(name))
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise ValueError(f"{key} is {value!r:.40}, but there are {len(self.tokens)} tokens")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A key that is true or false."""
        value = self.keys.get(f"{PREFIX}{name}", default)
        if type(value) is not bool:
            raise ValueError(f"{PREFIX}{name} must be true or false, got {value!r:.40}")
        return value

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with BOS, as llama.cpp has it."""
        default = ADDS_BOS[self.model] or LLAMA_CPP_NAMES.get(self.pre or "") == "llama-bpe"
        return self.flag("add_bos_token", default)

    @property
    def adds_eos(self) -> bool:
        """Whether a text ends with EOS, as llama.cpp has it."""
        return self.flag("add_eos_token", False)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends an answer: those with a key, and those known by their names."""
        known = [
            i
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED) and token in KNOWN_ENDS
        ]
        return merge_ids(*(self.ids[name] for name in ENDS), known)

    def special(self, name: str) -> tuple[str, int] | None:
        """Text and id of a special token, None if there is none."""
        token_id = self.ids[name]
        return None if token_id is None else (self.tokens[token_id], token_id)

    def around(self) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
        """The tokens before and after every text, None for nothing.

        Raises ValueError if one of them is asked for and does not exist.
        """
        tokens: list[tuple[str, int] | None] = []
        for name, is_added in (("bos", self.adds_bos), ("eos", self.adds_eos)):
            token = self.special(name)
            if is_added and token is None:
                raise ValueError(
                    f"{PREFIX}add_{name}_token is true, but {PREFIX}{name}_token_id is missing"
                )
            tokens.append(token if is_added else None)
        bos, eos = tokens
        return bos, eos


def open_tokenizer(vocabulary: GGUFVocabulary) -> Tokenizer:
    """The tokenizer with which llama.cpp runs the file.

    Raises ValueError, with the reason, for one that cannot be run here with the same ids.
    """
    files = _sentencepiece_files if vocabulary.model == "llama" else _byte_level_files
    return Tokenizer(files(vocabulary))


def _settings(vocabulary: GGUFVocabulary) -> dict[str, Any]:
    """tokenizer_config.json, without tokens that are added."""
    chat_template = vocabulary.keys.get("tokenizer.chat_template")
    if chat_template is not None and not isinstance(chat_template, str):
        raise ValueError("tokenizer.chat_template must be text")
    special = {key: vocabulary.special(name) for key, name in NAMES.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": vocabulary.adds_eos,
        **{key: None if token is None else token[0] for key, token in special.items()},
        **({} if chat_template is None else {"chat_template": chat_template}),
    }


def _post_processor(vocabulary: GGUFVocabulary) -> dict[str, Any] | None:
    bos, eos = vocabulary.around()
    return template(bos, eos) if bos or eos else None


def _added(vocabulary: GGUFVocabulary, start: int = 0) -> list[dict[str, Any]]:
    """The tokens that are no result of merging, from id `start` on, as in tokenizer.json."""
    special = (CONTROL, UNKNOWN)
    return [
        {"id": i, "content": token, **SPECIAL_TOKEN, "special": kind in special}
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind == USER_DEFINED or (i >= start and kind in special)
    ]


def _byte_level_files(vocabulary: GGUFVocabulary) -> dict[str, bytes]:
    merges = []
    for merge in vocabulary.values("merges", str):
        space = merge.find(" ", 1)  # a token is never empty
        if space < 0:
            raise ValueError(f"{PREFIX}merges has {merge!r:.60}, which is not two tokens")
        merges.append([merge[:space], merge[space + 1 :]])
    whole_words, splitter = pre_tokenizer(vocabulary.pre)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary),
        "normalizer": None,
        "pre_tokenizer": splitter,
        "post_processor": _post_processor(vocabulary),
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole_words,
            "vocab": {
                token: i
                for i, (token, kind) in enumerate(
                    zip(vocabulary.tokens, vocabulary.kinds, strict=True)
                )
                if kind != UNUSED
            },
            "merges": merges,
        },
    }
    return {JSON: json_bytes(data), CONFIG: json_bytes(_settings(vocabulary))}


def _sentencepiece_files(vocabulary: GGUFVocabulary) -> dict[str, bytes]:
    """tokenizer.model with the pieces, and the tokens after the last of them as added ones.

    Without a space before a text, which that file cannot say, a tokenizer.json.
    """
    scores = vocabulary.values("scores", float, len(vocabulary.tokens))
    kinds = list(vocabulary.kinds)
    unk = vocabulary.ids["unknown"]
    if kinds.count(BYTE) != 256 or unk is None:
        raise ValueError(f"{PREFIX}tokens has {kinds.count(BYTE)} tokens for bytes, not 256")
    if UNKNOWN not in kinds:
        kinds[unk] = UNKNOWN
    of_model = max(i for i, kind in enumerate(kinds) if kind in (NORMAL, BYTE, UNKNOWN)) + 1
    for name in ("bos", "eos"):
        token_id = vocabulary.ids[name]
        if token_id is not None and kinds[token_id] == NORMAL:
            kinds[token_id] = CONTROL
    # A piece that counts wherever a text has it is an added token below: llama.cpp, unlike
    # SentencePiece, begins what follows it like a text.
    of_pieces = [UNUSED if kind == USER_DEFINED else kind for kind in kinds[:of_model]]
    pieces = map(Piece, vocabulary.tokens[:of_model], scores, of_pieces)
    in_model = {
        name: i if i is not None and i < of_model else None for name, i in vocabulary.ids.items()
    }
    model = write_model(pieces, unk=unk, bos=in_model["bos"], eos=in_model["eos"])
    settings = _settings(vocabulary)
    added = _added(vocabulary, of_model)
    last = max((token["id"] for token in added), default=-1)
    # The ids of added tokens have no gaps.
    known = {token["id"] for token in added}
    added += [
        {"id": i, "content": vocabulary.tokens[i], **SPECIAL_TOKEN}
        for i in range(of_model, last)
        if i not in known
    ]
    settings["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in sorted(added, key=lambda token: token["id"])
    }
    if vocabulary.flag("add_space_prefix", True):
        return {MODEL: model, CONFIG: json_bytes(settings)}
    data = to_tokenizer_json(model)
    first_normalizer, *others = data["normalizer"]["normalizers"]
    assert first_normalizer["type"] == "Prepend"
    data["normalizer"]["normalizers"] = others
    data["decoder"]["decoders"] = [
        part for part in data["decoder"]["decoders"] if part["type"] != "Strip"
    ]
    data["post_processor"] = _post_processor(vocabulary)
    return {JSON: json_bytes(data), CONFIG: json_bytes(settings)}

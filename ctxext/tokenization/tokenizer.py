"""The tokenizer of a checkpoint: a SentencePiece model or a tokenizer.json."""

import functools
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from ctxext.files import read_json, within
from ctxext.tokenization.added_tokens import (
    ADDED,
    CONFIG,
    JSON,
    added_tokens,
    begin_with,
    json_bytes,
    json_object,
    token_text,
)
from ctxext.tokenization.sentencepiece_model import MODEL as MODEL
from ctxext.tokenization.sentencepiece_model import SAMPLE_TEXTS as SAMPLE_TEXTS
from ctxext.tokenization.sentencepiece_model import (
    model_settings,
    open_model,
    to_tokenizer_json,
)
from ctxext.tokenization.sentencepiece_model import train_tokenizer as train_tokenizer

TEMPLATE = "chat_template.jinja"

UNKNOWN_CHARACTER = "\U0010ffff"
"""A character that is in no vocabulary: it becomes an unknown token, or bytes."""

T = TypeVar("T")


def _with_value_errors(action: Callable[[], T]) -> T:
    """The result of `action`, with any failure of the tokenizers library as a ValueError.

    The library raises bare Exception, and panics raise something that is not even an Exception.
    """
    try:
        return action()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ValueError(f"{JSON} cannot be read: {error}") from None


class Tokenizer:
    """Encodes and decodes text with the files of a checkpoint.

    `files`: the original files by name, which an export copies. `vocab_size`: the highest id plus
    one. `added`: tokens with higher ids from other files, which `encode` does not give.
    `id_to_token` gives the spelling of one id in the vocabulary, "</s>" too. Raises ValueError for
    files that cannot be read.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    id_to_token: Callable[[int], Any]

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        self._settings: dict[str, Any] = json_object(files, CONFIG)
        if MODEL in files:
            self._use_sentencepiece(files[MODEL])
        else:
            self._use_json(files[JSON])
        self.added = added_tokens(files, self.vocab_size)

    def _use_sentencepiece(self, model: bytes) -> None:
        processor = open_model(model)
        vocab_size = processor.vocab_size()
        self.vocab_size = vocab_size
        self.id_to_token = processor.id_to_piece
        self._encode = processor.encode
        # Higher ids are special tokens, which leave no trace in a text.
        self._decode = lambda ids: processor.decode([i for i in ids if i < vocab_size])
        self.bos_id = processor.bos_id() if processor.bos_id() >= 0 else None
        self.eos_id = processor.eos_id() if processor.eos_id() >= 0 else None

    def _use_json(self, data: bytes) -> None:
        import tokenizers

        def open_tokenizer() -> Any:
            tokenizer = tokenizers.Tokenizer.from_str(data.decode())
            tokenizer.encode_special_tokens = True  # as text, not as the tokens that they spell
            # A part that refers to a missing token fails only when it is used.
            tokenizer.decode(tokenizer.encode(f"a{UNKNOWN_CHARACTER}").ids)
            return tokenizer

        tokenizer = _with_value_errors(open_tokenizer)

        def encode(text: str) -> list[int]:
            encoding = _with_value_errors(lambda: tokenizer.encode(text, add_special_tokens=False))
            return encoding.ids

        def special_id(key: str) -> int | None:
            text = token_text(self._settings.get(key))
            return None if text is None else tokenizer.token_to_id(text)

        self._encode = encode
        self._decode = lambda ids: _with_value_errors(lambda: tokenizer.decode(ids))
        self.id_to_token = tokenizer.id_to_token
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(ids, default=-1) + 1
        self.bos_id = special_id("bos_token")
        self.eos_id = special_id("eos_token")

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """Token ids of `text`, without any added tokens.

        `bos`: begin with the beginning-of-sequence id; raises ValueError if there is none.
        `special`: a special token written out in the text, as in a rendered chat, is that token.
        Otherwise its characters are text, whatever the kind of tokenizer.
        """
        if bos and self.bos_id is None:
            raise ValueError(
                f"this tokenizer has no beginning-of-sequence token; set its bos_token in {CONFIG}"
            )
        if special:
            ids = self._fast.encode(text, add_special_tokens=False).ids
        else:
            ids = self._encode(text)
        start = [self.bos_id] if bos and self.bos_id is not None else []
        return [*start, *ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; control tokens such as <s> leave no trace."""
        return self._decode([int(i) for i in ids])

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text` and the characters [start, end) of each, as tokenizer.json has them.

        Raises ValueError if the ids are not those of `encode` (a model that cannot be converted to
        a tokenizer.json).
        """
        encoded = self._fast_text.encode(text, add_special_tokens=False)
        if encoded.ids != self.encode(text):
            raise ValueError(
                f"{MODEL} and {JSON} disagree on the ids of this text, which has {len(text)} "
                "characters"
            )
        return encoded.ids, encoded.offsets

    def _open_fast(self) -> Any:
        """This tokenizer in the tokenizers library, converted from SentencePiece if need be."""
        import tokenizers

        data = self.export_files(0)[JSON] if MODEL in self.files else self.files[JSON]
        return tokenizers.Tokenizer.from_str(data.decode())

    @functools.cached_property
    def _fast(self) -> Any:
        """The library's tokenizer, in which a special token that is written out is that token."""
        return self._open_fast()

    @functools.cached_property
    def _fast_text(self) -> Any:
        """The library's tokenizer, in which a special token that is written out is text."""
        tokenizer = self._open_fast()
        tokenizer.encode_special_tokens = True
        return tokenizer

    @functools.cached_property
    def adds_bos(self) -> bool:
        """Whether readers begin a text with BOS by default.

        tokenizer.json decides, or without that file `add_bos_token`, whose default is true.
        """
        if self.bos_id is None:
            return False
        if JSON not in self.files:
            return self._settings.get("add_bos_token") is not False
        stored = Tokenizer({JSON: self.files[JSON]})
        return self.bos_id in stored._fast.encode("", add_special_tokens=True).ids

    def check_fits(self, vocab_size: int) -> None:
        """Raise ValueError if an id is outside a model's vocabulary, which may be larger."""
        size = max([self.vocab_size, *(token["id"] + 1 for token in self.added)])
        if size <= vocab_size:
            return
        outside = [token["content"] for token in added_tokens(self.files, vocab_size)]
        advice = "use the tokenizer the model was trained with"
        if outside:
            advice += f", or remove {', '.join(outside)} from {JSON} and {ADDED}"
        raise ValueError(
            f"the tokenizer has {size} ids but the model's vocab_size is {vocab_size}; {advice}"
        )

    @property
    def sha256(self) -> str:
        """The hash of the file that decides the ids."""
        return hashlib.sha256(self.files.get(MODEL) or self.files[JSON]).hexdigest()

    def export_files(self, model_max_length: int) -> dict[str, bytes]:
        """The files, by name, with which transformers and others give the same ids."""
        files = {name: data for name, data in self.files.items() if name != CONFIG}
        if MODEL in files:
            converted = to_tokenizer_json(files[MODEL])
            converted["added_tokens"] += self.added
            files[JSON] = json_bytes(converted)
            known = {token["content"] for token in self.added} | converted["model"]["vocab"].keys()
            settings = model_settings(files[MODEL])
            if "chat_template" in self._settings:
                settings["chat_template"] = self._settings["chat_template"]
            pad_token = token_text(self._settings.get("pad_token"))
            if pad_token in known:
                settings["pad_token"] = pad_token
        else:
            files[JSON] = self._json_with_bos()
            settings = dict(self._settings)
        # With any other class name transformers 5 rebuilds the tokenizer, with other ids.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings["model_max_length"] = model_max_length
        settings.pop("auto_map", None)
        return files | {CONFIG: json_bytes(settings)}

    def _json_with_bos(self) -> bytes:
        """tokenizer.json that adds BOS itself, where the class of an older reader used to do so."""
        data = self.files[JSON]
        bos = token_text(self._settings.get("bos_token"))
        is_llama = str(self._settings.get("tokenizer_class")).startswith("LlamaTokenizer")
        if bos is None or self.bos_id is None:
            return data
        if not self._settings.get("add_bos_token", is_llama):
            return data
        if self._fast.encode("a").ids[:1] == [self.bos_id]:
            return data
        post_processor = begin_with(bos, self.bos_id)
        return json_bytes(json_object(self.files, JSON) | {"post_processor": post_processor})


def load_tokenizer(directory: str | Path, *, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a directory; tokenizer.model takes precedence over tokenizer.json.

    `vocab_size`: that of the model, by default as config.json in the directory has it. Raises
    ValueError if there is no tokenizer, one cannot be read, or its ids do not fit `vocab_size`.
    """
    directory = Path(directory)
    names = (MODEL, JSON, CONFIG, ADDED, TEMPLATE)
    files = {
        name: within(directory, name).read_bytes() for name in names if (directory / name).is_file()
    }
    if not files.keys() & {MODEL, JSON}:
        raise ValueError(
            f"{directory} has neither {MODEL} nor {JSON}; copy the tokenizer of the model there"
        )
    try:
        tokenizer = Tokenizer(files)
        if vocab_size is None and (directory / "config.json").is_file():
            vocab_size = _vocab_size(read_json(directory / "config.json"))
        if vocab_size is not None:
            tokenizer.check_fits(vocab_size)
        return tokenizer
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None


def _vocab_size(config: Any) -> int | None:
    """The `vocab_size` of a parsed config.json, None if it has none."""
    if not isinstance(config, dict):
        raise ValueError("config.json does not hold an object")
    size = config.get("vocab_size")
    if size is not None and type(size) is not int:
        raise ValueError(f"config.json: vocab_size must be a whole number, got {size!r}")
    return size

"""Text to token ids and back: a SentencePiece model or a tokenizer.json, and the exact way from one to the other."""

import functools
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ctxext.files import read_json, within
from ctxext.tokenization.added_tokens import (
    ADDED,
    CONFIG,
    JSON,
    added_tokens,
    content,
    json_bytes,
    json_object,
    template,
)
from ctxext.tokenization.sentencepiece_model import MODEL as MODEL
from ctxext.tokenization.sentencepiece_model import PROBES as PROBES
from ctxext.tokenization.sentencepiece_model import spm_processor, spm_settings, to_tokenizer_json
from ctxext.tokenization.sentencepiece_model import train_tokenizer as train_tokenizer

TEMPLATE = "chat_template.jinja"


NOWHERE = "\U0010ffff"  # a character that no vocabulary has: an unknown token, or bytes


def _clear(work: Callable[[], Any]) -> Any:
    """What `work` gives. Raises ValueError where the library raises bare Exception, or panics, not even that."""
    try:
        return work()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ValueError(f"{JSON} cannot be read: {error}") from None


class Tokenizer:
    """Encode and decode. `encode` adds nothing unless asked; `vocab_size` is the highest id plus one.

    `piece` spells one id as the vocabulary does, "</s>" too. `files` are the originals by name, to be copied on export,
    `added` the tokens of other files with higher ids, which `encode` does not give. Raises ValueError for files that
    cannot be read.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    piece: Callable[[int], Any]

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        self._settings: dict[str, Any] = json_object(files, CONFIG)
        if MODEL in files:
            self._read_sentencepiece(files[MODEL])
        else:
            self._read_json(files[JSON])
        self.added = added_tokens(files, self.vocab_size)

    def _read_sentencepiece(self, model: bytes) -> None:
        processor = spm_processor(model)
        self.vocab_size = size = processor.vocab_size()
        self._encode, self.piece = processor.encode, processor.id_to_piece
        self._decode = lambda ids: processor.decode(
            [i for i in ids if i < size]
        )  # behind it are special tokens only
        self.bos_id, self.eos_id = (
            i if i >= 0 else None for i in (processor.bos_id(), processor.eos_id())
        )

    def _read_json(self, data: bytes) -> None:
        import tokenizers

        def opened() -> Any:
            fast = tokenizers.Tokenizer.from_str(data.decode())
            fast.decode(
                fast.encode(f"a{NOWHERE}").ids
            )  # parts that name a token which is not there show only now
            return fast

        fast = _clear(opened)
        self._encode = lambda text: _clear(lambda: fast.encode(text, add_special_tokens=False).ids)
        self._decode, self.piece = (lambda ids: _clear(lambda: fast.decode(ids))), fast.id_to_token
        self.vocab_size = max(fast.get_vocab(with_added_tokens=True).values(), default=-1) + 1

        def special(key: str) -> int | None:
            token = content(self._settings.get(key))
            return None if token is None else fast.token_to_id(token)

        self.bos_id, self.eos_id = special("bos_token"), special("eos_token")

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """Token ids of `text`, behind a beginning-of-sequence id if `bos`. Raises ValueError if there is none.

        `special`: a special token written out in the text, as in a rendered chat, is that token.
        """
        if bos and self.bos_id is None:
            raise ValueError(
                f"this tokenizer has no beginning-of-sequence token; name its bos_token in {CONFIG}"
            )
        ids = (
            self._fast.encode(text, add_special_tokens=False).ids if special else self._encode(text)
        )
        return ([self.bos_id] if bos and self.bos_id is not None else []) + list(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; control tokens such as <s> leave no trace."""
        return self._decode([int(i) for i in ids])

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text` and the characters [start, end) of each, as tokenizer.json says them.

        Raises ValueError if the ids are not those of `encode` (a literal "</s>", or a model that has no such file).
        """
        encoded = self._fast.encode(text, add_special_tokens=False)
        if encoded.ids != self.encode(text):
            raise ValueError(
                f"{MODEL} and {JSON} disagree on the ids of this text, which has {len(text)} characters; "
                "is a special token written out in it?"
            )
        return encoded.ids, encoded.offsets

    @functools.cached_property
    def _fast(self) -> Any:
        import tokenizers

        made = self.export_files(0)[JSON] if MODEL in self.files else self.files[JSON]
        return tokenizers.Tokenizer.from_str(made.decode())

    @functools.cached_property
    def adds_bos(self) -> bool:
        """Whether readers begin a text with BOS unasked: by tokenizer.json, or else `add_bos_token` (default yes)."""
        if self.bos_id is None or JSON not in self.files:
            return self.bos_id is not None and self._settings.get("add_bos_token") is not False
        return (
            self.bos_id
            in Tokenizer({JSON: self.files[JSON]})._fast.encode("", add_special_tokens=True).ids
        )

    def check_fits(self, vocab_size: int) -> None:
        """Raise ValueError if an id would lie outside a model's vocabulary of `vocab_size`, which may be larger."""
        size = max([self.vocab_size, *(token["id"] + 1 for token in self.added)])
        if size > vocab_size:
            outside = ", ".join(token["content"] for token in added_tokens(self.files, vocab_size))
            way = f", or remove {outside} from {JSON} and {ADDED}" * bool(outside)
            raise ValueError(
                f"the tokenizer has {size} ids but the model's vocab_size is {vocab_size}; use the "
                f"tokenizer the model was trained with{way}"
            )

    @property
    def sha256(self) -> str:
        """Hash of the file that decides the ids."""
        return hashlib.sha256(self.files.get(MODEL) or self.files[JSON]).hexdigest()

    def export_files(self, model_max_length: int) -> dict[str, bytes]:
        """What transformers and others need to give the same ids: name -> content."""
        files = {name: data for name, data in self.files.items() if name != CONFIG}
        settings = dict(self._settings)
        if MODEL in files:
            fast = to_tokenizer_json(files[MODEL])
            fast["added_tokens"] += self.added
            files[JSON] = json_bytes(fast)
            known = {token["content"] for token in self.added} | fast["model"]["vocab"].keys()
            pad = content(settings.get("pad_token"))
            settings = spm_settings(files[MODEL]) | {
                k: v for k, v in settings.items() if k == "chat_template"
            }
            settings |= {"pad_token": pad} if pad in known else {}
        else:
            files[JSON] = self._with_beginning()
        # Every other class name makes transformers 5 rebuild the tokenizer, with other ids.
        settings |= {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model_max_length,
        }
        settings.pop("auto_map", None)
        return files | {CONFIG: json_bytes(settings)}

    def _with_beginning(self) -> bytes:
        """tokenizer.json that itself adds the bos token, where that was left to the class of older readers."""
        bos, i = content(self._settings.get("bos_token")), self.bos_id
        llama = str(self._settings.get("tokenizer_class")).startswith("LlamaTokenizer")
        if bos is None or i is None or not self._settings.get("add_bos_token", llama):
            return self.files[JSON]
        if self._fast.encode("a").ids[:1] == [i]:
            return self.files[JSON]
        return json_bytes(json_object(self.files, JSON) | {"post_processor": template(bos, i)})


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of an HF directory; tokenizer.model wins over tokenizer.json.

    Raises ValueError if neither is there, one cannot be read, or config.json says a smaller vocabulary.
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
        if (directory / "config.json").is_file():
            tokenizer.check_fits(
                read_json(directory / "config.json").get("vocab_size", tokenizer.vocab_size)
            )
        return tokenizer
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None

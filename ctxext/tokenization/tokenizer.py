"""The tokenizer of a checkpoint: a SentencePiece model, a tokenizer.json, or both."""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ctxext.files import read_bytes, read_json, within
from ctxext.tokenization.added_tokens import added_tokens
from ctxext.tokenization.agreement import sentencepiece_agrees
from ctxext.tokenization.bounds import check_bounds
from ctxext.tokenization.post_processor import template, with_bos, without_bos
from ctxext.tokenization.sentencepiece_model import SAMPLE_TEXTS as SAMPLE_TEXTS
from ctxext.tokenization.sentencepiece_model import (
    control_tokens,
    open_model,
    special_tokens,
    to_tokenizer_json,
)
from ctxext.tokenization.sentencepiece_model import train_tokenizer as train_tokenizer
from ctxext.tokenization.special_tokens import (
    LLAMA_TOKENS,
    has_llama_defaults,
    is_llama_class,
    read_settings,
    token_text,
)
from ctxext.tokenization.tokenizer_files import ADDED as ADDED
from ctxext.tokenization.tokenizer_files import CONFIG as CONFIG
from ctxext.tokenization.tokenizer_files import FILES, json_bytes, json_object
from ctxext.tokenization.tokenizer_files import JSON as JSON
from ctxext.tokenization.tokenizer_files import MODEL as MODEL
from ctxext.tokenization.tokenizer_files import TEMPLATE as TEMPLATE
from ctxext.tokenization.tokenizer_json import Library, around, complete, open_library

LLAMA_SETTINGS = {"clean_up_tokenization_spaces": False, "padding_side": "left"}
"""Defaults of the class LlamaTokenizer. They are written out, because an export names another."""


MAX_FILE = 1 << 27
"""Bytes of a file; the largest published ones have some forty million."""


class Tokenizer:
    """Encodes and decodes text with the files of a checkpoint.

    `files`: the original files by name, which an export copies. A tokenizer.model and a
    tokenizer.json must be the same tokenizer; the JSON files decide about special tokens.
    `vocab_size`: the highest id that `encode` gives, plus one. `added`: tokens with higher ids.
    `id_to_token` gives the spelling of one id in the vocabulary, "</s>" too. `special_tokens`: the
    texts of the special tokens, by their names in tokenizer_config.json. Raises ValueError for
    files that cannot be read or that contradict each other.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    id_to_token: Callable[[int], Any]

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        self._settings = read_settings(files)
        self._processor = open_model(files[MODEL]) if MODEL in files else None
        tokens = added_tokens(files)
        if self._encodes_as_sentencepiece(tokens):
            self._use_sentencepiece()
        else:
            self._use_library()
        self.added = [token for token in tokens if token["id"] >= self.vocab_size]
        self.special_tokens = self._find_special_tokens()
        self.bos_id = self._special_id("bos_token")
        self.eos_id = self._special_id("eos_token")
        self._before: list[int] = []
        self._after: list[int] = []
        if JSON in files:
            self._read_post_processor()
        elif self._settings.get("add_eos_token") is True and self.eos_id is not None:
            self._after = [self.eos_id]

    def _encodes_as_sentencepiece(self, added: list[dict[str, Any]]) -> bool:
        """Whether the SentencePiece model gives every id, which it does faster.

        Raises ValueError if there is a tokenizer.json with other ids.
        """
        if self._processor is None:
            return False
        # Tokens that are added without being special count wherever a text has them.
        all_special = all(token.get("special") for token in added)
        if JSON not in self.files:
            return all_special and self._is_legacy
        contents = {token["content"] for token in added}
        return sentencepiece_agrees(self._processor, self._library_text, contents) and all_special

    @property
    def _is_legacy(self) -> bool:
        return self._settings.get("legacy") is not False

    def _use_sentencepiece(self) -> None:
        processor: Any = self._processor
        vocab_size = processor.vocab_size()
        self.vocab_size = vocab_size
        self.id_to_token = processor.id_to_piece
        self._encode = processor.encode
        # Higher ids are special tokens, which leave no trace in a text.
        self._decode = lambda ids: processor.decode([i for i in ids if i < vocab_size])

    def _use_library(self) -> None:
        tokenizer = self._library_text
        self._encode = lambda text: tokenizer.encode(text).ids
        self._decode = tokenizer.decode
        self.id_to_token = tokenizer.id_to_token
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(ids, default=-1) + 1

    def _find_special_tokens(self) -> dict[str, str]:
        """The texts of the special tokens; a name that is null in the settings has none."""
        defaults: dict[str, str] = {}
        if self._processor is not None:
            defaults = special_tokens(self._processor)
        elif has_llama_defaults(self._settings):
            known = {key: self._token_id(text) for key, text in LLAMA_TOKENS.items()}
            defaults = {key: LLAMA_TOKENS[key] for key, i in known.items() if i is not None}
        named = {**defaults, **self._settings}
        texts = {key: token_text(named[key]) for key in named if key.endswith("_token")}
        return {key: text for key, text in texts.items() if text is not None}

    def _special_id(self, key: str) -> int | None:
        text = self.special_tokens.get(key)
        if text is None:
            return None
        token_id = self._token_id(text)
        if token_id is None:
            raise ValueError(
                f"{CONFIG} names {text!r} as its {key}, which the tokenizer does not have; name "
                "one that it has, or null for none"
            )
        return token_id

    def _token_id(self, text: str) -> int | None:
        if self._processor is not None:
            piece_id = self._processor.piece_to_id(text)
            if self._processor.id_to_piece(piece_id) == text:
                return piece_id
            return next((t["id"] for t in added_tokens(self.files) if t["content"] == text), None)
        return self._library_text.token_to_id(text)

    def _read_post_processor(self) -> None:
        """Find what the post_processor of tokenizer.json puts around a text.

        Raises ValueError if it begins a text with anything but one BOS.
        """
        self._before, self._after = around(self._library_text)
        if not self._before:
            return
        if self.bos_id is None and len(self._before) == 1:
            self.bos_id = self._before[0]
            self.special_tokens["bos_token"] = self._library_text.id_to_token(self.bos_id)
        if self._before != [self.bos_id]:
            begins = " ".join(self._library_text.id_to_token(i) for i in self._before)
            raise ValueError(
                f"the post_processor of {JSON} begins every text with {begins}, the bos_token of "
                f"{CONFIG} is {self.special_tokens.get('bos_token')}: a text has one BOS; correct "
                "the wrong file"
            )

    @property
    def vocabulary(self) -> dict[int, str]:
        """The spelling of every token by its id, added tokens too."""
        spelled = {i: self.id_to_token(i) for i in range(self.vocab_size)}
        added = {token["id"]: token["content"] for token in self.added}
        return {i: text for i, text in (spelled | added).items() if text is not None}

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """Token ids of `text`.

        `bos`: begin with one beginning-of-sequence id; raises ValueError if there is none.
        `special`: a special token written out in the text, as in a rendered chat, is that token.
        Otherwise its characters are text, whatever the kind of tokenizer.
        """
        if bos and self.bos_id is None:
            raise ValueError(
                f"this tokenizer has no beginning-of-sequence token; set its bos_token in {CONFIG}"
            )
        if special:
            ids = self._library.encode(text).ids
        else:
            ids = self._encode(text)
        if bos and self.bos_id is not None and not (special and ids[:1] == [self.bos_id]):
            return [self.bos_id, *ids]
        return ids

    def encode_prompt(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a prompt, after BOS if the tokenizer adds one; `special`: see `encode`.

        A prompt that begins with BOS, written out, does not get a second one.
        """
        if special:
            return self.encode(text, bos=self.adds_bos, special=True)
        bos = self.special_tokens.get("bos_token")
        has_bos = bos is not None and text.startswith(bos)
        rest = text.removeprefix(bos) if has_bos and bos is not None else text
        return self.encode(rest, bos=has_bos or self.adds_bos)

    def special_literals(self, text: str) -> list[str]:
        """The special tokens that a text spells, in its order; `encode` takes them for text."""
        if self._special_pattern is None:
            return []
        return list(dict.fromkeys(self._special_pattern.findall(text)))

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        texts = {token["content"] for token in added_tokens(self.files) if token.get("special")}
        if self._processor is not None:
            texts |= control_tokens(self._processor)
        # The longest first, where one begins like another.
        ordered = sorted(texts, key=lambda text: (-len(text), text))
        return re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def encode_as_readers(self, text: str) -> list[int]:
        """Token ids as other readers of the files give them, with BOS and EOS where they add it."""
        return [*self.encode(text, bos=self.adds_bos), *self._after]

    def encode_as_model(self, text: str) -> list[int]:
        """Token ids as programs give them that read tokenizer.model and not the files next to it.

        They differ from `encode_as_readers` in one space, for a text that begins with a space under
        `legacy: false`. The same without a tokenizer.model.
        """
        if self._processor is None:
            return self.encode_as_readers(text)
        start = [self.bos_id] if self.adds_bos and self.bos_id is not None else []
        return [*start, *self._processor.encode(text), *self._after]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; control tokens such as <s> leave no trace."""
        return self._decode([int(i) for i in ids])

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text` and the characters [start, end) of each, as tokenizer.json has them.

        Raises ValueError if the ids are not those of `encode` (a model that cannot be converted to
        a tokenizer.json).
        """
        encoded = self._library_text.encode(text)
        if encoded.ids != self.encode(text):
            raise ValueError(
                f"{MODEL} and {JSON} disagree on the ids of this text, which has {len(text)} "
                "characters"
            )
        return encoded.ids, encoded.offsets

    def rendered_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `encode(text, special=True)` and the characters [start, end) of each."""
        encoded = self._library.encode(text)
        return encoded.ids, encoded.offsets

    @functools.cached_property
    def json_data(self) -> dict[str, Any]:
        """tokenizer.json with all added tokens, converted from SentencePiece if need be."""
        if JSON in self.files:
            data = json_object(self.files, JSON)
            check_bounds(data)  # before padding, which other readers obey, is left out
            return complete(data, self.files)
        return complete(to_tokenizer_json(self.files[MODEL], legacy=self._is_legacy), self.files)

    @functools.cached_property
    def _library(self) -> Library:
        """The library's tokenizer, in which a special token that is written out is that token."""
        return open_library(self.json_data)

    @functools.cached_property
    def _library_text(self) -> Library:
        """The library's tokenizer, in which a special token that is written out is text."""
        return open_library(self.json_data, literal_special=True)

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with BOS, as the checkpoint's files say.

        The post_processor of tokenizer.json decides, or without that file `add_bos_token`, whose
        default is true. The class LlamaTokenizer of transformers 4 adds BOS by itself, unless
        `add_bos_token` is false. Raises ValueError where the two contradict each other.
        """
        policy = self._bos_policy()
        if policy is not None:
            return policy
        begins = f"begins every text with {self.special_tokens['bos_token']}"
        raise ValueError(
            f"{CONFIG} has add_bos_token {str(not self._before).lower()}, but the post_processor "
            f"of {JSON} {begins if self._before else 'adds no BOS'}, and readers obey one or the "
            "other; decide with --bos or --no-bos, or correct one of the files"
        )

    def _bos_policy(self) -> bool | None:
        """`adds_bos`, None where the files contradict each other."""
        stated = self._settings.get("add_bos_token")
        if self.bos_id is None:
            return False
        if JSON not in self.files:
            return stated is not False
        if stated is None:
            return bool(self._before) or is_llama_class(self._settings)
        if stated == bool(self._before) or (stated and has_llama_defaults(self._settings)):
            return bool(stated)
        return None

    @property
    def adds_bos_by_its_class(self) -> bool:
        """True if a text begins with BOS because of the class, which only transformers 4 asks."""
        says_nothing = not self._before and not self._settings.get("add_bos_token")
        return self.adds_bos and JSON in self.files and says_nothing

    @property
    def why_without_bos(self) -> str:
        """Why texts begin without BOS, in words; "" if they begin with it."""
        if self.adds_bos:
            return ""
        if self.bos_id is None:
            return "the tokenizer has none"
        return "the tokenizer adds none"

    @property
    def bos_note(self) -> str:
        """How texts begin, in words."""
        if not self.adds_bos:
            can_add = "" if self.bos_id is None else "; --bos puts one there"
            return (
                "texts begin without BOS, in training, evaluations and prompts, as "
                f"{self.why_without_bos}{can_add}"
            )
        note = f"texts begin with BOS, {self.special_tokens['bos_token']} (id {self.bos_id})"
        if self.adds_bos_by_its_class:
            note += (
                f", which the class LlamaTokenizer of transformers 4 adds; transformers 5 begins "
                f"them as the post_processor of {JSON} does, without: --no-bos"
            )
        return note

    @property
    def adds_eos(self) -> bool:
        """Whether readers end a text with EOS. Prompts are encoded without it here."""
        return bool(self._after) and self._after == [self.eos_id]

    def with_bos(self, adds_bos: bool | None) -> "Tokenizer":
        """The same tokenizer with files that say that a text begins with BOS, or that it does not.

        None keeps what they say. Raises ValueError if there is no BOS to add, and for a
        post_processor that cannot do without it.
        """
        if adds_bos in (None, self._bos_policy()):
            return self
        bos = self.special_tokens.get("bos_token")
        if bos is None or self.bos_id is None:
            if adds_bos:
                raise ValueError(
                    f"--bos needs a tokenizer with a BOS; name its bos_token in {CONFIG}"
                )
            return self
        settings = json_object(self.files, CONFIG) | {"add_bos_token": adds_bos}
        changed = {CONFIG: json_bytes(settings)}
        if JSON in self.files and bool(self._before) != adds_bos:
            data = json_object(self.files, JSON)
            if adds_bos:
                processor = with_bos(data.get("post_processor"), bos, self.bos_id)
            else:
                processor = without_bos(data["post_processor"], bos)
            changed[JSON] = json_bytes(data | {"post_processor": processor})
        return Tokenizer(self.files | changed)

    @property
    def num_ids(self) -> int:
        """One more than the highest id, which an added token may have."""
        return max([self.vocab_size, *(token["id"] + 1 for token in self.added)])

    def check_fits(self, vocab_size: int) -> None:
        """Raise ValueError if an id is outside a model's vocabulary, which may be larger."""
        size = self.num_ids
        if size <= vocab_size:
            return
        outside = [
            token["content"] for token in added_tokens(self.files) if token["id"] >= vocab_size
        ]
        advice = "use the tokenizer the model was trained with"
        if outside:
            advice += f", or remove {', '.join(outside)} from {JSON} and {ADDED}"
        raise ValueError(
            f"the tokenizer has {size} ids but the model's vocab_size is {vocab_size}; {advice}"
        )

    @property
    def sha256(self) -> str:
        """The hash of what decides the ids of a text, without what is put around it."""
        return self._sha256

    @functools.cached_property
    def _sha256(self) -> str:
        if self._processor is not None and self._encode == self._processor.encode:
            return hashlib.sha256(self.files[MODEL]).hexdigest()
        around_text = ("post_processor", "truncation", "padding")
        data = {key: value for key, value in self.json_data.items() if key not in around_text}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's Jinja chat template, from chat_template.jinja or tokenizer_config.json.

        Raises ValueError for a template that is not text.
        """
        if TEMPLATE in self.files:
            try:
                return self.files[TEMPLATE].decode()
            except UnicodeDecodeError:
                raise ValueError(f"{TEMPLATE} is not UTF-8; save it as that") from None
        chosen = self._settings.get("chat_template")
        if isinstance(chosen, list):  # several templates, by name
            named = {
                entry.get("name"): entry.get("template")
                for entry in chosen
                if isinstance(entry, dict)
            }
            chosen = named.get("default")
        if chosen is not None and not isinstance(chosen, str):
            raise ValueError(f"chat_template of {CONFIG} must be text, got {str(chosen)[:40]}")
        return chosen or None

    def export_files(self, model_max_length: int) -> dict[str, bytes]:
        """The files, by name, with which transformers and others give the same ids.

        They are the checkpoint's own, but for truncation and padding, tokens that only one of them
        has, and BOS where a reader's class would have added it.
        """
        settings = json_object(self.files, CONFIG)
        # transformers 5 wants the text of a token here; tokenizer.json has its other fields.
        named = settings.keys() & self.special_tokens.keys()
        settings |= {key: self.special_tokens[key] for key in named}
        missing = self.special_tokens.keys() - self._settings.keys()
        settings |= {key: self.special_tokens[key] for key in sorted(missing)}
        if has_llama_defaults(self._settings):
            settings = LLAMA_SETTINGS | settings
        settings |= {
            "add_bos_token": self.adds_bos,
            "add_eos_token": self.adds_eos,
            # With any other class name transformers 5 rebuilds the tokenizer, with other ids.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model_max_length,
        }
        settings.pop("auto_map", None)
        return self.files | {JSON: self._exported_json(), CONFIG: json_bytes(settings)}

    def _exported_json(self) -> bytes:
        """tokenizer.json, as it was given if it says all that it has to."""
        data = self.json_data
        bos_id, bos = self.bos_id, self.special_tokens.get("bos_token")
        start = (bos, bos_id) if self.adds_bos and bos is not None and bos_id is not None else None
        if JSON not in self.files:
            end = (self.special_tokens["eos_token"], self._after[0]) if self._after else None
            processor = template(start, end) if start or end else None
            return json_bytes(data | {"post_processor": processor})
        if start is not None and not self._before:
            processor = with_bos(data.get("post_processor"), *start)
            return json_bytes(data | {"post_processor": processor})
        given = self.files[JSON]
        return given if data == json.loads(given) else json_bytes(data)


def load_tokenizer(directory: str | Path, *, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a directory.

    `vocab_size`: that of the model, by default as config.json in the directory has it. Raises
    ValueError if there is no tokenizer, one cannot be read, its files contradict each other, or its
    ids do not fit `vocab_size`.
    """
    directory = Path(directory)
    files = {
        name: read_bytes(within(directory, name), MAX_FILE)
        for name in FILES
        if (directory / name).is_file()
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
        tokenizer.chat_template  # noqa: B018
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

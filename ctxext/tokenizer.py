"""Text to token ids and back: a SentencePiece model or a tokenizer.json, and the exact way from one to the other."""

import functools
import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ctxext.files import read_json

MODEL, JSON, CONFIG = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
PROBES = (
    "The quick brown fox; jumps over 12345 lazy dogs.", " leading", "trailing ", "two  spaces,   three", "a", " ", "  ",
    "\ttab\n\nlines\n", "1 2\r\n3", "def f(x):\n    return x ** 2  # note", "naïve café, über, ß", "日本語 and 中文",
    "emoji 🙂🚀", "▁",
)  # fmt: skip


class Tokenizer:
    """Encode and decode. `encode` adds nothing unless asked; `vocab_size` is the highest id plus one.

    `files` are the originals by name, to be copied on export. Raises ValueError for files that cannot be read.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        self._settings: dict[str, Any] = json.loads(files.get(CONFIG, b"{}"))
        if MODEL in files:
            self._read_sentencepiece(files[MODEL])
        else:
            self._read_json(files[JSON])

    def _read_sentencepiece(self, model: bytes) -> None:
        processor = _processor(model)
        self.vocab_size = size = processor.vocab_size()
        self._encode = processor.encode
        self._decode = lambda ids: processor.decode([i for i in ids if i < size])  # behind it are special tokens only
        self.bos_id, self.eos_id = (i if i >= 0 else None for i in (processor.bos_id(), processor.eos_id()))

    def _read_json(self, data: bytes) -> None:
        import tokenizers

        try:
            fast = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{JSON} cannot be read: {error}") from None
        self._encode = lambda text: fast.encode(text, add_special_tokens=False).ids
        self._decode = fast.decode
        self.vocab_size = max(fast.get_vocab(with_added_tokens=True).values()) + 1

        def special(key: str) -> int | None:
            token = self._settings.get(key)
            return fast.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None

        self.bos_id, self.eos_id = special("bos_token"), special("eos_token")

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """Token ids of `text`, behind a beginning-of-sequence id if `bos`. Raises ValueError if there is none.

        `special`: a special token written out in the text, as in a rendered chat, is that token.
        """
        if bos and self.bos_id is None:
            raise ValueError(f"this tokenizer has no beginning-of-sequence token; name its bos_token in {CONFIG}")
        ids = self._fast.encode(text, add_special_tokens=False).ids if special else self._encode(text)
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
            raise ValueError(f"{MODEL} and {JSON} disagree on the ids of this text, which has {len(text)} characters; "
                             "is a special token written out in it?")  # fmt: skip
        return encoded.ids, encoded.offsets

    @functools.cached_property
    def _fast(self) -> Any:
        import tokenizers

        return tokenizers.Tokenizer.from_str(self.export_files(0)[JSON].decode())

    def check_fits(self, vocab_size: int) -> None:
        """Raise ValueError if an id would lie outside a model's vocabulary of `vocab_size`."""
        if self.vocab_size > vocab_size:
            raise ValueError(f"the tokenizer has {self.vocab_size} ids but the model's vocab_size is {vocab_size}; "
                             "use the tokenizer the model was trained with")  # fmt: skip

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the file that decides the ids."""
        return hashlib.sha256(self.files.get(MODEL) or self.files[JSON]).hexdigest()

    def export_files(self, model_max_length: int) -> dict[str, bytes]:
        """What transformers and others need to give the same ids: name -> content."""
        files = {name: data for name, data in self.files.items() if name != CONFIG}
        settings = dict(self._settings)
        if MODEL in files:
            fast = to_tokenizer_json(files[MODEL])
            # Tokens that somebody added behind the model's own, for chat or padding, live in tokenizer.json only.
            added = json.loads(files.get(JSON, b"{}")).get("added_tokens", [])
            fast["added_tokens"] += [token for token in added if token["id"] >= self.vocab_size]
            files[JSON] = _json_bytes(fast)
            settings = _settings(files[MODEL]) | {k: v for k, v in settings.items() if k == "chat_template"}
        # Every other class name makes transformers 5 rebuild the tokenizer, with other ids.
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model_max_length}
        settings.pop("auto_map", None)
        return files | {CONFIG: _json_bytes(settings)}


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of an HF directory; tokenizer.model wins over tokenizer.json.

    Raises ValueError if neither is there, one cannot be read, or config.json says a smaller vocabulary.
    """
    directory = Path(directory)
    names = (MODEL, JSON, CONFIG, TEMPLATE)
    files = {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}
    if not files.keys() & {MODEL, JSON}:
        raise ValueError(f"{directory} has neither {MODEL} nor {JSON}; copy the tokenizer of the model there")
    for name in files.keys() & {JSON, CONFIG}:
        read_json(directory / name)  # names the file if it is broken
    try:
        tokenizer = Tokenizer(files)
        if (directory / "config.json").is_file():
            tokenizer.check_fits(read_json(directory / "config.json").get("vocab_size", tokenizer.vocab_size))
        return tokenizer
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE model (arXiv 1808.06226) with Llama's settings, deterministic; ids 0 1 2 are <unk> <s> </s>.

    Raises ValueError if the texts are too small for `vocab_size` pieces.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.splitlines() if line),
            model_writer=model, model_type="bpe", vocab_size=vocab_size, character_coverage=0.99995,
            byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, add_dummy_prefix=True,
            remove_extra_whitespaces=False, normalization_rule_name="identity",
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, max_sentence_length=1 << 16, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise ValueError(f"no tokenizer of {vocab_size} pieces can be made of these texts: {error}") from None
    return model.getvalue()


def to_tokenizer_json(model: bytes) -> dict[str, Any]:
    """The tokenizer.json that gives the ids of a SentencePiece BPE model, for the tokenizers library.

    One difference by design: there, a literal "</s>" in text is the special token. Raises ValueError if the two
    disagree on probe texts, as for models that are not BPE or normalise their input.
    """
    import tokenizers

    processor = _processor(model)
    size = processor.vocab_size()
    pieces = [processor.id_to_piece(i) for i in range(size)]
    ids = {piece: i for i, piece in enumerate(pieces)}
    special = [i for i in range(size) if processor.is_control(i) or processor.is_unknown(i)]
    normal = [i for i in range(size) if not (i in special or processor.is_byte(i) or processor.is_unused(i))]
    scored = sorted((-processor.get_score(i), n) for n, i in enumerate(normal) if len(pieces[i]) > 1)
    merges = []
    for _, n in scored:  # by descending score, then by id
        piece = pieces[normal[n]]
        splits = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        merges += sorted(((a, b) for a, b in splits if a in ids and b in ids), key=lambda s: (ids[s[0]], ids[s[1]]))
    unk = pieces[processor.unk_id()]
    result = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True} for i in special
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": None,
        "post_processor": _template(processor, pieces),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unk, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": ids, "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip
    fast = tokenizers.Tokenizer.from_str(json.dumps(result))
    for text in PROBES:
        if fast.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise ValueError(f"{MODEL} cannot be written as {JSON}: the ids of {text!r} would change "
                             "(only BPE models with Llama's settings can)")  # fmt: skip
    return result


def _template(processor: Any, pieces: list[str]) -> dict[str, Any] | None:
    if processor.bos_id() < 0:
        return None
    bos = pieces[processor.bos_id()]

    def part(type_id: int, name: str) -> list[dict[str, Any]]:
        start = {"SpecialToken": {"id": bos, "type_id": type_id}}
        return [start, {"Sequence": {"id": name, "type_id": type_id}}]

    token = {"id": bos, "ids": [processor.bos_id()], "tokens": [bos]}
    return {"type": "TemplateProcessing", "single": part(0, "A"), "pair": part(0, "A") + part(1, "B"),
            "special_tokens": {bos: token}}  # fmt: skip


def _settings(model: bytes) -> dict[str, Any]:
    processor = _processor(model)
    ids = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    tokens = {key: processor.id_to_piece(i) for key, i in ids.items() if i >= 0}
    return tokens | {"add_bos_token": processor.bos_id() >= 0, "add_eos_token": False, "legacy": False,
                     "clean_up_tokenization_spaces": False}  # fmt: skip


def _processor(model: bytes) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise ValueError(f"{MODEL} is not a SentencePiece model; remove it if {JSON} is the real one") from None


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

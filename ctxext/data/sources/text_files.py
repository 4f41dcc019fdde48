"""Text on disk, in files of every kind that `ctxext.data.documents` reads."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np

from ctxext.data import documents
from ctxext.data.corpus import Corpus
from ctxext.data.held_out import HELD_OUT, HeldOut, advice, hash_fraction
from ctxext.data.sources.base import Source, TextOnDisk, TextSource
from ctxext.data.sources.prepared import prepared_held_out
from ctxext.data.token_files import file_hash, is_prepared, open_prepared
from ctxext.tokenization.answers import encode_answers, training_chat
from ctxext.tokenization.chat import OWN, TEMPLATES, Messages
from ctxext.tokenization.protocol import TokenizerLike


@dataclass(frozen=True)
class Files(TextSource):
    """Files of text, JSON lines, JSON, CSV or tables, a directory of them, or a saved dataset.

    A plain text (.txt, .md and others) is one document; an entry, line or row of another file is
    one. Text may be compressed (.gz, .bz2, .xz, .zst). A saved dataset is what
    `datasets.Dataset.save_to_disk` wrote. A directory that `ctxext prepare` wrote is its training
    part, so that --data.path may name either.
    """

    suffixes: ClassVar[tuple[str, ...]] = documents.SUFFIXES
    path: str
    """A file or directory."""
    field: str = "text"
    """The key or column of the text."""
    parse_special: bool = False
    """Whether special tokens that are written out in the text, such as "</s>", are those tokens."""
    chat_template: str | None = None
    """Read chat records (`messages`, or `conversations` of ShareGPT) and instruction records
    (`instruction`, `input`, `output`) and train their answers only: by the checkpoint's "own" chat
    template, by "alpaca", "vicuna", "llama2" or "longalpaca", or by a file in Jinja; None reads
    text."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("the path of the text is empty: name a file or directory")
        if self.chat_template == "":
            raise ValueError(
                f"chat_template is empty: name {', '.join([OWN, *TEMPLATES])} or a file"
            )
        if self.chat_template is not None and self.parse_special:
            raise ValueError("parse_special is for texts; a chat template writes special tokens")

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        if is_prepared(root):
            return False
        try:
            return bool(documents.find_files(root).files)
        except ValueError:
            return False

    @classmethod
    def as_haystack(cls, name: str) -> Self:
        return cls(name)

    def text_on_disk(self) -> Iterator[TextOnDisk]:
        yield TextOnDisk(self.path, field=self.field, chat_template=self.chat_template)

    def training_part(self, share: float) -> Source:
        if not share or is_prepared(Path(self.path).expanduser()):
            return self
        return Split(self, "train", share)

    def held_out_parts(self, share: float) -> Iterator[TextSource]:
        if is_prepared(Path(self.path).expanduser()):
            yield from prepared_held_out(self.path)
        elif share:
            yield Split(self, "heldout", share)

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        root = Path(self.path).expanduser()
        if is_prepared(root):
            if self.chat_template is not None:
                raise ValueError(
                    f"{root} holds tokens, whose chat template `ctxext prepare` was given: leave "
                    "data.chat_template out"
                )
            return open_prepared(root, "train", tokenizer)
        return self.open_documents(tokenizer, lambda text: True)

    def texts(self) -> Iterator[str]:
        """The text of every document, in order; of a record, its messages as JSON.

        Raises ValueError for one that is broken.
        """
        return documents.read_texts(self._found(), self._field)

    def _found(self) -> documents.Found:
        return documents.find_files(Path(self.path).expanduser())

    @property
    def _field(self) -> documents.Field:
        is_chat = self.chat_template is not None
        return documents.Field(self.field, chat_option="chat_template", is_chat=is_chat)

    def open_documents(self, tokenizer: TokenizerLike, keep: Callable[[str], bool]) -> Corpus:
        """The documents for whose text `keep` is true, which is asked about each in order."""
        found = self._found()
        hashes = {name: file_hash(path) for name, path in found.files.items()}
        if self.chat_template is not None:
            return self._open_answers(found, hashes, tokenizer, self.chat_template, keep)
        kept = filter(keep, self.texts())
        return Corpus.from_texts(kept, tokenizer, files=hashes, parse_special=self.parse_special)

    def _open_answers(
        self,
        found: documents.Found,
        hashes: dict[str, str],
        tokenizer: TokenizerLike,
        template: str,
        keep: Callable[[str], bool],
    ) -> Corpus:
        chat = training_chat(tokenizer, template, "--data.chat-template")
        places: list[str] = []

        def conversations() -> Iterator[Messages]:
            for path, document in documents.read_documents(found, self._field):
                if keep(document.text):
                    places.append(documents.place_of(path, document))
                    yield documents.messages_of(document.text)

        def usable() -> Iterator[tuple[list[int], np.ndarray]]:
            for number, answered in enumerate(encode_answers(chat, conversations())):
                if answered.reason:
                    raise ValueError(f"{places[number]}: {answered.reason}")
                yield answered.ids, answered.is_answer

        digest = hashlib.sha256(chat.template.encode()).hexdigest()
        facts = {"files": hashes, "chat_template_sha256": digest}
        return Corpus.from_answers(usable(), tokenizer, facts=facts)


@dataclass(frozen=True)
class Split(TextSource):
    """The documents of files of text that training sees, or those that are held out of it.

    The hash of its text decides about a document, as in `ctxext prepare`: equal documents are on
    the same side. Training makes this of `Files` by itself, see `train.held_out`; in an evaluation,
    `Split(Files("my-texts"), "heldout")` is text that it has not seen.
    """

    source: Files
    """The files."""
    split: Literal["train", "heldout"]
    """Which part of the documents."""
    share: float = HELD_OUT
    """The share of the documents that is held out."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"the share held out must be above 0 and below 1, got {self.share}")

    def training_part(self, share: float) -> Source:
        return self  # it is one already, or held out on purpose

    def held_out_parts(self, share: float) -> Iterator[TextSource]:
        if self.split == "train":
            yield Split(self.source, "heldout", self.share)

    def held_out(self) -> HeldOut:
        """How many documents are held out, which reads all of them."""
        return self._held_out([hash_fraction(text) for text in self.source.texts()])

    def _held_out(self, fractions: Sequence[float]) -> HeldOut:
        return HeldOut(
            self.source.path,
            sum(fraction < self.share for fraction in fractions),
            len(fractions),
            f"a share of {self.share:g} comes to nothing here, and "
            + advice(min(fractions), len(fractions)),
        )

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        """The part as a corpus, without documents if the share came to nothing.

        Raises ValueError if everything is held out, and as `Files.open`.
        """
        fractions: list[float] = []
        wants_held_out = self.split == "heldout"

        def keep(text: str) -> bool:
            fractions.append(hash_fraction(text))
            return (fractions[-1] < self.share) == wants_held_out

        corpus = self.source.open_documents(tokenizer, keep)
        held_out = self._held_out(fractions)
        if held_out.documents == held_out.total and not wants_held_out:
            raise ValueError(
                f"{held_out.name}: all of its documents ({held_out.total:,}) are held out of "
                f"training by a share of {self.share:g}: give more documents, or --train.held-out 0"
            )
        corpus.facts = {**corpus.facts, "split": self.split, "held_out": self.share}
        corpus.held_out = held_out
        return corpus

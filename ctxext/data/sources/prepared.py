"""Tokens that `ctxext prepare` wrote."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from ctxext.data.corpus import Corpus
from ctxext.data.sources.base import TextOnDisk, TextSource
from ctxext.data.token_files import is_prepared, open_prepared, read_index
from ctxext.tokenization.protocol import TokenizerLike


@dataclass(frozen=True)
class Prepared(TextSource):
    """A directory that `ctxext prepare` wrote, mapped into memory, with the model's tokenizer."""

    path: str
    """The directory."""
    split: Literal["train", "heldout"] = "train"
    """Which part of the documents."""

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        return is_prepared(root)

    @classmethod
    def as_haystack(cls, name: str) -> Self:
        """The held-out part, or the training part if nothing was held out."""
        splits = read_index(Path(name).expanduser())["splits"]
        return cls(name, "heldout" if splits["heldout"]["documents"] else "train")

    def text_on_disk(self) -> Iterator[TextOnDisk]:
        yield TextOnDisk(self.path, self.split, None)

    def held_out_parts(self, share: float) -> Iterator[TextSource]:
        if self.split == "train":
            yield from prepared_held_out(self.path)

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        return open_prepared(Path(self.path).expanduser(), self.split, tokenizer)


def prepared_held_out(path: str) -> Iterator[Prepared]:
    """The held-out part of a prepared directory, if it has one."""
    index = read_index(Path(path).expanduser())
    if index["splits"]["heldout"]["documents"]:
        yield Prepared(path, "heldout")

"""An export that may be published: it is proven, nothing else, and its card says enough."""

import dataclasses
import re
import shlex
from pathlib import Path

from ctxext.interop import gguf, peft_base, peft_reader
from ctxext.interop.model_card import HUB_NAMES
from ctxext.loading import is_run
from ctxext.prove.file_digests import changed_files, file_digests, in_words
from ctxext.prove.recorded import RecordedProof, proof_file, read_recorded
from ctxext.publish.card import Card, names_home, read_card, refuse_tokens, says_no_license
from ctxext.publish.contents import CARD, TERMS, files_of, plain_file

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""owner/name, as the hub has it."""
BASE_PREFIX = "base/"
"""How a proof of an adapter names the files of its base, which are not published."""


@dataclasses.dataclass(frozen=True)
class Publication:
    """What is uploaded to `repo`.

    `files`: by their names there. `digests`: the sha256 of those that the proof covers. `hidden`:
    what else is in the directory, and is left out. `notes`: what the user should look at first.
    """

    source: Path
    repo: str
    files: dict[str, Path]
    digests: dict[str, str]
    card: Card
    proof: RecordedProof
    hidden: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: str | Path, repo: str, *, card: str | Path | None = None) -> "Publication":
        """The export at `source`, a directory or a GGUF file, with its own card unless given one.

        Raises ValueError, with what to do, for an export that was not proven against its model, for
        files that changed since or are not part of it, and for a card without base or license.
        """
        path = Path(source)
        if not REPO.fullmatch(repo):
            raise ValueError(f"{repo} is no name of a repository; give OWNER/NAME")
        proof = _read_proof(path)
        files, hidden = _files(path, proof)
        files[CARD] = _card_file(path, card, files)
        texts = [file for name, file in files.items() if name in (CARD, proof.path.name, *TERMS)]
        for file in texts:
            refuse_tokens(file)
        if proof.format == "peft":
            _check_base_name(path)
        contents = read_card(files[CARD])
        digests = _check_digests(path, proof)
        notes = [
            f"{file} names a place in your home directory, which everybody who sees it will read"
            for file in texts
            if names_home(file)
        ]
        if says_no_license(files[CARD]):
            notes.append(
                f"{files[CARD]} names the license {contents.license} at its beginning, and its "
                "list still says that none is stated: remove that line"
            )
        files = dict(sorted(files.items()))
        return cls(path, repo, files, digests, contents, proof, tuple(hidden), tuple(notes))

    def sizes(self) -> dict[str, int]:
        """The bytes of each file."""
        return {name: file.stat().st_size for name, file in self.files.items()}


def _prove(path: Path) -> str:
    """The command that proves an export."""
    return f"ctxext prove {shlex.quote(str(path))} --against SOURCE"


def _read_proof(path: Path) -> RecordedProof:
    """The proof of an export. Raises ValueError if there is none with its model, or not equal."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; give an export, a directory or a GGUF file")
    if path.is_file() and not gguf.is_gguf(path):
        raise ValueError(f"{path} is a file; give the directory of the export, or a GGUF file")
    if is_run(path):
        raise ValueError(f"{path} is a run; publish what it exported to {path / 'export'}")
    plain = proof_file(path)
    if plain.is_symlink():
        plain_file(plain)
    proof = read_recorded(path)
    command = f"{_prove(path)}, the run or the checkpoint that it was written from"
    if proof is None:
        raise ValueError(f"{path} was not proven, as there is no {plain.name}: {command}")
    if not proof.equal:
        raise ValueError(
            f"{proof.path} says that {path} is NOT EQUAL to {proof.against}; export the model "
            "again, and prove it"
        )
    if not proof.with_model:
        raise ValueError(
            f"{proof.path} compares the files with themselves only, not with the model that was "
            f"exported: {command}"
        )
    return proof


def _files(path: Path, proof: RecordedProof) -> tuple[dict[str, Path], list[str]]:
    if path.is_file():
        files = (plain_file(path), plain_file(proof.path))
        return {file.name: file for file in files}, []
    return files_of(path, proof.format)


def _card_file(path: Path, card: str | Path | None, files: dict[str, Path]) -> Path:
    if card is not None:
        return plain_file(Path(card))
    if CARD not in files:
        raise ValueError(
            f"{path} has no model card; write one, with base_model and license between two lines "
            "--- at its beginning, and name it with --card FILE"
        )
    return files[CARD]


def _check_base_name(path: Path) -> None:
    """Raise ValueError for an adapter whose base only this machine can find."""
    name = peft_base.named_base(path)
    if not HUB_NAMES["base_model"].fullmatch(name):
        raise ValueError(
            f"{path / peft_reader.CONFIG} names the base {name!r}, which nobody else can load; "
            "publish the base, export the adapter with --base OWNER/NAME, and prove that"
        )


def _check_digests(path: Path, proof: RecordedProof) -> dict[str, str]:
    """The sha256 of the files by name. Raises ValueError if they are not those of the proof."""
    proven = {
        name: digest
        for name, digest in proof.files.items()
        if proof.format != "peft" or not name.startswith(BASE_PREFIX)
    }
    changes = changed_files(proven, file_digests(path))
    if changes:
        raise ValueError(
            f"{path} is not what {proof.path} proves: {in_words(changes)}; restore that, or prove "
            f"the files as they are now: {_prove(path)}"
        )
    return proven

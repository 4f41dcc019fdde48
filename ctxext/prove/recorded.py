"""The proof that is recorded next to an export.

A proof against the model that was exported is stronger than one of the files alone, which compares
what several readers make of them. A weaker proof never replaces a stronger one.
"""

import dataclasses
from pathlib import Path

from ctxext.files import read_json
from ctxext.prove.file_digests import PROOF, changed_files, file_digests, in_words


def proof_file(path: str | Path) -> Path:
    """Where the proof of a directory is written, or that of a single file."""
    path = Path(path)
    return path.with_suffix(f".{PROOF}") if path.is_file() else path / PROOF


@dataclasses.dataclass(frozen=True)
class RecordedProof:
    """An earlier proof: its verdict, what the files were compared with, and their digests.

    `format`: a name of `interop.formats.FORMATS`, or "peft". `with_model`: compared with the model
    that was exported, not only with our reading of the files.
    """

    path: Path
    equal: bool
    against: str
    with_model: bool
    files: dict[str, str]
    format: str

    def state(self, changes: dict[str, str]) -> str:
        """Whether the files are still those of the proof, in words; `changes` as in proofs."""
        if changes:
            return f"changed since {self.path} was written: {in_words(changes)}"
        verdict = "EQUAL" if self.equal else "NOT EQUAL"
        return f"the files are those of {self.path}: {verdict} to {self.against}"


def read_recorded(path: str | Path) -> RecordedProof | None:
    """The proof that is recorded next to an export; None if there is none.

    Raises ValueError for a file that is not a proof.
    """
    file = proof_file(path)
    if not file.exists():
        return None
    data = read_json(file)
    digests = data.get("files") if isinstance(data, dict) else None
    if (
        not isinstance(digests, dict)
        or not all(isinstance(digest, str) for digest in digests.values())
        or type(data.get("equal")) is not bool
        or type(data.get("compared_with_model")) is not bool
        or not isinstance(data.get("against"), str)
        or not isinstance(data.get("format"), str)
    ):
        raise ValueError(
            f"{file} is not a proof with digests of the files; remove it to have one written"
        )
    return RecordedProof(
        file, data["equal"], data["against"], data["compared_with_model"], digests, data["format"]
    )


def changes_since_proof(path: str | Path) -> dict[str, str]:
    """The files of an export that are not those of its recorded proof, as `changed_files` has them.

    Empty without a recorded proof. Raises ValueError as `read_recorded` does.
    """
    recorded = read_recorded(path)
    return {} if recorded is None else changed_files(recorded.files, file_digests(path))

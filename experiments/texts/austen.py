"""Jane Austen's six novels as plain text: three to train on, three held out, from one package.

    apt-get download r-cran-janeaustenr
    python experiments/texts/austen.py r-cran-janeaustenr_1.0.0-1_all.deb --out runs/austen

Without apt: the file is in the pool of every Debian mirror, in pool/main/r/r-cran-janeaustenr. A
directory into which it was unpacked, or one where R has installed janeaustenr 1.0.0, will do as
well. Neither R nor another package is needed. Text that is not the expected one is refused.

    OUT/train          Emma, Mansfield Park, Pride and Prejudice; a file each
    OUT/heldout        Northanger Abbey, Persuasion, Sense and Sensibility, cut at the beginnings of
                       chapters into 18 parts of 75,000 characters or more: 16,384 tokens fit
    OUT/heldout-long   the same in 9 parts of 145,000 characters or more, for 32,768 tokens
    OUT/SOURCE.txt     where they are from, and their licence
"""

import argparse
import hashlib
import io
import lzma
import re
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ctxext.files import atomic_directory, write_text

DATABASE = "janeaustenr/data/Rdata.rdb"
"""The texts in the package: R's database of lazily loaded objects."""
TRAIN = {
    "emma": "7c67b5985c6d0de1efaeb5d342d52cb82c38083c40e2295129e30e87ee690ebe",
    "mansfield-park": "98bc90519cdf4ef663ad7de2734bb529435ef24f7abbde6bb1a50898871dafe9",
    "pride-and-prejudice": "dfc684d4f857fa938268f9ab9c5567b64bd0691251eca959644adeabe6287a4d",
}
HELD_OUT = {
    "northanger-abbey": "51f91bbe0517db8e65cff009b097ce0a1836124c4e0532ac19e6c0cad982abed",
    "persuasion": "8061549557aebd2fd6e353d18d9197cb707029112bd52d4d8b174583a925848a",
    "sense-and-sensibility": "105e1651fe93bed7130078578efd31e0c557d68667ba672ddc876f735b30fe09",
}
"""SHA-256 of each novel in UTF-8, a line end after every line."""
PART, LONG_PART = 75_000, 145_000
"""The least characters of a part; 4.0 are a token of SmolLM2."""
SOURCE = """\
The text of Jane Austen's six novels, which is in the public domain (she died in 1817), as the R
package janeaustenr 1.0.0 (Julia Silge, MIT licence) has it; unchanged, a file per novel or part.
"""
STRINGS, ONE_STRING = 16, 9
"""R's types of a vector of strings and of one string, in its serialization."""


def archive_members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of the members of an ar archive, which a .deb is.

    Raises ValueError for other data.
    """
    if not data.startswith(b"!<arch>\n"):
        raise ValueError("it is not a Debian package")
    at = 8
    while at + 60 <= len(data):
        name, size = data[at : at + 16].decode("latin-1"), data[at + 48 : at + 58].strip()
        if not size.isdigit():
            raise ValueError("it is a damaged Debian package; download it again")
        size = int(size)
        yield name.strip().rstrip("/"), data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def database_of(package: Path) -> bytes:
    """The database of texts in a .deb, or in a directory that holds what was in one.

    Raises ValueError if there is none.
    """
    if package.is_dir():
        found = [path for path in package.rglob("Rdata.rdb") if path.match(f"*/{DATABASE}")]
        if len(found) != 1:
            raise ValueError(f"it holds {len(found)} files {DATABASE}; give the one to read")
        return found[0].read_bytes()
    for name, data in archive_members(package.read_bytes()):
        if not name.startswith("data.tar"):
            continue
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as files:
                for member in files:
                    content = files.extractfile(member) if member.isfile() else None
                    if content is not None and member.name.endswith(DATABASE):
                        return content.read()
        except (tarfile.TarError, lzma.LZMAError, EOFError):
            raise ValueError(
                f"its {name} is damaged, or compressed as Python cannot read; unpack it with "
                "dpkg-deb -x and give the directory"
            ) from None
    raise ValueError(f"it has no {DATABASE}")


def objects(database: bytes) -> Iterator[bytes]:
    """Every object in a database of R: its size, and it compressed by zlib, one after another."""
    while database:
        (size,) = struct.unpack_from(">I", database)
        stream = zlib.decompressobj()
        data = stream.decompress(database[4:])
        if len(data) != size or not stream.eof:
            raise ValueError("an object in it is cut off")
        yield data
        database = stream.unused_data


def lines_of(data: bytes) -> list[str]:
    """A vector of strings from R's serialization, version 2 or 3 in XDR, without attributes."""
    (version,) = struct.unpack_from(">i", data, 2)
    at = 14
    if data[:2] != b"X\n" or version not in (2, 3):
        raise ValueError("an object in it is not in R's binary serialization")
    if version == 3:  # the name of the native encoding
        (length,) = struct.unpack_from(">i", data, at)
        at += 4 + length
    kind, count = struct.unpack_from(">ii", data, at)
    at += 8
    if kind != STRINGS:
        raise ValueError("an object in it is not a plain vector of strings")
    lines = []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", data, at)
        if flags & 255 != ONE_STRING or length < 0:
            raise ValueError("a line in it is missing")
        lines.append(data[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return lines


def novels(database: bytes) -> dict[str, str]:
    """The texts by their titles, as "mansfield-park", with a line end after every line.

    Raises ValueError for other data than R's database of them.
    """
    try:
        books = [lines_of(data) for data in objects(database)]
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"its {DATABASE} is damaged: {error}") from None
    return {
        lines[0].strip().lower().replace(" ", "-"): "".join(f"{line}\n" for line in lines)
        for lines in books
    }


def check(texts: dict[str, str]) -> None:
    """Raise ValueError for a novel that is missing or is not, to the letter, the expected one."""
    for name, expected in {**TRAIN, **HELD_OUT}.items():
        if name not in texts:
            raise ValueError(f"{name} is missing; it has {', '.join(sorted(texts)) or 'nothing'}")
        found = hashlib.sha256(texts[name].encode()).hexdigest()
        if found != expected:
            raise ValueError(
                f"{name} has SHA-256 {found[:16]}..., and not {expected[:16]}...: give "
                "janeaustenr 1.0.0 as it was published"
            )


def parts(text: str, least: int) -> list[str]:
    """The text cut before chapters, each part as short as can be with `least` characters.

    The last one takes what would be a shorter one.
    """
    cuts = [0]
    for chapter in re.finditer(r"^chapter\b", text, re.IGNORECASE | re.MULTILINE):
        start = chapter.start()
        if start - cuts[-1] >= least and len(text) - start >= least:
            cuts.append(start)
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def write(texts: dict[str, str], out: Path) -> dict[str, int]:
    """Write the directories; returns how many files each has."""
    counts = {"train": 0, "heldout": 0, "heldout-long": 0}
    with atomic_directory(out) as new:
        for folder in counts:
            (new / folder).mkdir()
        for name in TRAIN:
            write_text(new / "train" / f"{name}.txt", texts[name])
            counts["train"] += 1
        for name in HELD_OUT:
            for folder, least in (("heldout", PART), ("heldout-long", LONG_PART)):
                for number, part in enumerate(parts(texts[name], least), 1):
                    write_text(new / folder / f"{name}-{number:02}.txt", part)
                    counts[folder] += 1
        write_text(new / "SOURCE.txt", SOURCE)
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Write the texts of a package; 2 for what cannot be done, which one line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", type=Path, metavar="DEB|DIR", help="r-cran-janeaustenr 1.0.0.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/austen"), metavar="DIR", help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    try:
        texts = novels(database_of(args.package))
        check(texts)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {args.package}: {error}", file=sys.stderr)
        return 2
    try:
        counts = write(texts, args.out)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {', '.join(f'{n} files in {name}' for name, n in counts.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which files of text a path means."""

import collections
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ctxext.data.documents.kinds import SUFFIXES, kind_of, unknown_kind, without_compression
from ctxext.data.token_files import is_prepared
from ctxext.files import read_json, within

SAVED = "state.json"
SAVED_SPLITS = "dataset_dict.json"
"""By these files a saved dataset is recognized, and one of several splits."""
ABOUT_THE_DATA = re.compile(
    r"(readme|licen[sc]e|copying|notice|changelog|contributing|code_of_conduct|dataset_infos?)"
    r"([-_. ].*)?",
    re.IGNORECASE,
)
"""Names of what accompanies the data in a directory and is not part of it: README_zh.md too."""

SPLIT = re.compile(r"(?:^|/)(train|test|validation|valid|val|dev)(?=[-._/])")
"""The split of a file or a directory that is named after one, as datasets on the hub name them."""
INNER_SPLIT = re.compile(r"(?<=[-._])(train|test|validation|valid|val|dev)(?=[-._/])")
"""The same in the middle of a name, "wiki.train.txt", where it may mean something else."""


class Found(NamedTuple):
    """The files of a path by the names they are cited by, in order, and those that are not read."""

    root: Path
    files: dict[str, Path]
    ignored: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """A sentence about what is not read; empty if everything is."""
        if not self.ignored:
            return ""
        return f"{self.root}: not read are {summary(self.ignored)}"


def _splits(names: Iterable[str]) -> list[str]:
    """The splits of a dataset that files are named after; one or none is no reason to worry."""
    splits: set[str] = set()
    alike: dict[str, set[str]] = {}
    for name in map(str.lower, names):
        splits.update(SPLIT.findall(name))
        pattern = re.sub(r"\d+", "0", INNER_SPLIT.sub("*", name))
        alike.setdefault(pattern, set()).update(INNER_SPLIT.findall(name))
    for inner in alike.values():
        if len(inner) > 1:
            splits |= inner
    return sorted(splits)


def find_files(root: Path) -> Found:
    """The files of text that a file, a directory or a saved dataset means.

    In a directory, hidden files and files of other kinds are passed over; links are followed. A
    saved dataset is what `datasets.Dataset.save_to_disk` wrote. Raises ValueError if there is no
    such path, it cannot be read, it holds no text, several splits of a dataset, or a file both as
    it is and compressed.
    """
    if root.is_file():
        if kind_of(root) is None:
            raise ValueError(unknown_kind(root))
        return Found(root, {root.name: root})
    if not root.is_dir():
        if root.exists():
            raise ValueError(f"{root} is neither a file nor a directory: write its text to a file")
        reason = "is a link to nothing" if root.is_symlink() else "does not exist"
        raise ValueError(f"{root} {reason}: give a file or a directory of text")
    if is_prepared(root):
        raise ValueError(
            f"{root} holds tokens that `ctxext prepare` wrote, not text: train on it directly"
        )
    if saved := _saved_dataset(root):
        return Found(root, {path.relative_to(root).as_posix(): path for path in saved})
    files: dict[str, Path] = {}
    ignored: list[str] = []
    for path in _walk(root, ()):
        name = path.relative_to(root).as_posix()
        if kind_of(path) is None or accompanies_data(path):
            ignored.append(name)
        else:
            files[name] = path
    splits = _splits(files)
    if len(splits) > 1:
        raise ValueError(
            f"{root} holds several splits ({', '.join(splits)}): give the files or the directory "
            f"of one, such as {root / _of_split(splits, files)}"
        )
    _check_no_copies(root, files)
    if not files:
        held = f" but {summary(ignored)}" if ignored else ""
        raise ValueError(
            f"{root} holds no file that can be read{held}: give {', '.join(SUFFIXES)} files"
        )
    return Found(root, files, tuple(ignored))


def _of_split(splits: list[str], names: Iterable[str]) -> str:
    """A pattern for the files of one split, the one for training if it is among them."""
    split = "train" if "train" in splits else splits[0]
    name = next(name for name in names if split in name.lower())
    *directories, last = name.split("/")
    if split not in last.lower():  # a directory is called after it
        place = next(i for i, directory in enumerate(directories) if split in directory.lower())
        return "/".join(directories[: place + 1])
    start = last.lower().index(split)
    pattern = f"{'*' if start else ''}{last[start : start + len(split)]}*"
    return "/".join([*directories, pattern])


def patterns(root: Path, wanted: Sequence[str], others: Sequence[str]) -> str:
    """How to name files of a directory without the others: by `*.suffix` where that suffices."""

    def pattern(name: str) -> str:
        directory, slash, last = name.rpartition("/")
        return f"{directory}{slash}*{''.join(Path(last).suffixes)}"

    taken = {pattern(name) for name in others}
    named = [name if pattern(name) in taken else pattern(name) for name in wanted]
    distinct = [str(root / name) for name in dict.fromkeys(named)]
    more = f" and {len(distinct) - 3} more" if len(distinct) > 3 else ""
    return " ".join(distinct[:3]) + more


def _check_no_copies(root: Path, names: Iterable[str]) -> None:
    """Raise ValueError for two files whose names differ only in the compression."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(without_compression(name), name)
        if other != name:
            raise ValueError(
                f"{root} holds {other} and {name}, which are the same text twice by their names: "
                "move one of them away, or rename it if it is another text"
            )


def _walk(directory: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files in a directory and those in it, in order, without hidden ones.

    above: the real directories that led here, so that a link back to one of them is found.
    """
    real = directory.resolve()
    if real in above:
        raise ValueError(f"{directory} is a link to a directory that it is in: remove the link")
    if is_prepared(directory):
        raise ValueError(f"{directory} holds tokens, not text: move it to another place")
    if above and any((directory / name).is_file() for name in (SAVED, SAVED_SPLITS)):
        raise ValueError(f"{directory} is a saved dataset: name it alone, or move it")
    try:
        for path in sorted(directory.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from _walk(path, (*above, real))
            elif path.is_file():
                yield path
            else:
                raise ValueError(
                    f"{path} is a link to nothing, or not a regular file: remove or replace it"
                )
    except OSError as error:
        raise ValueError(f"{directory} cannot be read ({error.strerror})") from None


def _saved_dataset(root: Path) -> list[Path]:
    """The files of a saved dataset; empty for another directory.

    Raises ValueError for a dataset of several splits, or one that does not name its files.
    """
    if (root / SAVED_SPLITS).is_file():
        splits = sorted(path.parent for path in root.glob(f"*/{SAVED}"))
        raise ValueError(
            f"{root} holds several splits: choose one of {', '.join(map(str, splits))}"
        )
    state = root / SAVED
    if not state.is_file():
        return []
    try:  # other files next to those it names are a cache
        paths = [within(root, entry["filename"]) for entry in read_json(state)["_data_files"]]
    except (KeyError, TypeError):
        raise ValueError(f"{state} does not name the data files: save the dataset again") from None
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path} is missing, {state} names it: copy it again")
        if kind_of(path) is None:
            raise ValueError(unknown_kind(path))
    return paths


def accompanies_data(path: Path) -> bool:
    """Whether a file is passed over in a directory, by its name, as it is about the data there."""
    return ABOUT_THE_DATA.fullmatch(path.name) is not None


def summary(names: Sequence[str]) -> str:
    """Up to three names, or else how many files there are of each kind."""
    if len(names) <= 3:
        return ", ".join(names)
    counts = collections.Counter(Path(name).suffix or "no suffix" for name in names)
    kinds = [f"{suffix}: {count}" for suffix, count in counts.most_common(5)]
    rest = len(counts) - len(kinds)
    more = f" and {rest} other kinds" if rest else ""
    return f"{len(names):,} files ({', '.join(kinds)}{more})"

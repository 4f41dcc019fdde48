"""The upload of a publication by huggingface_hub (extra `hub`), in one commit.

The token is the library's own: HF_TOKEN, or what `hf auth login` has stored. It is never printed.
"""

import contextlib
import fnmatch
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ctxext.prove.file_digests import PROSE
from ctxext.publish.publication import Publication
from ctxext.terminal import raw_errors

DEFAULT_ENDPOINT = "https://huggingface.co"
ENDPOINT = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")
NOTHING = "nothing was changed there"
NOT_YET = (
    "nothing of it can be seen there yet, and weights that have arrived are not sent again: give "
    "the same command again"
)


class Uploaded(NamedTuple):
    """The address of the commit; False if the repository held the same files before."""

    url: str
    is_new: bool


def chosen_endpoint(endpoint: str | None) -> str:
    """The address to upload to: as given, by HF_ENDPOINT, or the hub's.

    Raises ValueError for anything but an address without a name and a password.
    """
    address = endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    if not ENDPOINT.fullmatch(address):
        raise ValueError(
            "the endpoint must be an address such as http://127.0.0.1:8080, without a user or a "
            "password in it: correct --endpoint, or HF_ENDPOINT"
        )
    return address.rstrip("/")


def upload(publication: Publication, *, endpoint: str | None = None, private: bool) -> Uploaded:
    """Create the repository unless it is there, and add all files in one commit.

    Raises ValueError if the repository has another visibility or holds files of another model, and,
    in one line with what is kept, for whatever goes wrong on the way. The export stays as it is.
    """
    address = chosen_endpoint(endpoint)
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError("publishing needs huggingface_hub: pip install 'ctxext[hub]'") from None
    api = huggingface_hub.HfApi(endpoint=address, library_name="ctxext")
    place = f"{publication.repo} at {address}"
    with _in_one_line(place, NOTHING):
        before = _existing(api, publication.repo)
    if before is None:
        with _in_one_line(place, "no repository was created"):
            api.create_repo(publication.repo, private=private)
    else:
        _check_repository(place, before, publication, private=private)
    operations = [
        huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=file)
        for name, file in publication.files.items()
    ]
    with _in_one_line(place, NOT_YET), raw_errors():  # its bars name no files
        commit = api.create_commit(
            publication.repo, operations, commit_message="A proven export of ctxext"
        )
    with _in_one_line(place, f"the commit is there, {commit.commit_url}, but was not checked"):
        after = api.model_info(publication.repo, revision=commit.oid, files_metadata=True)
    _check_arrived(place, after, publication)
    return Uploaded(commit.commit_url, before is None or before.sha != commit.oid)


def _existing(api: Any, repo: str) -> Any:
    """What the hub says of a repository; None if there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repo)
    except RepositoryNotFoundError as error:
        # Also the answer to a token that is not valid, which the creation then tells apart.
        if error.response.status_code not in (401, 404):
            raise
        return None


def _check_repository(place: str, info: Any, publication: Publication, *, private: bool) -> None:
    """Raise ValueError for another visibility, and for files that would be read with these."""
    if info.private is not None and info.private != private:
        is_now, option = ("private", "--private") if info.private else ("public", "--public")
        raise ValueError(
            f"{place} is there and is {is_now}; to upload to it give {option}, or change that on "
            f"its page; {NOTHING}"
        )
    others = sorted(
        sibling.rfilename
        for sibling in info.siblings or ()
        if sibling.rfilename not in publication.files and not _may_stay(sibling.rfilename)
    )
    if publication.source.is_file():  # quantizations of one model share a repository
        others = [name for name in others if not name.endswith((".gguf", ".proof.json"))]
    if others:
        raise ValueError(
            f"{place} holds {', '.join(others)}, which this export does not replace, so that its "
            f"readers would mix two models; remove that there, or choose another name; {NOTHING}"
        )


def _may_stay(name: str) -> bool:
    """Whether a file is hidden, or is for people."""
    return name.startswith(".") or any(fnmatch.fnmatch(name, pattern) for pattern in PROSE)


def _check_arrived(place: str, info: Any, publication: Publication) -> None:
    """Raise ValueError if the hub has other files than those that were checked here."""
    there = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    sizes = publication.sizes()
    wrong = []
    for name, size in sizes.items():
        file = there.get(name)
        digest = file.lfs.sha256 if file is not None and file.lfs is not None else None
        is_same_size = file is not None and file.size in (None, size)
        if not is_same_size or digest not in (None, publication.digests.get(name, digest)):
            wrong.append(name)
    if wrong:
        raise ValueError(
            f"{place} has not received {', '.join(wrong)} as proven; was something written to "
            f"{publication.source} meanwhile? remove the last commit there, and publish again"
        )


@contextlib.contextmanager
def _in_one_line(place: str, kept: str) -> Iterator[None]:
    """Turn an error of the library into one line that says what is kept.

    The library raises errors of its own, of httpx and of Rust, which have no common base.
    """
    try:
        yield
    except Exception as error:
        reason, advice = _reason(error), _advice(error)
        raise ValueError(
            f"{place}: {_without_token(reason)}; {kept}{advice}; the export is as it was"
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of an error, and of the one that caused it."""
    response = getattr(error, "response", None)
    if response is not None:
        said = getattr(error, "server_message", None) or response.reason_phrase
        return f"HTTP {response.status_code}, {' '.join(str(said).split())}"
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(".:") if lines else type(error).__name__
    cause = error.__cause__
    return f"{text} ({_reason(cause)})" if isinstance(error, RuntimeError) and cause else text


def _advice(error: BaseException) -> str:
    """What to do about a token that is missing, wrong or too weak, and about a missing Xet."""
    if "/xet-write-token/" in str(error):
        return "; if the server has no Xet, the hub's storage, set HF_HUB_DISABLE_XET=1"
    response = getattr(error, "response", None)
    if response is None or response.status_code not in (401, 403):
        return ""
    return "; log in with hf auth login, or set HF_TOKEN, to a token that may write there"


def _without_token(text: str) -> str:
    """The text without the token, should a server have repeated it."""
    import huggingface_hub

    try:
        token = huggingface_hub.get_token()
    except Exception:  # there is none to hide
        return text
    return text.replace(token, "***") if token else text

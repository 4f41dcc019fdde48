"""The Python standard library's own source: long documents without a download."""

import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self

from ctxext.data.corpus import Corpus
from ctxext.data.sources.base import TextSource
from ctxext.tokenization.protocol import TokenizerLike

# Files that exist in CPython 3.11 to 3.13 on every platform and in distributions that split the
# library into packages. The split is by file and fixed, so that nothing held out was ever trained
# on.
TRAIN = """
_collections_abc.py _compat_pickle.py _markupbase.py _osx_support.py _pydecimal.py _pyio.py
_strptime.py _threading_local.py ast.py asyncio/base_events.py asyncio/base_subprocess.py
asyncio/events.py asyncio/futures.py asyncio/locks.py asyncio/proactor_events.py asyncio/queues.py
asyncio/selector_events.py asyncio/sslproto.py asyncio/subprocess.py asyncio/taskgroups.py
asyncio/tasks.py asyncio/transports.py asyncio/unix_events.py asyncio/windows_events.py base64.py
bdb.py bz2.py calendar.py cmd.py code.py codecs.py collections/__init__.py compileall.py
concurrent/futures/_base.py concurrent/futures/process.py concurrent/futures/thread.py contextlib.py
copy.py copyreg.py csv.py ctypes/__init__.py ctypes/_aix.py ctypes/util.py dataclasses.py
dbm/dumb.py dis.py doctest.py email/_encoded_words.py email/_header_value_parser.py
email/_parseaddr.py email/_policybase.py email/charset.py email/contentmanager.py
email/feedparser.py email/generator.py email/header.py email/headerregistry.py email/policy.py
email/quoprimime.py email/utils.py enum.py filecmp.py fileinput.py ftplib.py functools.py getopt.py
gettext.py glob.py graphlib.py gzip.py hashlib.py hmac.py html/parser.py http/__init__.py
http/client.py http/cookies.py http/server.py imaplib.py importlib/_bootstrap.py
importlib/_bootstrap_external.py importlib/abc.py importlib/metadata/__init__.py importlib/util.py
inspect.py ipaddress.py json/__init__.py json/encoder.py locale.py logging/__init__.py
logging/config.py logging/handlers.py lzma.py mimetypes.py modulefinder.py
multiprocessing/connection.py multiprocessing/context.py multiprocessing/forkserver.py
multiprocessing/heap.py multiprocessing/managers.py multiprocessing/process.py
multiprocessing/queues.py multiprocessing/reduction.py multiprocessing/resource_tracker.py
multiprocessing/shared_memory.py multiprocessing/spawn.py multiprocessing/synchronize.py
multiprocessing/util.py ntpath.py numbers.py operator.py optparse.py os.py pdb.py pickle.py
pickletools.py pkgutil.py platform.py poplib.py posixpath.py pprint.py profile.py pstats.py
py_compile.py pyclbr.py pydoc.py queue.py quopri.py random.py re/__init__.py re/_compiler.py
re/_parser.py rlcompleter.py runpy.py selectors.py shelve.py shutil.py site.py socket.py
socketserver.py ssl.py statistics.py string.py subprocess.py symtable.py tabnanny.py tempfile.py
threading.py timeit.py tokenize.py traceback.py tracemalloc.py types.py typing.py unittest/case.py
unittest/loader.py unittest/main.py unittest/result.py unittest/runner.py unittest/suite.py
urllib/parse.py urllib/robotparser.py uuid.py warnings.py wave.py weakref.py webbrowser.py
wsgiref/handlers.py wsgiref/validate.py xml/dom/expatbuilder.py xml/dom/pulldom.py
xml/dom/xmlbuilder.py xml/etree/ElementPath.py xml/etree/ElementTree.py xml/sax/expatreader.py
xml/sax/handler.py xml/sax/saxutils.py xml/sax/xmlreader.py xmlrpc/client.py xmlrpc/server.py
zipapp.py zoneinfo/_zoneinfo.py
""".split()

# Several files over 75 kB (20,000 tokens and more) for evaluation in long contexts; the rest of all
# sizes.
HELDOUT = """
argparse.py asyncio/streams.py configparser.py difflib.py email/message.py fractions.py heapq.py
http/cookiejar.py json/decoder.py mailbox.py multiprocessing/pool.py plistlib.py shlex.py smtplib.py
tarfile.py textwrap.py tomllib/_parser.py trace.py unittest/mock.py urllib/request.py
xml/dom/minidom.py zipimport.py
""".split()

SPLITS = {"train": TRAIN, "heldout": HELDOUT}


@dataclass(frozen=True)
class Stdlib(TextSource):
    """The Python standard library's own source, split by file."""

    haystack_name: ClassVar[str | None] = "stdlib"
    split: Literal["train", "heldout"]
    """Which files: those for training, or those held out."""

    @classmethod
    def as_haystack(cls, name: str) -> Self:
        return cls("heldout")

    def content_sha256(self) -> str:
        """The hash of its files, which differ between versions of Python."""
        return _content_sha256(self.split)

    def held_out_parts(self, share: float) -> Iterator[TextSource]:
        if self.split == "train":
            yield Stdlib("heldout")

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        return _open(self.split, tokenizer)


@functools.cache
def _content_sha256(split: str) -> str:
    hashes = [(file.name, file.sha256) for file in stdlib_documents(split)]
    return hashlib.sha256(repr(hashes).encode()).hexdigest()


# Training text and the haystacks of several tasks are often the same 5 MB.
@functools.lru_cache(maxsize=4)
def _open(split: str, tokenizer: TokenizerLike) -> Corpus:
    files = stdlib_documents(split)
    hashes = {file.name: file.sha256 for file in files}
    return Corpus.from_texts((file.text for file in files), tokenizer, files=hashes)


class StdlibFile(NamedTuple):
    """A source file: its name in the library, its text and the sha256 of its bytes."""

    name: str
    text: str
    sha256: str


def stdlib_documents(split: str, root: Path | None = None) -> list[StdlibFile]:
    """The files of `split` ("train" or "heldout") in list order.

    Raises ValueError for another split or a missing file.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown stdlib split {split!r}: choose one of {', '.join(SPLITS)}")
    root = root or Path(sysconfig.get_path("stdlib"))
    files = []
    for name in SPLITS[split]:
        try:
            data = (root / name).read_bytes()
        except OSError as error:
            raise ValueError(
                f"standard library source {name} cannot be read in {root} ({error.strerror}): "
                "install a complete CPython 3.11 or newer, or train on your own text with "
                "Files(path)"
            ) from error
        files.append(StdlibFile(name, data.decode("utf-8"), hashlib.sha256(data).hexdigest()))
    return files

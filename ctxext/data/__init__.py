"""Training data: sources, the corpora they become, and batches that depend on (seed, step) only."""

from ctxext.data.batch import Batch, make_batch, prefetch
from ctxext.data.corpus import Corpus, Row, Rows
from ctxext.data.sources import (
    Files,
    HFDocuments,
    Mix,
    Prepared,
    Short,
    Source,
    Stdlib,
    Synthetic,
    TextOnDisk,
    TextSource,
    Upsampled,
    haystack,
    text_on_disk,
)
from ctxext.data.sources.stdlib import StdlibFile, stdlib_documents

__all__ = [
    "Batch",
    "Corpus",
    "Files",
    "HFDocuments",
    "Mix",
    "Prepared",
    "Row",
    "Rows",
    "Short",
    "Source",
    "Stdlib",
    "StdlibFile",
    "Synthetic",
    "TextOnDisk",
    "TextSource",
    "Upsampled",
    "haystack",
    "make_batch",
    "prefetch",
    "stdlib_documents",
    "text_on_disk",
]

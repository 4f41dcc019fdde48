"""What is trained on: sources, the token corpora they become, and batches that are a pure function of (seed, step)."""

from ctxext.data.batch import Batch, make_batch, prefetch
from ctxext.data.columnar import HFDocuments
from ctxext.data.corpus import Corpus, Row, Rows
from ctxext.data.source_names import haystack
from ctxext.data.sources import Files, Mix, Prepared, Short, Source, Stdlib, Synthetic, Upsampled
from ctxext.data.stdlib import Document, stdlib_documents

__all__ = [
    "Batch",
    "Corpus",
    "Document",
    "Files",
    "HFDocuments",
    "Mix",
    "Prepared",
    "Row",
    "Rows",
    "Short",
    "Source",
    "Stdlib",
    "Synthetic",
    "Upsampled",
    "haystack",
    "make_batch",
    "prefetch",
    "stdlib_documents",
]

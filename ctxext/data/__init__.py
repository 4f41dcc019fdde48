"""Training data: sources, the corpora they become, and batches that depend on (seed, step) only."""

from ctxext.data.batch import Batch as Batch
from ctxext.data.batch import make_batch as make_batch
from ctxext.data.batch import prefetch as prefetch
from ctxext.data.corpus import Corpus as Corpus
from ctxext.data.corpus import Row as Row
from ctxext.data.corpus import Rows as Rows
from ctxext.data.corpus import corpora as corpora
from ctxext.data.sources import Files as Files
from ctxext.data.sources import Mix as Mix
from ctxext.data.sources import OwnHeldOut as OwnHeldOut
from ctxext.data.sources import Prepared as Prepared
from ctxext.data.sources import Short as Short
from ctxext.data.sources import Source as Source
from ctxext.data.sources import Split as Split
from ctxext.data.sources import Stdlib as Stdlib
from ctxext.data.sources import Synthetic as Synthetic
from ctxext.data.sources import TextSource as TextSource
from ctxext.data.sources import Upsampled as Upsampled
from ctxext.data.sources import haystack as haystack
from ctxext.data.sources import text_on_disk as text_on_disk
from ctxext.data.sources.stdlib import stdlib_documents as stdlib_documents

"""Evaluations: each yields JSON rows from a language model; tables come from rows."""

from ctxext.evals.base import Eval as Eval
from ctxext.evals.expected import Expected as Expected
from ctxext.evals.longppl import LongPPL as LongPPL
from ctxext.evals.ppl import Perplexity as Perplexity
from ctxext.evals.protocols import passkey_protocol as passkey_protocol
from ctxext.evals.retrieval import Retrieval as Retrieval
from ctxext.evals.rolling import RollingPerplexity as RollingPerplexity
from ctxext.evals.ruler import ruler_exact as ruler_exact
from ctxext.evals.samples import Samples as Samples

"""Evaluations: each yields JSON rows from a language model; tables come from rows."""

from ctxext.evals.base import Eval as Eval
from ctxext.evals.ppl import Perplexity as Perplexity
from ctxext.evals.retrieval import Retrieval as Retrieval

"""Evaluations: each yields typed records from a language model; tables are made from records."""

from ctxext.evals.base import Eval as Eval
from ctxext.evals.base import evaluated_model as evaluated_model
from ctxext.evals.expected import Expected as Expected
from ctxext.evals.growing_window import GrowingWindow as GrowingWindow
from ctxext.evals.longppl import LongPPL as LongPPL
from ctxext.evals.perplexity import Perplexity as Perplexity
from ctxext.evals.published_passkeys import passkey_protocol as passkey_protocol
from ctxext.evals.record import EvalRecord as EvalRecord
from ctxext.evals.record import EvaluatedModel as EvaluatedModel
from ctxext.evals.recovery import Recovery as Recovery
from ctxext.evals.retrieval import Retrieval as Retrieval
from ctxext.evals.rolling_perplexity import RollingPerplexity as RollingPerplexity
from ctxext.evals.ruler import ruler_exact as ruler_exact
from ctxext.evals.ruler_samples import Samples as Samples

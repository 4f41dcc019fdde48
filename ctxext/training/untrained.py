"""What a training does not reach: contexts longer than its rows, or than the texts in them."""

from ctxext.data import Rows
from ctxext.experiment import Experiment
from ctxext.model.context import DeclaredContext
from ctxext.rope import RopeScaling


def beyond_rows(experiment: Experiment, context: DeclaredContext, scaling: RopeScaling) -> str:
    """A sentence if the result declares more context than is trained; empty if it does not.

    scaling: the one that is trained.
    """
    trained = experiment.trained_length
    declared = context.export_length(scaling, trained)
    if declared <= trained:
        return ""
    return (
        f"contexts of up to {trained:,} tokens are trained, and the model will declare "
        f"{declared:,}: beyond {trained:,} it relies on the method alone; --train.seq-len "
        f"{declared} trains all of them"
    )


def beyond_texts(experiment: Experiment, context: DeclaredContext, rows: Rows) -> str:
    """A sentence if no text of the data fills a row; empty if there is one.

    Texts that share a row do not see each other, so that their lengths are the contexts trained.
    """
    seq_len = experiment.train.seq_len
    longest = rows.longest_text(seq_len)
    if longest >= seq_len:
        return ""
    window = context.original
    no_more = f", not even those of {window:,} of pre-training" if longest < window else ""
    return (
        f"no text in the data fills a row of {seq_len:,} tokens, the longest has {longest:,}, and "
        f"texts do not see each other: longer contexts are not trained{no_more}; give longer texts"
    )

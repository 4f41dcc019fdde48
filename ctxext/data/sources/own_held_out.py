"""The held-out text of the run that an evaluation belongs to."""

from dataclasses import dataclass

from ctxext.data.corpus import Corpus
from ctxext.data.sources.base import TextSource
from ctxext.tokenization.protocol import TokenizerLike


@dataclass(frozen=True)
class OwnHeldOut(TextSource):
    """The documents of an experiment's own data that its training does not see.

    For `Perplexity` in the evaluations of an experiment, whatever its data is: a run puts the
    source of these documents in its place, and leaves the evaluation out, saying so, where there
    are none that are long enough.
    """

    def open(self, tokenizer: TokenizerLike) -> Corpus:
        raise ValueError(
            "the held-out text of a run is known to `ctxext run`; elsewhere name it: "
            'Split(Files("my-texts"), "heldout")'
        )

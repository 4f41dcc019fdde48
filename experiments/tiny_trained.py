"""Every frequency method on the bundled base after one short training at 4x, the demo's, and
plain fine-tuning.

    ctxext run experiments/tiny_trained.py                about half an hour on two cores
    ctxext run experiments/tiny_trained.py --seed 1       another seed, the same questions
    ctxext report RUN RUN RUN --seeds                     the runs of several seeds in one table

Sixty passkey questions at each of one, two and four windows. Without training, at more factors:
tiny_methods.py. LongRoPE and Custom are absent: their vectors come from a search, and none is
published for a base of this size. Results: experiments/LOG.md.
"""

import dataclasses

from ctxext.demo import BETA_FAST, PASSKEY
from ctxext.demo import experiment as demo
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import Experiment
from ctxext.methods import Yarn
from ctxext.model.config import LlamaConfig
from ctxext.rope import Unscaled
from tiny_methods import dynamic, static


def experiment(config: LlamaConfig) -> Experiment:
    """The comparison on a base with this window."""
    window = config.max_position_embeddings
    yarn = Yarn(4.0, beta_fast=BETA_FAST)
    lengths = (window, 2 * window, 4 * window)
    return dataclasses.replace(
        demo(config),
        name="tiny-trained",
        rope=yarn,
        zero_shot=(Unscaled(),),
        baselines=(
            Unscaled(),
            *(method for method in static(4.0, config) if method != yarn),
            *dynamic(),
        ),
        evals=(
            Retrieval(task=PASSKEY, seq_lens=lengths, n=12),
            Perplexity(seq_lens=lengths, target_tokens=window // 2),
        ),
        export=None,
    )

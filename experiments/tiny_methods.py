"""Every frequency method on the bundled base: zero-shot at 2x, 4x and 8x, and after the demo's
short training at 4x.

    ctxext run experiments/tiny_methods.py --train.steps 0    zero-shot only: minutes on two cores
    ctxext run experiments/tiny_methods.py                    and trained: half an hour
    ctxext run experiments/tiny_methods.py --seed 1           another seed, the same questions

Twenty passkey questions at each of one, two, four and eight windows. YaRN's ramp is that of
`demo.py` (beta_fast 8); beta_fast 32, the paper's, is included as well. ABF's theta is what
NTK-aware scaling would take it to, a little more. Results: experiments/LOG.md.
"""

import dataclasses

from ctxext.demo import BETA_FAST, PASSKEY
from ctxext.demo import experiment as demo
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import Experiment
from ctxext.methods import (
    ABF,
    NTK,
    DynamicLinear,
    DynamicNTK,
    DynamicYarn,
    Linear,
    Llama3,
    NTKByParts,
    PartNTK,
    PowerBasis,
    PRope,
    RevisedYarn,
    TruncatedBasis,
    Yarn,
)
from ctxext.model.config import LlamaConfig
from ctxext.rope import RopeScaling, Unscaled


def static(factor: float, config: LlamaConfig) -> tuple[RopeScaling, ...]:
    """One of each method that does not follow the length."""
    window, theta = config.max_position_embeddings, config.rope_theta
    return (
        Linear(factor),
        NTK(factor),
        ABF(theta * 1.25 * factor ** (config.head_dim / (config.head_dim - 2))),
        NTKByParts(factor, beta_fast=BETA_FAST),
        PartNTK(factor),
        Yarn(factor, beta_fast=BETA_FAST),
        Yarn(factor),
        RevisedYarn(factor, beta_fast=BETA_FAST),
        Llama3(factor),
        PowerBasis(factor, power=0.1),
        TruncatedBasis(factor, truncate_length=int(factor * window)),
        PRope(factor, partial_rotary_factor=0.75),
    )


def dynamic() -> tuple[RopeScaling, ...]:
    """The methods that follow the length of the text."""
    return DynamicLinear(), DynamicNTK(1.0), DynamicYarn(1.0, beta_fast=BETA_FAST)


def experiment(config: LlamaConfig) -> Experiment:
    """The comparison on a base with this window."""
    window = config.max_position_embeddings
    lengths = (window, 2 * window, 4 * window, 8 * window)
    at_4x = static(4.0, config)
    yarn = Yarn(4.0, beta_fast=BETA_FAST)
    return dataclasses.replace(
        demo(config),
        name="tiny-methods",
        rope=yarn,
        zero_shot=(Unscaled(), *dynamic(), *static(2.0, config), *at_4x, *static(8.0, config)),
        baselines=(Unscaled(), *(method for method in at_4x if method != yarn)),
        evals=(
            Retrieval(task=PASSKEY, seq_lens=lengths, n=4),
            Perplexity(seq_lens=lengths, target_tokens=window // 2),
        ),
        export=None,
    )

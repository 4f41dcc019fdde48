"""Every method on the bundled base without training: zero-shot at 2x, 4x and 8x.

    ctxext run experiments/tiny_methods.py --train.steps 0 --run-dir runs/tiny-methods
        zero-shot only; --dry-run says how long it takes
    python experiments/tables/tiny_methods.py runs/tiny-methods
        one table of it, with paired intervals and adjusted p-values

Without `--train.steps 0` the static frequencies for 4x are trained as well, by the demo's recipe;
tiny_trained.py does that for every method that trains. The run resumes by itself.

Twenty passkey questions at each of one, two, four and eight windows, the same for every method.
Fields are the papers' in proportion to the window L of 256 tokens: YaRN's ramp is that of `demo.py`
(beta_fast 8; 32, the paper's, is included as well), ABF's theta is what NTK-aware scaling would
take it to, a little more, and CoPE's 10 of 32 pairs are its 20 of 64. ReRoPE keeps L / 2 tokens,
DCA has chunks of 3 L / 4, STRING shifts from L / 3 on, Jet-Long keeps L / 16. Self-Extend's groups
and leaky ReRoPE's compression are twice the factor, so that no distance exceeds L. Scalable softmax
has s = 1 / ln L, which changes nothing at L. It, NoPE and ALiBi are meant to be trained, ALiBi from
the start; here they are not.

Absent: LongRoPE and Custom, whose vectors come from a search, and none is published for a base of
this size; S2-Attn, which is for training, in tiny_trained.py. Results: experiments/LOG.md.
"""

import dataclasses
import math

from ctxext.attention import Attention
from ctxext.demo import BETA_FAST, PASSKEY
from ctxext.demo import experiment as demo
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import Experiment
from ctxext.methods import (
    ABF,
    DCA,
    NTK,
    Alibi,
    CoPE,
    DynamicLinear,
    DynamicNTK,
    DynamicPartNTK,
    DynamicYarn,
    HardClip,
    JetLong,
    JetLongFreq,
    LeakyRerope,
    Linear,
    Llama3,
    Llama4Temperature,
    LMInfinite,
    LogTemperature,
    LongRope2,
    Ministral3Temperature,
    NoPE,
    NTKByParts,
    NTKMixed,
    PartNTK,
    PowerBasis,
    PRope,
    Rerope,
    Resonance,
    RevisedYarn,
    SelfExtend,
    Ssmax,
    StreamingLLM,
    String,
    TruncatedBasis,
    Yarn,
)
from ctxext.model.config import LlamaConfig
from ctxext.rope import RopeScaling, Unscaled

FACTORS = (2, 4, 8)


def static(factor: float, config: LlamaConfig) -> tuple[RopeScaling, ...]:
    """One of each method whose frequencies are the same for every text."""
    window, theta = config.max_position_embeddings, config.rope_theta
    yarn = Yarn(factor, beta_fast=BETA_FAST)
    num_slow_pairs = config.head_dim * 10 // 64
    return (
        Linear(factor),
        NTK(factor),
        ABF(theta * 1.25 * factor ** (config.head_dim / (config.head_dim - 2))),
        NTKByParts(factor, beta_fast=BETA_FAST),
        PartNTK(factor),
        yarn,
        Yarn(factor),
        RevisedYarn(factor, beta_fast=BETA_FAST),
        Llama3(factor),
        PowerBasis(factor, power=0.1),
        TruncatedBasis(factor, truncate_length=int(factor * window)),
        PRope(factor, partial_rotary_factor=0.75),
        NTKMixed(factor),
        CoPE(num_slow_pairs, inner=yarn),
        HardClip(num_slow_pairs, inner=yarn),
        Resonance(inner=yarn),
    )


def dynamic() -> tuple[RopeScaling, ...]:
    """The frequencies that follow the length of the text, and need no factor for it."""
    return (
        DynamicLinear(),
        DynamicNTK(1.0),
        DynamicPartNTK(),
        DynamicYarn(1.0, beta_fast=BETA_FAST),
    )


def attention(window: int) -> tuple[Attention, ...]:
    """One of each attention method that can be evaluated; those with a factor for each of them."""
    half = window // 2
    local = window // 4
    return (
        LMInfinite(window),
        StreamingLLM(window - 4),
        *(SelfExtend(2 * factor, local) for factor in FACTORS),
        Rerope(half),
        Rerope(half, training_length=window),
        *(LeakyRerope(half, 2 * factor) for factor in FACTORS),
        DCA(window * 3 // 4, window // 8),
        DCA(window * 3 // 4, window // 8, training_length=window),
        String(window // 3, window // 32),
        JetLong(window, window // 16),
        JetLongFreq(window, window // 16),
        LogTemperature(window),
        Llama4Temperature(window, layers="all"),
        Ministral3Temperature(window),
        Ssmax(s=1 / math.log(window)),
        Alibi(),
    )


def experiment(config: LlamaConfig) -> Experiment:
    """The comparison on a base with this window."""
    window = config.max_position_embeddings
    lengths = (window, *(factor * window for factor in FACTORS))
    frequencies: list[RopeScaling] = [Unscaled(), NoPE(), *dynamic()]
    for factor in FACTORS:
        frequencies += [*static(float(factor), config), LongRope2(float(factor))]
    yarn = Yarn(4.0, beta_fast=BETA_FAST)
    trained = [method for method in static(4.0, config) if method != yarn]
    return dataclasses.replace(
        demo(config),
        name="tiny-methods",
        rope=yarn,
        zero_shot=(*frequencies, *attention(window)),
        baselines=(Unscaled(), *trained),
        evals=(
            Retrieval(task=PASSKEY, seq_lens=lengths, n=4),
            Perplexity(seq_lens=lengths, target_tokens=window // 2),
        ),
        export=None,
    )

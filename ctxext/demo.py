"""The main job on a base of any size: four times the window, by four methods, with the controls that a claim needs.

    ctxext demo                                   the bundled base, about five minutes on two cores
    ctxext run experiments/demo.py --init DIR     the same on your checkpoint

No scaling, PI (arXiv 2306.15595), NTK-aware and YaRN (arXiv 2309.00071), each without training and after the same short
fine-tune: 48 steps of 4 rows of four windows, from the same seed. The question is passkey retrieval, which the
fine-tune never shows: its rows are text and key-value recall, so that passkeys were never trained beyond one window.
Files and questions are held out. Controls: the needle left out (what guessing gives), the haystack left out (what the
model can do at all), the base in its own window. YaRN's result is exported to PyTorch format and proven equal.
"""

from ctxext import tasks
from ctxext.config import LlamaConfig
from ctxext.data import Mix, Stdlib, Synthetic
from ctxext.evals import Passkey, Perplexity
from ctxext.experiment import BUNDLED, Experiment, Train
from ctxext.methods.linear import Linear
from ctxext.methods.ntk import NTK
from ctxext.methods.yarn import Yarn
from ctxext.optim import Optim
from ctxext.rope import Unscaled

FACTOR = 4


def experiment(config: LlamaConfig) -> Experiment:
    """The demo for a base with this window; lengths follow it."""
    window = config.max_position_embeddings
    lengths = tuple(window * times for times in range(1, FACTOR + 1))
    others = Unscaled(), Linear(float(FACTOR)), NTK(float(FACTOR))
    return Experiment(
        name="demo",
        init=BUNDLED,
        rope=Yarn(factor=float(FACTOR)),
        data=Mix(
            (
                (0.6, Stdlib("train")),
                (0.4, Synthetic(tasks.KeyValue())),
            )
        ),
        optim=Optim(learning_rate=5e-4 if window <= 512 else 2e-5, warmup_steps=5),
        train=Train(steps=48, seq_len=FACTOR * window, batch_size=4, checkpoint_every=48),
        evals=(
            Passkey(seq_lens=lengths, n=8),
            Passkey(seq_lens=(FACTOR * window,), n=4, condition="no-needle"),
            Passkey(seq_lens=(window,), n=4, condition="needle-only"),
            Perplexity(seq_lens=(window, 2 * window, FACTOR * window), target_tokens=window // 2),
        ),
        zero_shot=(*others, Yarn(float(FACTOR))),
        baselines=others,
    )

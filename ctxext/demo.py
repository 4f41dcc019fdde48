"""The main job on a base of any size: four times the window, zero-shot and after a short fine-tune.

    ctxext demo                                   the bundled base, a few minutes on two cores
    ctxext run experiments/demo.py --init DIR     the same on your checkpoint

Zero-shot: no scaling, PI (arXiv 2306.15595), NTK-aware and YaRN (arXiv 2309.00071), each at 1x, 2x and 4x the window.
Then YaRN is trained for 60 steps at 4x on the standard library's source mixed with retrieval rows, evaluated on files
and questions it never saw, exported to PyTorch format and proven equal.
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
    lengths = (window, 2 * window, FACTOR * window)
    return Experiment(
        name="demo",
        init=BUNDLED,
        rope=Yarn(factor=float(FACTOR)),
        data=Mix(
            (
                (0.6, Stdlib("train")),
                (0.2, Synthetic(tasks.Passkey())),
                (0.2, Synthetic(tasks.KeyValue())),
            )
        ),
        optim=Optim(learning_rate=5e-4 if window <= 512 else 2e-5, warmup_steps=5),
        train=Train(steps=60, seq_len=FACTOR * window, batch_size=4, checkpoint_every=30),
        evals=(
            Passkey(seq_lens=lengths, n=8),
            Perplexity(seq_lens=lengths, target_tokens=window // 2),
        ),
        zero_shot=(Unscaled(), Linear(float(FACTOR)), NTK(float(FACTOR)), Yarn(float(FACTOR))),
    )

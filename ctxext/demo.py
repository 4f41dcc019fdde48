"""The experiment of `ctxext demo`: four methods stretch the window of a base four times.

    ctxext demo                                   the bundled base, about five minutes on two cores
    ctxext run experiments/demo.py --init DIR     the same on your checkpoint

The methods are no scaling, PI (arXiv 2306.15595), NTK-aware and YaRN (arXiv 2309.00071). Each is
evaluated without training and after the same short fine-tune: 48 steps of 4 rows of four windows,
from the same seed. The rows are text, key-value recall over all four windows, and passkeys packed
in rows of one window, so that passkey retrieval, which is evaluated, is never trained beyond one
window. Files and questions are held out. The controls that a claim needs: the needle left out (the
rate of guessing), the haystack left out (what the model can do at all), and the base in its own
window. YaRN's result is exported to PyTorch format and proven equal.
"""

from ctxext import tasks
from ctxext.data import Mix, Short, Stdlib, Synthetic
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import BUNDLED, Experiment, Train
from ctxext.methods.linear import Linear
from ctxext.methods.ntk import NTK
from ctxext.methods.yarn import Yarn
from ctxext.model.config import LlamaConfig
from ctxext.optim import Optim
from ctxext.rope import Unscaled

PASSKEY = tasks.Passkey(wording="code")
PAIRS = tasks.KeyValue(wording="code")
"""In the wording that the bundled base was trained on: it knows nothing but Python source."""
FACTOR = 4
BETA_FAST = 8.0
"""YaRN's beta_fast for windows below 2,890 tokens, where no theta gives Llama 2's fraction of pairs
with more than 32 turns. On the bundled base 10 of 32 pairs turn more than 8 times, as 20 of 64 turn
more than 32 times in Llama 2."""


def experiment(config: LlamaConfig) -> Experiment:
    """The demo for a base; all lengths are multiples of its window."""
    window = config.max_position_embeddings
    lengths = tuple(window * times for times in range(1, FACTOR + 1))
    yarn = Yarn(float(FACTOR), beta_fast=BETA_FAST if window < 2890 else 32.0)
    others = Unscaled(), Linear(float(FACTOR)), NTK(float(FACTOR))
    return Experiment(
        name="demo",
        init=BUNDLED,
        rope=yarn,
        data=Mix(
            (
                (0.4, Stdlib("train")),
                (0.3, Synthetic(PAIRS)),
                (0.3, Short(Synthetic(PASSKEY), window)),
            )
        ),
        optim=Optim(
            learning_rate=7e-4 if window <= 512 else 2e-5, warmup_steps=5, schedule="linear"
        ),
        train=Train(steps=48, seq_len=FACTOR * window, batch_size=4, checkpoint_every=48),
        evals=(
            Retrieval(task=PASSKEY, seq_lens=lengths, n=12),
            Retrieval(task=PASSKEY, seq_lens=(FACTOR * window,), n=4, condition="no-needle"),
            Retrieval(task=PASSKEY, seq_lens=(window,), n=4, condition="needle-only"),
            Perplexity(
                seq_lens=(window, 2 * window, FACTOR * window),
                num_documents=16,
                target_tokens=window // 2,
            ),
        ),
        zero_shot=(*others, yarn),
        baselines=others,
    )

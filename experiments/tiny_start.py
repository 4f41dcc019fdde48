"""The first stage of the bundled base: retrieval rows of 64 tokens, where copying is learned before
distance.

    ctxext train experiments/tiny_start.py --run-dir runs/tiny-start

Rows of the full window from the start, with smaller initial weights, stayed at chance for 5 M
tokens (experiments/LOG.md). What follows is experiments/tiny_window.py.
"""

from ctxext import tasks
from ctxext.data import Mix, Synthetic
from ctxext.experiment import BUNDLED, Experiment, Train
from ctxext.optim import Optim
from tiny_window import model

experiment = Experiment(
    name="tiny-start",
    model=model,
    tokenizer=BUNDLED,
    data=Mix(
        (
            (0.45, Synthetic(tasks.KeyValue(wording="code"))),
            (0.35, Synthetic(tasks.Passkey(wording="code"))),
            (0.2, Synthetic(tasks.Repeat())),
        )
    ),
    optim=Optim(learning_rate=3e-3, warmup_steps=50, weight_decay=0.1),
    train=Train(steps=500, seq_len=64, batch_size=64, checkpoint_every=100),
    export=None,
)

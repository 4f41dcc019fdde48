"""Why the base loses near needles beyond its window: two trainings of equal budget that differ in theta alone.

    ctxext run experiments/tiny_near.py                   about half an hour on two cores

The bundled base, trained on by its own recipe: with its theta of 200, where 9 of 32 pairs never complete a turn in the
window, as 18 of 64 do in Llama 2, and with a theta of 40, where every pair does, so that beyond the window no pair
meets a phase that it never saw. Results: experiments/LOG.md.
"""

import dataclasses

from ctxext.evals import Passkey
from ctxext.experiment import BUNDLED, Train
from ctxext.methods import ABF
from ctxext.optim import Optim
from ctxext.rope import Unscaled
from tiny_base import DEPTHS
from tiny_base import experiment as base

experiment = dataclasses.replace(
    base,
    name="tiny-near",
    init=BUNDLED,
    rope=ABF(40.0),
    baselines=(Unscaled(),),
    optim=Optim(learning_rate=1.5e-3, warmup_steps=20, schedule="cosine", final_fraction=0.02, weight_decay=0.1),
    train=Train(steps=600, seq_len=256, batch_size=8, accumulate=4, checkpoint_every=100),
    evals=(Passkey(seq_lens=(256, 320, 512, 1024), depths=DEPTHS, n=20),),
    export=None,
)

"""Why the base loses near needles beyond its window: the same base with a theta under which every
pair turns.

    ctxext run experiments/tiny_near.py                   a quarter of an hour on two cores

With its theta of 200, 9 of 32 pairs never complete a turn in the window of 256 tokens, as 18 of 64
do in Llama 2. With 40 every pair does, so that beyond the window no pair meets a phase that it
never saw. The bundled base is trained on by its own recipe under this theta, and asked near and far
needles. Results: experiments/LOG.md.
"""

import dataclasses

from ctxext.evals import Retrieval
from ctxext.experiment import BUNDLED
from ctxext.methods import ABF
from tiny_base import DEPTHS, PASSKEY
from tiny_base import experiment as base

experiment = dataclasses.replace(
    base,
    name="tiny-near",
    init=BUNDLED,
    rope=ABF(40.0),
    train=dataclasses.replace(base.train, steps=600),
    evals=(Retrieval(task=PASSKEY, seq_lens=(256, 320, 512, 1024), depths=DEPTHS, n=20),),
    export=None,
)

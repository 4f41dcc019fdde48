"""The bundled base: a 1 M parameter Llama with a window of 256 tokens, trained from scratch on
Python's own library.

    python experiments/tiny_window.py
        the tokenizer: 1,024 BPE pieces, from the training files
    ctxext train experiments/tiny_start.py --run-dir runs/tiny-start
        rows of 64 tokens: copying is learned before distance
    ctxext train experiments/tiny_window.py --run-dir runs/tiny-window
        rows of the whole window
    ctxext run experiments/tiny_base.py --run-dir runs/tiny-base
        twice the tokens, with a falling learning rate

Each resumes by itself; the export of the last one is the bundled base. Data: standard-library
source (training files) and synthetic retrieval rows (key-value recall, passkeys, repeated text), so
that a base without any instruction can be asked; held-out files and fresh keys are never trained
on. Seed 0 throughout.

Geometry: heads of 64 and theta 200 in a window of 256, so that 9 of 32 pairs never complete a turn
in the window, as 18 of 64 do in Llama 2. The other end of YaRN's ramp cannot be like Llama 2's at
once: there 20 of 64 pairs turn more than 32 times in the window, here 2 of 32 do. Both at once need
theta >= 32^(1 / (1 - 18/64 - 20/64)), some 5,070, and a window of 2 pi 32 theta^(20/64), some 2,890
tokens: too long for two cores. What follows for hyperparameters: beta_fast = 32 leaves all but two
pairs to the ramp here; 20 of 64 pairs lie above the ramp with beta_fast near 8. Hardware: 2 shared
CPU cores, about 6, 37 and 60 minutes for the stages. Results: experiments/LOG.md.
"""

import dataclasses

from ctxext import tasks
from ctxext.data import Mix, Stdlib, Synthetic
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import Export, Train
from ctxext.optim import Optim
from tiny_window import experiment as window

PASSKEY = tasks.Passkey(wording="code")
DEPTHS = tuple(i / 8 for i in range(9))
experiment = dataclasses.replace(
    window,
    name="tiny-base",
    export=Export(dtype="bfloat16"),
    init="runs/tiny-window",
    data=Mix(
        (
            (0.3, Stdlib("train")),
            (0.25, Synthetic(tasks.KeyValue(wording="code"))),
            (0.35, Synthetic(PASSKEY)),
            (0.1, Synthetic(tasks.Repeat())),
        )
    ),
    optim=Optim(
        learning_rate=1.5e-3,
        warmup_steps=20,
        schedule="cosine",
        final_fraction=0.02,
        weight_decay=0.1,
    ),
    train=Train(steps=2800, seq_len=256, batch_size=8, accumulate=4, checkpoint_every=100),
    evals=(
        Retrieval(task=PASSKEY, seq_lens=(256,), depths=DEPTHS, n=45),
        Retrieval(
            seq_lens=(256,), depths=DEPTHS, n=45, task=tasks.KeyValue(num_pairs=4, wording="code")
        ),
        Retrieval(task=PASSKEY, seq_lens=(320, 512, 1024), depths=DEPTHS, n=20),
        Perplexity(seq_lens=(128, 256), target_tokens=64, num_windows=4),
    ),
)

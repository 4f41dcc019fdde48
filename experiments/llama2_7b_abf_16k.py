"""A larger RoPE base (ABF), Llama 2 7B, 4,096 -> 16,384 tokens: the long-context stage of Code
Llama (arXiv 2308.12950).

    ctxext run experiments/llama2_7b_abf_16k.py --init HF_DIR --data.path TEXT_DIR

Settings of the paper: rope_theta 1e6 in place of 1e4; rows of 16,384 tokens, 2 M tokens per step,
learning rate 2e-5; for the 7B model 3,000 of the 10,000 steps. Code Llama did that on code, to a
model already trained on code; this recipe does it to Llama 2 itself, on whatever long text DIR
holds. The warm-up is that of the other recipes.

Hardware: eight devices, 8 rows at a time. Time (an estimate; we have not run it): 6 x 6.74e9
parameters x 6.3e9 tokens = 2.5e20 FLOPs; at an assumed 40 % of 989 TFLOP/s (bfloat16, the rate of
an H100) 179 device hours.

Published: nothing for this base and text, so nothing is expected. Code Llama 7B itself has a
proof-pile perplexity of 3.71 at 8,192 and 2.74 at 32,768 (arXiv 2309.00071), another model's
number.
"""

import dataclasses

from ctxext.methods import ABF
from ctxext.rope import Unscaled
from llama2_7b_yarn_16k import experiment as yarn

experiment = dataclasses.replace(
    yarn,
    name="llama2-7b-abf-16k",
    rope=ABF(1e6),
    train=dataclasses.replace(yarn.train, steps=3000, accumulate=16),
    zero_shot=(Unscaled(), ABF(1e6)),
)

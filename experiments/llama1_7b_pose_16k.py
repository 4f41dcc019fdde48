"""PoSE over PI, LLaMA 1 7B, 2,048 -> 16,384 tokens at the cost of 2,048 (arXiv 2309.10400).

    ctxext run experiments/llama1_7b_pose_16k.py --init HF_DIR --data.path TEXT_DIR

Settings of the paper and its code: linear interpolation, rows of 2,048 tokens in two chunks whose
positions jump below 16,384; 1,000 steps of 64 rows, learning rate 2e-5 after 10 steps of warm-up,
linear to 0 (train_pose.py, DeepSpeed's WarmupDecayLR). The paper trains in float16 on the Pile.

Hardware: eight devices, 8 rows at a time. Time (an estimate; we have not run it): 6 x 6.74e9
parameters x 0.13e9 tokens = 5.3e18 FLOPs; at an assumed 40 % of 989 TFLOP/s (bfloat16, the rate of
an H100) 3.7 device hours.

Published, proof-pile perplexity, 50 documents of > 32,768 tokens, windows sliding by 1,024, at 2k /
4k / 8k / 16k: 2.95, 2.74, 2.61, 2.60; rows of full length train to 2.93, 2.71, 2.58, 2.53. "ppl:pi"
is that protocol; it reads the texts in ./proof-pile, cut at 32,768 tokens, as we understand
eval_ppl.py's options.
"""

import dataclasses

from ctxext.data import Files
from ctxext.evals import Expected, Retrieval, RollingPerplexity
from ctxext.methods import Linear, PoSE
from ctxext.model.config import SHAPES
from ctxext.optim import Optim
from ctxext.rope import Unscaled
from llama2_7b_yarn_8k import experiment as yarn

LENGTHS = (2048, 4096, 8192, 16384)
PUBLISHED = (2.95, 2.74, 2.61, 2.60)

experiment = dataclasses.replace(
    yarn,
    name="llama1-7b-pose-16k",
    model=SHAPES["llama1-7b"],
    rope=Linear(factor=8.0),
    positions=PoSE(16384),
    optim=Optim(learning_rate=2e-5, warmup_steps=10, schedule="linear"),
    train=dataclasses.replace(yarn.train, steps=1000, seq_len=2048),
    evals=(
        RollingPerplexity(
            LENGTHS,
            "pi",
            1024,
            num_documents=50,
            min_tokens=32768,
            max_tokens=32768,
            source=Files("proof-pile"),
        ),
        Retrieval(seq_lens=LENGTHS),
    ),
    expect=tuple(
        Expected(
            "ppl:pi",
            length,
            value,
            0.05,
            "PoSE 2k -> 16k, LLaMA 1 7B, proof-pile",
            "arXiv:2309.10400, table 1",
        )
        for length, value in zip(LENGTHS, PUBLISHED, strict=True)
    ),
    zero_shot=(Unscaled(), Linear(factor=8.0)),
)

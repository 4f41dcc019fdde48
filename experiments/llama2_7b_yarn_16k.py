"""YaRN, Llama 2 7B, 4,096 -> 16,384 tokens (arXiv 2309.00071): `llama2_7b_yarn_8k.py` with factor 4
and longer rows.

    ctxext run experiments/llama2_7b_yarn_16k.py --init HF_DIR --data.path TEXT_DIR

m = 0.1 ln 4 + 1 = 1.1386; 400 x 64 x 16,384 tokens are 0.42 B.

Hardware: eight devices; the compiler counts 36 GB each. Time (an estimate; we have not run it): 6 x
6.74e9 parameters x 0.42e9 tokens = 1.7e19 FLOPs; at an assumed 40 % of 989 TFLOP/s (bfloat16, the
rate of an H100) 12 device hours, plus attention, which the 6 N rule leaves out.

Published: the paper has no row for factor 4 of Llama 2 7B. The nearest are factor 16, trained at
64k, proof-pile perplexity 3.51 at 8,192 and 2.65 at 32,768 (ten documents of >= 128k tokens cut to
the window), and, by another group with one trainer for all (CLEX README: RedPajama-Book, trained at
16k), at 4k / 8k / 16k / 32k: YaRN s = 16 6.50, 5.71, 5.73, 5.99; PI 5.90, 5.71, 5.72, 6.05.
"""

import dataclasses

from ctxext.evals import Perplexity, Retrieval
from ctxext.methods import NTK, Linear, Yarn
from ctxext.rope import Unscaled
from llama2_7b_yarn_8k import experiment as yarn_8k

experiment = dataclasses.replace(
    yarn_8k,
    name="llama2-7b-yarn-16k",
    rope=Yarn(factor=4.0),
    train=dataclasses.replace(yarn_8k.train, seq_len=16384),
    evals=(Perplexity(seq_lens=(4096, 8192, 16384)), Retrieval(seq_lens=(4096, 8192, 16384))),
    expect=(),
    zero_shot=(Unscaled(), Linear(factor=4.0), NTK(factor=4.0), Yarn(factor=4.0)),
)

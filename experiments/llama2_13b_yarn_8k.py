"""YaRN, Llama 2 13B, 4,096 -> 8,192 tokens (arXiv 2309.00071): `llama2_7b_yarn_8k.py` on the 13B
model.

    ctxext run experiments/llama2_13b_yarn_8k.py --init HF_DIR --data.path TEXT_DIR

Hardware: eight devices of one machine; XLA for CPUs counts 47 GB per device for a step. Time (an
estimate; we have not run it): 6 x 13.0e9 parameters x 0.21e9 tokens = 1.6e19 FLOPs; at an assumed
40 % of 989 TFLOP/s (bfloat16, the rate of an H100) 11.5 device hours.

Published: the paper has no row for factor 2 of Llama 2 13B. Its larger factors, proof-pile
perplexity (ten documents of >= 128k tokens cut to the window) at 8,192 / 32,768: s = 16 3.25, 2.50;
s = 32 3.29, 2.53.
"""

import dataclasses

from ctxext.model.config import SHAPES
from llama2_7b_yarn_8k import experiment as yarn_7b

experiment = dataclasses.replace(
    yarn_7b, name="llama2-13b-yarn-8k", model=SHAPES["llama2-13b"], expect=()
)

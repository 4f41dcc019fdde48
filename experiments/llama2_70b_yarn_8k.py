"""YaRN, Llama 2 70B, 4,096 -> 8,192 tokens (arXiv 2309.00071): `llama2_7b_yarn_8k.py` on the 70B
model.

    ctxext run experiments/llama2_70b_yarn_8k.py --init HF_DIR --data.path TEXT_DIR

Hardware: eight devices of one machine; XLA for CPUs counts 208 GB per device for a step, so
devices of 288 GB (MI355X, B300); or four machines of eight H100, --mesh.fsdp 32
--train.batch-size 32 --train.accumulate 2. Time (an estimate; we have not run it): 6 x 69.0e9
parameters x 0.21e9 tokens = 8.7e19 FLOPs; at an assumed 40 % of 989 TFLOP/s (bfloat16, the rate
of an H100) 61 device hours.

Published: no row for factor 2 of Llama 2 70B. The authors' result file for their 70B at 32k,
proof-pile perplexity (ten documents of >= 128k tokens cut to the window): 2.9127 at 4,096, 2.8187
at 8,192, 2.4506 at 16,384, 2.2288 at 32,768; the base model 2.9571 at 4,096 and 56.10 at 8,192.
"""

import dataclasses

from ctxext.model.config import SHAPES
from llama2_7b_yarn_8k import experiment as yarn_7b

experiment = dataclasses.replace(
    yarn_7b, name="llama2-70b-yarn-8k", model=SHAPES["llama2-70b"], expect=()
)

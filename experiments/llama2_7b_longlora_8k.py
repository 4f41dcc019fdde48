"""LoRA with trained norms and embeddings, Llama 2 7B, 4,096 -> 8,192 tokens (LongLoRA, arXiv
2309.12307).

    ctxext run experiments/llama2_7b_longlora_8k.py --init HF_DIR --data.path TEXT_DIR

Settings of the paper: Position Interpolation with factor 2; adapters of rank 8 and alpha 16 without
dropout on q, k, v and o, every norm and the embedding fully trained; 1,000 steps of 64 rows,
learning rate 2e-5 after 20 steps of warm-up, AdamW (0.9, 0.95) without weight decay. The paper
trains with shifted sparse attention to save time and evaluates with full attention, as a run with
`--method s2-attn` does. This trains with full attention too, which the paper calls LoRA+, the
setting that S2-Attn approximates.

The trained part is 140 M parameters; the other 6.6 B are kept in bfloat16. A checkpoint is 1.7 GB.
Hardware: eight devices of one machine, 8 rows at a time (mesh.fsdp 8). Time (an estimate; we have
not run it): 4 x 6.74e9 parameters x 0.52e9 tokens = 1.4e19 FLOPs, because frozen kernels need no
weight gradient; at an assumed 40 % of 989 TFLOP/s (bfloat16, the rate of an H100) 9.9 device hours.

Published, Llama 2 7B at 8,192 tokens (README of LongQLoRA): PG19 validation / proof-pile perplexity
8.20 / 2.78 for LongLoRA with adapters, 7.93 / 2.73 for its full fine-tune. "ppl:longlora" is that
protocol; it reads the texts in ./proof-pile (its test split, 128 documents).
"""

import dataclasses

from ctxext.data import Files
from ctxext.evals import Expected, RollingPerplexity
from ctxext.model.trainable import LoRA
from llama2_7b_pi_8k import experiment as pi

experiment = dataclasses.replace(
    pi,
    name="llama2-7b-longlora-8k",
    trainable=LoRA(rank=8, alpha=16.0, modules_to_save=("norm", "embed_tokens")),
    evals=(
        *pi.evals[:2],
        RollingPerplexity((8192,), "longlora", num_documents=128, source=Files("proof-pile")),
    ),
    expect=(
        Expected(
            "ppl:longlora",
            8192,
            2.78,
            0.05,
            "LongLoRA, adapters, Llama 2 7B, proof-pile",
            "README of LongQLoRA",
        ),
    ),
)

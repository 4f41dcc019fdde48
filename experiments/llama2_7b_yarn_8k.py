"""YaRN, Llama 2 7B, 4,096 -> 8,192 tokens (arXiv 2309.00071).

    ctxext run experiments/llama2_7b_yarn_8k.py --init HF_DIR --data.path TEXT_DIR

Settings of the paper: factor 2, beta 32 / 1, m = 0.1 ln 2 + 1 = 1.0693; 400 steps, learning rate
2e-5 after 20 steps of warm-up, AdamW (0.9, 0.95) without weight decay, 64 rows per step. 400 x 64 x
8,192 tokens are 0.21 B; the paper states 0.4 B for this row and does not say where the difference
comes from. The paper trained on PG19 in rows of 64k; here the data is whatever long text TEXT_DIR
holds (.txt, .jsonl and others).

Hardware: eight devices of one machine, 8 rows at a time (mesh.fsdp 8: parameters, moments and
gradients are split in eight). XLA for CPUs counts 27 GB per device for a step. One device of 160
GB also works: --mesh.fsdp 1 --train.batch-size 1 --train.accumulate 64. The base is kept next to
the trained copy, 4 more bytes per parameter. Time (an estimate; we have not run it): 6 x 6.74e9
parameters x 0.21e9 tokens = 8.5e18 FLOPs; at an assumed 40 % of 989 TFLOP/s (bfloat16, the rate of
an H100) 6 device hours, plus evaluations.

Published, proof-pile perplexity (ten documents of >= 128k tokens cut to the window; paper, table of
s = 2):

    window           2,048   4,096   6,144   8,192   10,240
    YaRN s = 2        3.91    3.50    3.51    3.35     6.04
    PI s = 2          3.92    3.51    3.51    3.34     8.07
    NTK theta 20k     4.20    3.75    3.74    3.59     6.24

The evaluation "ppl:truncate" follows that protocol, and its 8,192 column is expected below; it
reads the texts in ./proof-pile, ten documents of at least 131,072 tokens. Compare the other
evaluations (the same targets with growing context, on other text) with each other, not with this
table.
"""

from ctxext.data import Files
from ctxext.evals import Expected, Perplexity, Retrieval, RollingPerplexity
from ctxext.experiment import Experiment, Train
from ctxext.methods import NTK, Linear, Yarn
from ctxext.model.config import SHAPES
from ctxext.optim import Optim
from ctxext.parallel.mesh import Mesh
from ctxext.rope import Unscaled

TABLE = "arXiv:2309.00071, table of s = 2"


def proof_pile(*seq_lens: int) -> RollingPerplexity:
    """Ten documents cut to the window, the protocol of the YaRN paper's tables."""
    return RollingPerplexity(
        seq_lens, "truncate", num_documents=10, min_tokens=131072, source=Files("proof-pile")
    )


experiment = Experiment(
    name="llama2-7b-yarn-8k",
    # The shape that --init is expected to have, and what --dry-run counts.
    model=SHAPES["llama2-7b"],
    data=Files("long-text"),
    rope=Yarn(factor=2.0),
    optim=Optim(learning_rate=2e-5, warmup_steps=20),
    train=Train(
        steps=400,
        seq_len=8192,
        batch_size=8,
        accumulate=8,
        dtype="bfloat16",
        remat="full",
        checkpoint_every=100,
    ),
    mesh=Mesh(fsdp=8),
    evals=(
        Perplexity(seq_lens=(2048, 4096, 8192)),
        Retrieval(seq_lens=(2048, 4096, 8192)),
        proof_pile(2048, 4096, 8192),
    ),
    expect=(
        Expected("ppl:truncate", 8192, 3.35, 0.05, "YaRN s = 2, Llama 2 7B, proof-pile", TABLE),
    ),
    zero_shot=(Unscaled(), Linear(factor=2.0), NTK(factor=2.0), Yarn(factor=2.0)),
)

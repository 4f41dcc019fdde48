"""ProLong's first stage, Llama 3 8B, 8,192 -> 65,536 tokens (arXiv 2410.02660).

    ctxext run experiments/llama3_8b_prolong_64k.py --init HF_DIR

Settings of the released code: rope_theta 8e6 in place of 5e5; 5,000 steps of 4 M tokens in rows of
65,536, documents masked from one another; learning rate 1e-5 after 500 steps of warm-up, cosine to
a tenth. 60 % of the tokens are long (30 % whole code repositories, 30 % books), 40 % a short
mixture, each read from a local directory of text files of that name. The released run starts from
the instruction-tuned model.

Hardware: 32 devices, 4 of them along a row (mesh.fsdp 8, mesh.seq 4). Time (an estimate; we have
not run it): 6 x 8.03e9 parameters x 21e9 tokens = 1.0e21 FLOPs; at an assumed 40 % of 989 TFLOP/s
(bfloat16, the rate of an H100) 709 device hours, plus attention, which the 6 N rule leaves out.

Published: task averages of the later stages, which this recipe does not measure, so nothing is
expected.
"""

import dataclasses

from ctxext.data import Files, Mix
from ctxext.evals import Perplexity, Retrieval
from ctxext.methods import ABF
from ctxext.model.config import SHAPES
from ctxext.optim import Optim
from ctxext.parallel.mesh import Mesh
from ctxext.rope import Unscaled
from llama2_7b_yarn_8k import experiment as yarn

LENGTHS = (8192, 16384, 32768, 65536)

experiment = dataclasses.replace(
    yarn,
    name="llama3-8b-prolong-64k",
    model=SHAPES["llama3-8b"],
    data=Mix(((0.3, Files("code-repositories")), (0.3, Files("books")), (0.4, Files("short")))),
    rope=ABF(8e6),
    optim=Optim(learning_rate=1e-5, warmup_steps=500, schedule="cosine", final_fraction=0.1),
    mesh=Mesh(fsdp=8, seq=4),
    train=dataclasses.replace(yarn.train, steps=5000, seq_len=65536, kernel="auto"),
    evals=(Perplexity(seq_lens=LENGTHS), Retrieval(seq_lens=LENGTHS)),
    expect=(),
    zero_shot=(Unscaled(), ABF(8e6)),
)

"""Your checkpoint, your text, twice the context: YaRN by a short fine-tune, compared with the base
and zero-shot YaRN.

    ctxext run experiments/extend.py --init HF_DIR --data.path TEXTS_OR_PREPARED_TOKENS

100 steps of 16 rows of two windows, learning rate 2e-5, rematerialised; all lengths follow the
window L of the checkpoint. Before the first step and every 20 steps, 10 passkeys and the loss of
four held-out documents, at one and two windows, show whether the reach still grows; that takes
about 1 % of the operations. A model that was extended before, such as Llama 3.1, gets twice what it
declares; the factor counts from its window of pre-training and is larger. The text is yours (files
of text, or what `ctxext prepare` wrote), and one document in a hundred is held out of training;
"ppl:own" is the perplexity of these, where some are long enough. The questions and "ppl" use other
text that it is not trained on, the Python standard library's. Other lengths are options:
--rope.factor 4 --train.seq-len 16384 --evals.seq-lens 4096 16384; adapters instead of all
parameters: --method lora --optim.learning-rate 2e-4 (adapters hardly change at 2e-5).

To see on CPUs, in minutes, that all stages work with your checkpoint and your text, in a run that
is too short to teach or to show anything (SmolLM2-135M on two cores: an estimated 5 minutes; it
took 13 next to other jobs, at a load of 15):

    ctxext run experiments/extend.py --init HF_DIR --data.path TEXTS --run-dir runs/rehearsal
        --train.seq-len 512 --train.steps 2 --train.accumulate 1 --optim.warmup-steps 1
        --train.eval-every 0 --train.monitor-every 0 --evals.seq-lens 512 --budget 5

For Llama 2 7B (L = 4,096): 100 x 16 x 8,192 tokens are 13 M; with Adam in float32 it wants eight
devices of 80 GB (--mesh.fsdp 8 --train.batch-size 8 --train.accumulate 2), as adapters one (`ctxext
plan` counts it). Time (an estimate; not run here): 6 x 6.74e9 parameters x 13e6 tokens = 5.3e17
FLOPs, 0.4 device hours at an assumed 40 % of 989 TFLOP/s (bfloat16, the rate of an H100), plus
evaluations.

Nothing is expected: no paper has this number for your text.
"""

from ctxext.data import Files, OwnHeldOut
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import BUNDLED, Experiment, Train
from ctxext.methods import Yarn
from ctxext.model.config import LlamaConfig
from ctxext.optim import Optim
from ctxext.rope import Unscaled

FACTOR = 2


def experiment(config: LlamaConfig, declared: int) -> Experiment:
    """For a base with this window of pre-training, and with this context as it is."""
    window = config.max_position_embeddings
    target = FACTOR * declared
    lengths = tuple(sorted({window, declared, target}))
    yarn = Yarn(target / window)
    return Experiment(
        name="extend",
        init=BUNDLED,
        rope=yarn,
        data=Files("my-texts"),
        optim=Optim(learning_rate=2e-5, warmup_steps=10, schedule="linear"),
        train=Train(
            steps=100,
            seq_len=target,
            batch_size=1,
            accumulate=16,
            remat="full",
            monitor_every=20,
            eval_every=20,
            checkpoint_every=100,
        ),
        evals=(
            Retrieval(seq_lens=lengths, n=12),
            Retrieval(seq_lens=(window,), n=4, condition="needle-only"),
            Perplexity(seq_lens=lengths, target_tokens=min(128, window // 2)),
            Perplexity(
                seq_lens=lengths,
                target_tokens=min(128, window // 2),
                source=OwnHeldOut(),
                label="own",
            ),
        ),
        zero_shot=(Unscaled(), yarn),
    )

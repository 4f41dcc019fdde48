"""Every method on a real pretrained model, SmolLM2-135M-Instruct, at two and four windows.

    ctxext sweep experiments/smollm2_study.py --init smollm2 --out runs/study --trials 'zero-shot-*'
        a stage; it resumes by itself, and --dry-run says how long it takes
    ctxext run experiments/smollm2_study.py --init smollm2 --trial far-pi --run-dir runs/far-pi
        one trial of it
    python experiments/tables/smollm2_study.py runs/study
        the tables of the finished trials
    ctxext sweep experiments/smollm2_study.py --out runs/smoke
        the same trials at a scale of seconds, on the bundled model

The protocol, the texts and how to get them, n, tests and results: docs/study.md.

Trials are `zero-shot-METHOD`, the methods without training at two windows; `trained-METHOD-SEED`,
some of them after one short training, three seeds; `far-METHOD`, without training at four windows.
All lengths and the fields of methods follow the window L of the base. ReRoPE keeps L / 2 tokens,
DCA has chunks of 3 L / 4, STRING shifts from L / 3 on, Jet-Long keeps L / 16, CoPE slows the 10 of
32 pairs that are the paper's 20 of 64; Self-Extend's groups are twice the factor, so that no
distance exceeds L. A base whose window is below 2,048 tokens gets the smoke scale: one text per
cell, two documents, two steps of training. Any text will do for it.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ctxext.attention import Attention
from ctxext.data import Files, Mix, Short, Source, Stdlib
from ctxext.evals import Eval, GrowingWindow, Perplexity, Retrieval
from ctxext.experiment import BUNDLED, Experiment, Train
from ctxext.losses import CrossEntropy, LongCE, Loss
from ctxext.methods import (
    DCA,
    NTK,
    CoPE,
    DynamicNTK,
    DynamicYarn,
    JetLong,
    Linear,
    Llama3,
    LMInfinite,
    LogTemperature,
    LongRope2,
    NTKByParts,
    Rerope,
    SelfExtend,
    StreamingLLM,
    String,
    Yarn,
)
from ctxext.model.config import LlamaConfig
from ctxext.model.trainable import LoRA
from ctxext.optim import Optim
from ctxext.rope import RopeScaling, Unscaled
from ctxext.tasks import Niah, Passkey

TEXTS = "runs/austen"
"""What experiments/texts/austen.py wrote."""
PARTS = ("train", "heldout", "heldout-long")
"""Its directories."""
HOW_TO_GET_THEM = (
    "apt-get download r-cran-janeaustenr && python experiments/texts/austen.py "
    f"r-cran-janeaustenr_1.0.0-1_all.deb --out {TEXTS}"
)
SEEDS = (0, 1, 2)
SMALL_WINDOW = 2048
"""Windows below this many tokens get the smoke scale."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is asked and trained."""

    texts: int
    """Texts per retrieval task and length."""
    questions: int
    """Questions about each of them."""
    control_texts: int
    """Texts per length of which a control is asked."""
    documents: int
    """Documents whose loss is measured."""
    long_documents: int
    """The same at four windows."""
    steps: int
    """Steps of training, each of one row of two windows."""


FULL = Scale(texts=12, questions=6, control_texts=3, documents=12, long_documents=8, steps=24)
SMOKE = Scale(texts=1, questions=2, control_texts=1, documents=2, long_documents=2, steps=2)


def scale_for(window: int) -> Scale:
    """The scale for a base with this window."""
    return SMOKE if window < SMALL_WINDOW else FULL


def frequencies(factor: float, config: LlamaConfig) -> dict[str, RopeScaling]:
    """The methods that change frequencies, by name."""
    yarn = Yarn(factor)
    return {
        "none": Unscaled(),
        "pi": Linear(factor),
        "ntk": NTK(factor),
        "ntk-by-parts": NTKByParts(factor),
        "yarn": yarn,
        "dynamic-ntk": DynamicNTK(1.0),
        "dynamic-yarn": DynamicYarn(1.0),
        "llama3": Llama3(factor),
        "cope": CoPE(config.head_dim * 10 // 64, inner=yarn),
        "long-rope2": LongRope2(factor),
    }


def attention(factor: float, window: int) -> dict[str, Attention]:
    """The methods that change attention, by name."""
    return {
        "self-extend": SelfExtend(2 * int(factor), window // 4),
        "dca": DCA(window * 3 // 4, window // 8),
        "rerope": Rerope(window // 2),
        "streaming-llm": StreamingLLM(window - 4),
        "lm-infinite": LMInfinite(window),
        "string": String(window // 3, window // 32),
        "jet-long": JetLong(window, window // 16),
        "log-temperature": LogTemperature(window),
    }


def retrieval(lengths: tuple[int, ...], scale: Scale) -> tuple[Eval, ...]:
    """Six questions about each text, one in each sixth of it, and the controls."""
    share = 1 / scale.questions
    passkey = Retrieval(
        seq_lens=lengths,
        depths=tuple(share * (i + 0.5) for i in range(scale.questions)),
        n=scale.texts,
        task=Passkey(),
        source=Files(f"{TEXTS}/heldout"),
        shared_context=True,
        jitter=share / 2,
    )
    shortest = lengths[:1]
    return (
        passkey,
        dataclasses.replace(passkey, task=Niah()),
        dataclasses.replace(passkey, condition="no-needle", n=scale.control_texts),
        dataclasses.replace(
            passkey, condition="needle-only", seq_lens=shortest, n=scale.control_texts
        ),
    )


def evaluations(window: int) -> tuple[Eval, ...]:
    """The same for every trial at two windows, trained or not."""
    scale = scale_for(window)
    short = Perplexity(
        seq_lens=(window // 4,),
        num_documents=scale.documents,
        target_tokens=window // 8,
        source=Files(f"{TEXTS}/heldout"),
    )
    return (
        GrowingWindow(
            seq_lens=(2 * window,),
            num_documents=scale.documents,
            source=Files(f"{TEXTS}/heldout"),
        ),
        *retrieval((window, 2 * window), scale),
        short,
        dataclasses.replace(short, source=Stdlib("heldout")),
    )


def far_evaluations(window: int) -> tuple[Eval, ...]:
    """Those at four windows: the loss by position, and passkeys."""
    scale = scale_for(window)
    passkey, _, no_needle, _ = retrieval((4 * window,), scale)
    books = GrowingWindow(
        seq_lens=(4 * window,),
        num_documents=scale.long_documents,
        source=Files(f"{TEXTS}/heldout-long"),
    )
    return books, passkey, no_needle


def base(config: LlamaConfig) -> Experiment:
    """What all trials have in common."""
    window = config.max_position_embeddings
    novels = Files(f"{TEXTS}/train")
    data: Source = Mix(((0.75, novels), (0.25, Short(novels, window))))
    return Experiment(
        name="zero-shot-none",
        init=BUNDLED,
        rope=Unscaled(),
        data=data,
        optim=Optim(learning_rate=2e-4, warmup_steps=2, schedule="linear"),
        train=Train(
            steps=0,
            seq_len=2 * window,
            batch_size=1,
            held_out=0.0,
            remat="full",
            log_every=1,
            checkpoint_every=4,
            keep=1,
            monitor_every=0,
        ),
        trainable=LoRA(rank=8, alpha=16.0, modules_to_save=("norm",)),
        evals=evaluations(window),
        export=None,
    )


def zero_shot(stage: str, factor: float, config: LlamaConfig) -> Iterator[Experiment]:
    """Every method without training, named `STAGE-METHOD`."""
    one = base(config)
    for name, rope in frequencies(factor, config).items():
        yield dataclasses.replace(one, name=f"{stage}-{name}", rope=rope)
    for name, method in attention(factor, config.max_position_embeddings).items():
        yield dataclasses.replace(one, name=f"{stage}-{name}", rope=None, attention=method)


def trainings(config: LlamaConfig) -> dict[str, tuple[RopeScaling, Loss]]:
    """Frequencies and loss of each training, by name."""
    window = config.max_position_embeddings
    of = frequencies(2.0, config)
    plain = CrossEntropy()
    return {
        **{name: (of[name], plain) for name in ("none", "pi", "ntk", "yarn", "cope", "long-rope2")},
        "long-ce": (of["yarn"], LongCE(window, window // 4)),
    }


def trained(seed: int, config: LlamaConfig) -> Iterator[Experiment]:
    """Every training with one seed.

    LongRoPE2 trains both of its lists of frequencies, each document with that of its length.
    """
    one = base(config)
    steps = scale_for(config.max_position_embeddings).steps
    for name, (rope, loss) in trainings(config).items():
        train = dataclasses.replace(
            one.train,
            steps=steps,
            rope_length="document" if name == "long-rope2" else "batch",
        )
        yield dataclasses.replace(
            one, name=f"trained-{name}-{seed}", rope=rope, loss=loss, train=train, seed=seed
        )


def check_texts() -> None:
    """Raise ValueError, with the command that gets them, for texts that are not there."""
    missing = [part for part in PARTS if not (Path(TEXTS) / part).is_dir()]
    if missing:
        raise ValueError(
            f"the texts of this study are not in {TEXTS} ({', '.join(missing)}): {HOW_TO_GET_THEM}"
        )


def experiment(config: LlamaConfig) -> Experiment:
    """The first trial, the base as it is. Raises ValueError without the texts."""
    check_texts()
    return base(config)


def sweep(config: LlamaConfig) -> Iterator[Experiment]:
    """Every stage, the one with the most to say first. Raises ValueError without the texts."""
    check_texts()
    yield from zero_shot("zero-shot", 2.0, config)
    for seed in SEEDS:
        yield from trained(seed, config)
    window = config.max_position_embeddings
    for one in zero_shot("far", 4.0, config):
        train = dataclasses.replace(one.train, seq_len=4 * window)
        yield dataclasses.replace(one, train=train, evals=far_evaluations(window))

"""Every method that trains, on the bundled base after one short training at 4x, the demo's, and
plain fine-tuning.

    ctxext sweep experiments/tiny_trained.py --out runs/tiny-trained
        everything with three seeds; it resumes by itself, and --dry-run says how long it takes
    python experiments/tables/tiny_methods.py runs/tiny-trained/*-?
        one table of it, with paired intervals and adjusted p-values
    ctxext run experiments/tiny_trained.py --seed 1
        the frequencies alone, with one seed
    ctxext report runs/tiny-trained/frequencies-? --seeds
        their table over the seeds

Trials are `frequencies-SEED`, which trains every scaling one after the other, and one per other
method and seed, such as `cream-0`, all under YaRN unless said otherwise:

* long-rope2: each document of a batch with the frequencies of its length.
* nope: no rotation, in rows of one window, as DroPE recalibrates.
* ssmax: scalable softmax with s = 1 / ln L, which changes nothing at the window L.
* s2-attn: groups of one window, T / 4, in training; asked with full attention, as in the paper.
* pose, cream, long-recipe, rand-pos, random-gaps: rows of one window at positions of four.
* long-ce (short contexts of one window, K = L and I = L / 4 as in the paper), long-red.

As many tokens and steps for each: 48 steps of 4 rows of four windows, or of 16 rows of one. Sixty
passkey questions at each of one, two and four windows, the same for every method and seed. Without
training, at more factors, and why some methods are absent: tiny_methods.py. CREAM is as LongReD has
it, with contiguous text and a mean of 1 + f: to take tokens out of a longer text would tear the
synthetic rows apart. LongRecipe's sentences are lines. Results: experiments/LOG.md.
"""

import dataclasses
import math
from collections.abc import Iterator

from ctxext.demo import BETA_FAST, PASSKEY
from ctxext.demo import experiment as demo
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import Experiment
from ctxext.losses import LongCE, LongRed
from ctxext.methods import (
    CREAM,
    LongRecipe,
    LongRope2,
    NoPE,
    PoSE,
    RandomGaps,
    RandPos,
    S2Attn,
    Ssmax,
    Yarn,
)
from ctxext.model.config import LlamaConfig
from ctxext.positions import Positions
from ctxext.rope import Unscaled
from tiny_methods import dynamic, static

SEEDS = (0, 1, 2)
NEWLINE = 13
"""Its byte in the vocabulary of the bundled base, the only token that ends a line."""


def experiment(config: LlamaConfig) -> Experiment:
    """The frequencies, on a base with this window."""
    window = config.max_position_embeddings
    yarn = Yarn(4.0, beta_fast=BETA_FAST)
    lengths = (window, 2 * window, 4 * window)
    return dataclasses.replace(
        demo(config),
        name="tiny-trained",
        rope=yarn,
        zero_shot=(Unscaled(), yarn),
        baselines=(
            Unscaled(),
            *(method for method in static(4.0, config) if method != yarn),
            *dynamic(),
        ),
        evals=(
            Retrieval(task=PASSKEY, seq_lens=lengths, n=12),
            Perplexity(seq_lens=lengths, target_tokens=window // 2),
        ),
        export=None,
    )


def rows_of_one_window(full: Experiment, window: int) -> Experiment:
    """The same training in rows of one window, with as many tokens in each step."""
    rows = full.train.seq_len // window * full.train.batch_size
    train = dataclasses.replace(full.train, seq_len=window, batch_size=rows)
    return dataclasses.replace(full, train=train)


def positions(window: int) -> dict[str, Positions]:
    """One of each method that trains four windows in rows of one."""
    reach = 4 * window
    return {
        "pose": PoSE(reach),
        "cream": CREAM(reach, mean=1.0 + reach // window, deviation=5.0, text="row"),
        "long-recipe": LongRecipe(reach, separators=(NEWLINE,)),
        "rand-pos": RandPos(reach),
        "random-gaps": RandomGaps(reach),
    }


def one_by_one(config: LlamaConfig) -> dict[str, Experiment]:
    """The methods other than frequencies, each by itself, by name."""
    window = config.max_position_embeddings
    full = dataclasses.replace(experiment(config), zero_shot=(), baselines=())
    short = rows_of_one_window(full, window)
    by_document = dataclasses.replace(full.train, rope_length="document")
    softmax = Ssmax(s=1 / math.log(window))
    return {
        "long-rope2": dataclasses.replace(full, rope=LongRope2(4.0), train=by_document),
        "nope": dataclasses.replace(short, rope=NoPE()),
        "ssmax": dataclasses.replace(full, attention=softmax),
        "s2-attn": dataclasses.replace(full, attention=S2Attn(window)),
        **{
            name: dataclasses.replace(short, positions=method)
            for name, method in positions(window).items()
        },
        "long-ce": dataclasses.replace(full, loss=LongCE(window, window // 4)),
        "long-red": dataclasses.replace(full, loss=LongRed()),
    }


def sweep(config: LlamaConfig) -> Iterator[Experiment]:
    """Everything with every seed, one seed after the other."""
    trials = {"frequencies": experiment(config), **one_by_one(config)}
    for seed in SEEDS:
        for name, trial in trials.items():
            yield dataclasses.replace(trial, name=f"{name}-{seed}", seed=seed)

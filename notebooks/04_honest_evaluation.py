# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 4. Read an evaluation honestly
#
# One number per method is what tables in papers show. This notebook asks the bundled model, without any training, and
# shows what has to stand beside such a number before it means anything.

# %%
import tempfile
from pathlib import Path

import ctxext
from ctxext import report
from ctxext.evals import Expected, Perplexity, Retrieval, RollingPerplexity
from ctxext.evals.power import detectable
from ctxext.evals.stats import Interval, wilson
from ctxext.evaluate import describe, evaluate
from ctxext.methods import NTK, Yarn
from ctxext.report.analysis.published import Outcome
from ctxext.rope import Unscaled

lm = ctxext.load("tiny-llama")
window = lm.config.max_position_embeddings
variants = (Unscaled(), NTK(4.0), Yarn(4.0, beta_fast=8.0))

# %% [markdown]
# ## A rate has an interval
#
# Four right of five looks like 80 %, and could as well come from a model that is right half of the time. Wilson's
# interval says what a rate leaves open: 20 questions a length, as below, leave some thirty points.

# %%
for right, asked in ((4, 5), (16, 20), (80, 100)):
    value, low, high = wilson(right, asked)
    print(f"{right:>3} of {asked:<3}  {100 * value:.0f} %  [{100 * low:.0f}, {100 * high:.0f}]")
for n in (20, 100, 400):
    print(
        f"{n:>4} pairs show a difference of {100 * detectable(n):.0f} points with 80 % power, and no smaller one"
    )

# %% [markdown]
# ## Ask, with controls
#
# The same questions of every variant. Two controls bound what the rates can mean: without the needle in the text, being
# right is guessing (the floor); without the text around it, being wrong is no matter of length (the ceiling).

# %%
lengths = (window, 2 * window, 4 * window)
evals = (
    Retrieval(lengths, n=4),
    Retrieval((4 * window,), n=2, condition="no-needle"),
    Retrieval((window,), n=2, condition="needle-only"),
    Perplexity(lengths, target_tokens=window // 2),
)
folder = Path(tempfile.mkdtemp())
for method in variants:
    evaluate(
        lm.with_method(method),
        evals,
        method_label=describe(method),
        sink=folder / "records.jsonl",
        progress=False,
    )
rows = report.read_rows([folder])
charts = report.drawings([folder])
charts["passkey: right answers by length"]

# %% [markdown]
# The bar is 0.85 of what the plain base answers at its own window: "reads to two windows" means above the bar there.
# Intervals of two variants that overlap do not mean that the variants are equal, nor apart ones that they differ: the questions
# are the same, so the differences are paired. The tables say it per length, and print what was not shown as not shown.

# %%
print(report.tables(rows))

# %% [markdown]
# ## Perplexity is not one number
#
# Papers slide windows over documents or over one stream, score all positions or the last ones, average over tokens or
# over windows. The same model on the same documents, window of 512 tokens:

# %%
yarn = lm.with_method(variants[-1])
for estimator in ("token", "pi", "yarn", "longlora", "truncate"):
    measured = RollingPerplexity(
        (2 * window,), estimator, window // 2, num_documents=4, max_tokens=8 * window
    )
    (cell,) = report.summary(evaluate(yarn, (measured,), method_label="yarn", progress=False))[
        "perplexity"
    ]
    print(f"{estimator:>9}  {cell['perplexity']:6.2f}  [{cell['low']:.2f}, {cell['high']:.2f}]")

# %% [markdown]
# So a perplexity is compared with another only under the same estimator on the same text. The intervals are wide
# because documents differ far more than variants do, and these are few. Whether far text is used at all is seen when only
# the context grows and the predicted tokens stay the same:

# %%
charts["Perplexity of the same tokens with more context"]

# %% [markdown]
# And by position: a model that is lost beyond its window shows it there, while an average over positions hides it.

# %%
charts[f"Nats per token by position, at length {4 * window:,}"]

# %% [markdown]
# ## Does it agree with the paper?
#
# A recipe in `experiments/` holds the published number with a tolerance. Agreement means that the whole measured
# interval lies within it, disagreement that they have no point in common; in between the data allow both, and a
# report says so.

# %%
published = Expected(
    "ppl:truncate", 8192, 3.35, 0.05, "YaRN s = 2, Llama 2 7B, proof-pile", "arXiv:2309.00071"
)
for got in (Interval(3.36, 3.33, 3.39), Interval(3.41, 3.36, 3.46), Interval(3.52, 3.45, 3.60)):
    print(Outcome("a run", published, got).text)

# %% [markdown]
# What no interval covers: another seed of training, another task, another base, and that the best variant was picked on the
# very questions that it is then praised for.

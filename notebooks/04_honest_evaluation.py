# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 4. Read an evaluation honestly
#
# Tables in papers show one number per method. This notebook questions the bundled model, without
# any training, and shows what must accompany such a number before it means anything.

# %%
import tempfile
from pathlib import Path

import ctxext
from ctxext import report
from ctxext.evals import Expected, Perplexity, Retrieval, RollingPerplexity
from ctxext.evals.power import detectable
from ctxext.evals.stats import Interval, wilson
from ctxext.evaluate import evaluate
from ctxext.methods import NTK, Yarn
from ctxext.report.analysis.published import Outcome
from ctxext.report.pages.expected import outcome_text
from ctxext.rope import Unscaled
from ctxext.tasks import Passkey

lm = ctxext.load("tiny-llama")
window = lm.config.max_position_embeddings
variants = (Unscaled(), NTK(4.0), Yarn(4.0, beta_fast=8.0))

# %% [markdown]
# ## A rate has an interval
#
# Four right of five looks like 80 %, but a model that is right half of the time could have produced
# it. Wilson's interval shows the uncertainty of a rate: with 20 questions per length, as below, it
# is some thirty points wide.

# %%
for right, asked in ((4, 5), (16, 20), (80, 100)):
    value, low, high = wilson(right, asked)
    print(f"{right:>3} of {asked:<3}  {100 * value:.0f} %  [{100 * low:.0f}, {100 * high:.0f}]")
for n in (20, 100, 400):
    print(f"{n:>4} pairs detect a difference of {100 * detectable(n):.0f} points with 80 % power")

# %% [markdown]
# ## Ask, with controls
#
# Every variant gets the same questions. Two controls show what the rates can mean. Without the
# needle in the text, a right answer is a guess (the floor); with the needle alone, without the text
# around it, a wrong answer has nothing to do with length.

# %%
lengths = (window, 2 * window, 4 * window)
passkey = Passkey(wording="code")  # the wording that this base was trained on
evals = (
    Retrieval(lengths, n=4, task=passkey),
    Retrieval((4 * window,), n=2, task=passkey, condition="no-needle"),
    Retrieval((window,), n=2, task=passkey, condition="needle-only"),
    Perplexity(lengths, target_tokens=window // 2),
)
folder = Path(tempfile.mkdtemp())
for method in variants:
    sink = folder / "records.jsonl"
    evaluate(lm.with_method(method), evals, sink=sink, progress=False)
records = report.read_records([folder])
charts = report.drawings([folder])
charts["passkey: right answers by length"]

# %% [markdown]
# The threshold is 85 % of the plain base's accuracy in its own window: an effective context of two
# windows means above the threshold up to there. Overlapping intervals do not mean that two variants
# are equal, and separate ones do not prove that they differ: the questions are the same, so
# differences are paired. The tables give them per length, and say so where a difference is not
# significant.

# %%
print(report.tables(records))

# %% [markdown]
# ## Perplexity is not one number
#
# Papers slide windows over documents or over one stream, score all positions or the last ones, and
# average over tokens or over windows. Here is the same model on the same documents, with a window
# of 512 tokens:

# %%
yarn = lm.with_method(variants[-1])
for estimator in ("token", "pi", "yarn", "longlora", "truncate"):
    measured = RollingPerplexity(
        (2 * window,), estimator, window // 2, num_documents=8, max_tokens=4 * window
    )
    (cell,) = report.summary(evaluate(yarn, (measured,), progress=False))["perplexity"]
    print(f"{estimator:>9}  {cell['perplexity']:6.2f}  [{cell['low']:.2f}, {cell['high']:.2f}]")

# %% [markdown]
# So perplexities are comparable only under the same estimator on the same text. The intervals are
# wide because documents differ far more than variants do, and there are few of them. Whether a
# model uses distant text at all shows when only the context grows and the predicted tokens stay the
# same:

# %%
charts["Perplexity of the same tokens with more context"]

# %% [markdown]
# And by position: a model that fails beyond its window shows it here, while an average over
# positions hides it.

# %%
charts[f"Nats per token by position, at length {4 * window:,}"]

# %% [markdown]
# ## Does it agree with the paper?
#
# A recipe in `experiments/` holds the published number with a tolerance. They agree if the whole
# measured interval is within the tolerance, and disagree if the two do not overlap; in between the
# data allow both, and the report says so.

# %%
published = Expected(
    "ppl:truncate", 8192, 3.35, 0.05, "YaRN s = 2, Llama 2 7B, proof-pile", "arXiv:2309.00071"
)
for got in (Interval(3.36, 3.33, 3.39), Interval(3.41, 3.36, 3.46), Interval(3.52, 3.45, 3.60)):
    print(outcome_text(Outcome("a run", published, got)))

# %% [markdown]
# No interval covers another training seed, another task, another base, or the fact that the best
# variant was chosen on the very questions that it is then praised for.

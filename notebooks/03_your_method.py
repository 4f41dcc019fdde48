# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 3. Add your own method
#
# A method that changes frequencies is a frozen dataclass with one pure function, `rope(base, seq_len)`. Put it into a
# file of its own, and everything else takes it by name: training, evaluation, export, plots, the command line.

# %%
import tempfile
from pathlib import Path

import numpy as np

import ctxext
from ctxext import report
from ctxext.evals import Perplexity, Retrieval
from ctxext.evaluate import describe, evaluate
from ctxext.methods import Linear, Yarn, make
from ctxext.rope import Unscaled

folder = Path(tempfile.mkdtemp())
(
    folder / "mine.py"
).write_text('''"""Interpolate the pairs that never made a whole turn in pre-training; leave the others alone."""

import dataclasses

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling


@dataclasses.dataclass(frozen=True)
class Step(RopeScaling):
    """f' = f / factor for wavelengths above L, else f."""

    factor: float

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        slow = 2 * np.pi / base.inv_freq > base.original_max_position_embeddings
        return Rope(np.where(slow, base.inv_freq / self.factor, base.inv_freq))
''')
mine = make(f"{folder}/mine.py:Step", factor=4.0)
print(mine)

# %% [markdown]
# ## First the numbers
#
# The frequencies are wrong before anything else is: compare them with what the formula says, by hand, at Llama 2's
# size. Pair 45 turns once in 4,080 tokens, pair 46 once in 4,712: with a window of 4,096 the second is the first slow
# one.

# %%
llama2 = ctxext.RopeBase(head_dim=128, theta=10_000.0, original_max_position_embeddings=4096)
ratio = mine.rope(llama2, 16_384).inv_freq / llama2.inv_freq
assert np.allclose(ratio[:46], 1) and np.allclose(ratio[46:], 1 / 4)
report.draw_wavelengths(
    [Unscaled(), Linear(4.0), Yarn(4.0), mine], llama2, seq_len=16_384, target=16_384
)

# %% [markdown]
# The step at pair 46 is the weak spot: two pairs that turned nearly alike now differ four times. YaRN blends there.
#
# ## Then a model
#
# Zero-shot on the bundled base, at one, two and four windows, the same questions for all. Rows go into a directory,
# from which tables and charts are made.

# %%
lm = ctxext.load("tiny-llama")
window = lm.config.max_position_embeddings
lengths = (window, 2 * window, 4 * window)
evals = (Retrieval(lengths, n=4), Perplexity(lengths, target_tokens=window // 2))
for method in (Unscaled(), Yarn(4.0, beta_fast=8.0), mine):
    name = describe(method)
    evaluate(
        lm.with_method(method),
        evals,
        method_label=name,
        sink=folder / "records.jsonl",
        progress=False,
    )
print(report.tables(report.read_rows([folder])))

# %%
report.drawings([folder])["Perplexity of the same tokens with more context"]

# %% [markdown]
# Perplexity alone would call the two alike; the questions above do not, and the step reads less even at home.
#
# ## Everywhere else by name
#
# ```
# ctxext rope mine.py:Step yarn --factor 2 --plot waves.html
# ctxext eval HF_DIR --method mine.py:Step --factor 4
# ctxext run experiments/demo.py --method mine.py:Step --rope.factor 4
# ```
#
# An export writes frequencies that no format has a name for as explicit per-pair factors, which transformers reads. A
# method that moves tokens in training (as PoSE does) is a `Positions`, one that changes who attends to whom (as
# Self-Extend does) an `Attention`; both are as short. Before you believe it works, read notebook 4.

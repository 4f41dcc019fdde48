# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 3. Add your own method
#
# A method that changes frequencies is a frozen dataclass with one pure function, `rope(base,
# seq_len)`. Put it in its own file, and training, evaluation, export, plots and the command line
# accept it by name.

# %%
import tempfile
from pathlib import Path

import numpy as np

import ctxext
from ctxext import report
from ctxext.evals import Perplexity, Retrieval
from ctxext.evaluate import evaluate
from ctxext.methods import Linear, Yarn, make
from ctxext.rope import Unscaled
from ctxext.tasks import Passkey

SOURCE = '''"""Interpolate only the pairs that never complete a turn in pre-training."""

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
'''
folder = Path(tempfile.mkdtemp())
(folder / "mine.py").write_text(SOURCE)
mine = make(f"{folder}/mine.py:Step", factor=4.0)
print(mine)

# %% [markdown]
# ## First check the numbers
#
# If a method is wrong, its frequencies are usually wrong first. Compare them by hand with the
# formula, at Llama 2's size. Pair 45 turns once in 4,080 tokens, pair 46 once in 4,712: with a
# window of 4,096 the second is the first slow one.

# %%
llama2 = ctxext.RopeBase(head_dim=128, theta=10_000.0, original_max_position_embeddings=4096)
ratio = mine.rope(llama2, 16_384).inv_freq / llama2.inv_freq
assert np.allclose(ratio[:46], 1) and np.allclose(ratio[46:], 1 / 4)
report.draw_wavelengths(
    [Unscaled(), Linear(4.0), Yarn(4.0), mine], llama2, seq_len=16_384, target=16_384
)

# %% [markdown]
# The step at pair 46 is the weak spot: two pairs that used to turn at nearly the same rate now
# differ by a factor of four. YaRN blends there.
#
# ## Then try a model
#
# Zero-shot on the bundled base, at one, two and four windows, with the same questions for all.
# Records go to a directory, from which tables and charts are computed.

# %%
lm = ctxext.load("tiny-llama")
window = lm.config.max_position_embeddings
lengths = (window, 2 * window, 4 * window)
passkey = Passkey(wording="code")  # the wording that this base was trained on
evals = (
    Retrieval(lengths, n=4, task=passkey),
    Perplexity(lengths, target_tokens=window // 2),
)
for method in (Unscaled(), Yarn(4.0, beta_fast=8.0), mine):
    sink = folder / "records.jsonl"
    evaluate(lm.with_method(method), evals, sink=sink, progress=False)
print(report.tables(report.read_records([folder])))

# %%
report.drawings([folder])["Perplexity of the same tokens with more context"]

# %% [markdown]
# By perplexity alone the two look alike. The questions above tell them apart: the step reads less,
# even inside the window.
#
# ## Use it everywhere by name
#
# ```
# ctxext rope mine.py:Step yarn --factor 2 --plot waves.html
# ctxext eval HF_DIR --method mine.py:Step --factor 4
# ctxext run experiments/demo.py --method mine.py:Step --factor 4
# ```
#
# Frequencies that no format has a name for are exported as explicit per-pair factors, which
# transformers reads. A method that moves tokens in training (like PoSE) is a `Positions`; one that
# changes who attends to whom (like Self-Extend) is an `Attention`. Both are as short. Before you
# believe that a method works, read notebook 4.

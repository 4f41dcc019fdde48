# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # ctxext in five minutes
#
# The bundled model was trained with a window of 256 tokens. This notebook opens it, looks at what
# context-extension methods do to its rotary frequencies, and measures how far the model reads under
# each of them, without any training.

# %%
import numpy as np

import ctxext
from ctxext import report
from ctxext.evals import Perplexity, Retrieval
from ctxext.evaluate import evaluate
from ctxext.methods import NTK, Linear, SelfExtend, Yarn
from ctxext.rope import Unscaled
from ctxext.tasks import Passkey

lm = ctxext.load("tiny-llama")
window = lm.config.max_position_embeddings
print(f"{lm.config.num_parameters:,} parameters, window {window} tokens")
print(f"{lm.tokenizer.vocab_size} tokens in the vocabulary")

# %% [markdown]
# ## A method is a function from frequencies to frequencies
#
# Position Interpolation slows every pair down by the factor, NTK raises the base, YaRN leaves the
# fast pairs alone and interpolates the slow ones. The table shows each method's frequency relative
# to plain RoPE.

# %%
base = lm.config.rope_base()
methods = {
    "none": Unscaled(),
    "PI": Linear(factor=4.0),
    "NTK": NTK(factor=4.0),
    "YaRN": Yarn(factor=4.0),
}
ropes = {name: method.rope(base, 4 * window) for name, method in methods.items()}
print("pair  turns in window  " + "  ".join(f"{name:>6}" for name in ropes))
for i in range(0, base.head_dim // 2, 4):
    ratios = "  ".join(f"{rope.inv_freq[i] / base.inv_freq[i]:6.3f}" for rope in ropes.values())
    print(f"{i:>4}  {base.inv_freq[i] * window / (2 * np.pi):>15.2f}  {ratios}")

# %% [markdown]
# ## Does it read that far?
#
# Each item hides a key in text that the model never saw and asks for it; lengths are exact to the
# token. There is one record per item; tables are computed from records, and every rate has its 95 %
# interval.

# %%
lengths = (window, 2 * window, 4 * window)
passkey = Passkey(wording="code")  # the wording that this base was trained on
evals = (
    Retrieval(lengths, depths=(0.1, 0.5, 0.9), n=2, task=passkey),
    Perplexity(lengths, num_documents=8, target_tokens=window // 2),
)
records = []
for method in (*methods.values(), SelfExtend(group_size=8, neighbor_window=128)):
    records += evaluate(lm.with_method(method), evals)
print(report.tables(records))

# %% [markdown]
# ## Ask it something

# %%
prompt = lm.tokenizer.encode("def main(", bos=True)
tokens = lm.with_method(Yarn(factor=4.0)).generate([prompt], max_new_tokens=24)
print(lm.tokenizer.decode(prompt + tokens[0].tolist()))

# %% [markdown]
# Next: a short fine-tune, export to PyTorch format and the proof that it is equal, in one command:
# `ctxext demo` for this model, `ctxext run experiments/demo.py --init HF_DIR` for yours.

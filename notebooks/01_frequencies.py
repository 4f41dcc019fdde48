# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 1. What each method does to the frequencies
#
# Rotary embeddings turn pair $i$ of a head's dimensions by the angle $p f_i$ at position $p$, with
# $f_i = \theta^{-2i/d}$. A model that was trained on windows of $L$ tokens has seen each pair turn
# through $L f_i$ and no farther. This notebook loads no model: a method is a function from
# frequencies to frequencies.

# %%
import numpy as np

import ctxext
from ctxext import report
from ctxext.methods import ABF, NTK, Linear, Llama3, Yarn
from ctxext.rope import Unscaled

llama2 = ctxext.RopeBase(head_dim=128, theta=10_000.0, original_max_position_embeddings=4096)
wavelengths = 2 * np.pi / llama2.inv_freq
print(
    f"{len(wavelengths)} pairs, from {wavelengths[0]:.1f} to {wavelengths[-1]:,.0f} tokens per turn"
)
print(f"{(wavelengths > 4096).sum()} of them never complete a turn within the window of 4,096")

# %% [markdown]
# ## Twice the window
#
# Pairs with short wavelengths have met every angle thousands of times: a longer text shows them
# nothing new. The slow ones, right of the vertical line, meet new angles beyond the window. Each
# method answers that differently.
#
# * **PI** (arXiv 2306.15595) slows all pairs down by the factor: no new angles, but neighbouring
#   positions move closer together.
# * **NTK-aware** raises the base, so that the fastest pair keeps its frequency and the slowest is
#   fully interpolated; pairs in between extrapolate a little.
# * **YaRN** (arXiv 2309.00071) keeps pairs that turn more than 32 times, interpolates those below
#   one turn, blends between, and scales the logits.
#
# Shaded: pairs that turn farther at 8,192 tokens than they ever did in pre-training.

# %%
twice = [Unscaled(), Linear(2.0), NTK(2.0), Yarn(2.0)]
report.draw_wavelengths(twice, llama2, seq_len=8192, target=8192)

# %% [markdown]
# The same in numbers: each frequency relative to plain RoPE, and the factor on queries and keys.

# %%
ropes = {type(method).__name__: method.rope(llama2, 8192) for method in twice}
print(f"{'pair':>9}  {'turns':>7}" + "".join(f"{name:>10}" for name in ropes))
for i in (0, 10, 20, 30, 40, 46, 50, 63):
    ratios = "".join(f"{rope.inv_freq[i] / llama2.inv_freq[i]:10.3f}" for rope in ropes.values())
    print(f"{i:>9}  {4096 / wavelengths[i]:>7.2f}{ratios}")
print(
    f"{'attention factor':>18}"
    + "".join(f"{rope.attention_factor:10.4f}" for rope in ropes.values())
)

# %% [markdown]
# ## Sixteen thousand tokens, with another base
#
# Code Llama does not interpolate: it continues training with base $10^6$ instead of $10^4$ (arXiv
# 2308.12950). At the slow end that is more than interpolation by four requires, and it leaves room
# beyond 16,384. Llama 3.1's rule, here with factor 4, is YaRN's idea with a blend that is linear in
# turns, and no factor on the logits.

# %%
report.draw_wavelengths(
    [Linear(4.0), Yarn(4.0), Llama3(4.0), ABF(1e6)], llama2, seq_len=16_384, target=16_384
)

# %% [markdown]
# A chart of frequencies cannot show how well a model reads; for that, notebook 2 extends one.
# `ctxext methods` lists all methods; `ctxext rope yarn --factor 2` prints the numbers of any of
# them.

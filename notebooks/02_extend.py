# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 2. Extend the bundled model
#
# The package contains a model of about a million parameters that was trained with a window of 256
# tokens. This notebook extends it to four times that with YaRN and a short fine-tune, exports it to
# PyTorch format and proves the export equal. It takes some minutes on two cores; `ctxext demo` does
# the same with more questions and all the controls.

# %%
import tempfile
from pathlib import Path

import ctxext
from ctxext import report
from ctxext.data import Mix, Short, Stdlib, Synthetic
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import Train
from ctxext.methods import Yarn
from ctxext.optim import Optim
from ctxext.rope import Unscaled
from ctxext.tasks import KeyValue, Passkey

lm = ctxext.load("tiny-llama")
window = lm.config.max_position_embeddings
print(f"{lm.config.num_parameters:,} parameters, window {window} tokens")

# %% [markdown]
# ## An experiment is a value
#
# Base, method, data, training and evaluations; creating it runs nothing. Passkeys are trained in
# rows of one window only, so the question below was never trained at the lengths that are asked.
# Questions are in the wording "code", the only one that this base was trained on.
# `beta_fast` is 8 because in a window of 256 tokens hardly any pair turns more than 32 times; for
# Llama 2 it stays 32.

# %%
passkey = Passkey(wording="code")
experiment = ctxext.Experiment(
    name="notebook-extend",
    init="tiny-llama",
    rope=Yarn(4.0, beta_fast=8.0),
    data=Mix(
        (
            (0.4, Stdlib("train")),
            (0.3, Synthetic(KeyValue(wording="code"))),
            (0.3, Short(Synthetic(passkey), window)),
        )
    ),
    optim=Optim(learning_rate=7e-4, warmup_steps=5, schedule="linear"),
    train=Train(steps=48, seq_len=4 * window, batch_size=4, log_every=4, checkpoint_every=48),
    evals=(
        Retrieval(task=passkey, seq_lens=(window, 2 * window, 4 * window), n=4),
        Perplexity(seq_lens=(window, 2 * window, 4 * window), target_tokens=window // 2),
    ),
    zero_shot=(Unscaled(), Yarn(4.0, beta_fast=8.0)),
)
run = ctxext.run(experiment, run_dir=Path(tempfile.mkdtemp()) / "run", track=())

# %% [markdown]
# ## Does it work?
#
# The verdict states what the records support and what they do not. On this base, YaRN does much of
# the work without training. What training adds shows in perplexity first; to detect it in answers
# takes more than 20 questions per length (`ctxext demo` asks 60, and trains the other methods as
# well).

# %%
print("\n".join(report.verdict(run.records)))

# %%
charts = report.drawings([run.path])
charts["passkey: right answers by length"]

# %% [markdown]
# Low perplexity is necessary but not sufficient: a model that ignores all but the last 256 tokens
# has a flat curve.

# %%
charts["Perplexity of the same tokens with more context"]

# %% [markdown]
# ## The export
#
# The directory below loads in transformers. The proof recomputed the logits from its files alone,
# in plain numpy, and in transformers where it is installed.

# %%
assert run.proof is not None
print(
    f"equal: {run.proof['equal']}; read by {', '.join(r['reader'] for r in run.proof['readers'])}"
)
print(sorted(path.name for path in (run.path / "export").iterdir()))

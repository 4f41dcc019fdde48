"""The second stage of the bundled base: rows of the whole window, 256 tokens. What it is and why:
tiny_base.py.

python experiments/tiny_window.py             the tokenizer: 1,024 BPE pieces, from the training
files ctxext train experiments/tiny_window.py --run-dir runs/tiny-window
"""

from ctxext import tasks
from ctxext.data import Mix, Stdlib, Synthetic, stdlib_documents
from ctxext.experiment import Experiment, Train
from ctxext.model.config import LlamaConfig
from ctxext.optim import Optim

VOCABULARY = 1024
model = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=200.0,
    max_position_embeddings=256,
    tie_word_embeddings=True,
    # About 128^-0.5; with the usual 0.02 nothing was retrieved after 5 M tokens.
    initializer_range=0.08,
)
experiment = Experiment(
    name="tiny-window",
    init="runs/tiny-start",
    data=Mix(
        (
            (0.35, Stdlib("train")),
            (0.3, Synthetic(tasks.KeyValue(wording="code"))),
            (0.25, Synthetic(tasks.Passkey(wording="code"))),
            (0.1, Synthetic(tasks.Repeat())),
        )
    ),
    optim=Optim(
        learning_rate=2e-3,
        warmup_steps=20,
        schedule="cosine",
        final_fraction=0.05,
        weight_decay=0.1,
    ),
    train=Train(steps=1400, seq_len=256, batch_size=32, checkpoint_every=100),
    export=None,
)

if __name__ == "__main__":
    from ctxext.assets import TINY_LLAMA
    from ctxext.files import write_bytes
    from ctxext.tokenization.tokenizer import train_tokenizer

    texts = [document.text for document in stdlib_documents("train")]
    write_bytes(TINY_LLAMA / "tokenizer.model", train_tokenizer(texts, VOCABULARY))

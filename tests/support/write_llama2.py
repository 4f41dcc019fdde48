"""A small random checkpoint in the files of Llama 2, for tests of the docs' commands.

python tests/support/write_llama2.py DIR [WINDOW]: 256 wide, 4 layers, 2,000 tokens.
"""

import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from ctxext.data.sources.stdlib import stdlib_documents
from ctxext.model.config import LlamaConfig
from ctxext.tokenization.tokenizer import MODEL, Tokenizer, train_tokenizer


def write_llama2(
    directory: Path, *, window: int, hidden: int = 64, layers: int = 2, vocab: int = 420
) -> None:
    """Write two float16 shards by transformers, Llama 2's config.json and the tokenizer files."""
    import torch
    import transformers

    heads = hidden // 16
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=16,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_position_embeddings=window,
    )
    torch.manual_seed(0)
    fields = dataclasses.asdict(config)
    for name in ("rope_theta", "family", "parts"):
        del fields[name]
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **fields, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
        )
    )
    size = 2 * sum(parameter.numel() for parameter in model.parameters())
    model.half().save_pretrained(directory, max_shard_size=int(0.6 * size))
    settings: dict[str, Any] = json.loads((directory / "config.json").read_text())
    # Llama 2's file is older than these fields.
    newer = ("rope_parameters", "dtype", "head_dim")
    newer += ("attention_bias", "attention_dropout", "mlp_bias")
    for name in newer:
        del settings[name]
    settings |= {
        "rope_theta": 1e4,
        "rope_scaling": None,
        "pretraining_tp": 1,
        "torch_dtype": "float16",
    }
    (directory / "config.json").write_text(json.dumps(settings, indent=2))
    if vocab > 500:
        texts = [document.text for document in stdlib_documents("train")[:40]]
    else:
        texts = [inspect.getsource(json)]
    tokenizer = Tokenizer({MODEL: train_tokenizer(texts, vocab)})
    for name, data in tokenizer.export_files(window).items():
        (directory / name).write_bytes(data)


if __name__ == "__main__":
    window = int(sys.argv[2]) if len(sys.argv) > 2 else 4096
    write_llama2(Path(sys.argv[1]), window=window, hidden=256, layers=4, vocab=2000)

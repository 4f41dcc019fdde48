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
    """Write two float16 shards by transformers, Llama 2's config.json and both tokenizer files."""
    import torch
    import transformers

    heads = hidden // 16
    config = LlamaConfig(
        vocab, hidden, 3 * hidden // 2, layers, heads, heads, 16, 1e-5, 1e4, window
    )
    torch.manual_seed(0)
    fields = {
        name: value for name, value in dataclasses.asdict(config).items() if name != "rope_theta"
    }
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **fields, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
        )
    )
    size = 2 * sum(parameter.numel() for parameter in model.parameters())
    model.half().save_pretrained(directory, max_shard_size=int(0.6 * size))
    written: dict[str, Any] = json.loads((directory / "config.json").read_text())
    for name in (
        "rope_parameters",
        "dtype",
        "head_dim",
        "attention_bias",
        "attention_dropout",
        "mlp_bias",
    ):
        del written[name]  # Llama 2's file is older than these
    written |= {
        "rope_theta": 1e4,
        "rope_scaling": None,
        "pretraining_tp": 1,
        "torch_dtype": "float16",
    }
    (directory / "config.json").write_text(json.dumps(written, indent=2))
    texts = (
        [document.text for document in stdlib_documents("train")[:40]]
        if vocab > 500
        else [inspect.getsource(json)]
    )
    for name, data in (
        Tokenizer({MODEL: train_tokenizer(texts, vocab)}).export_files(window).items()
    ):
        (directory / name).write_bytes(data)


if __name__ == "__main__":
    window = int(sys.argv[2]) if len(sys.argv) > 2 else 4096
    write_llama2(Path(sys.argv[1]), window=window, hidden=256, layers=4, vocab=2000)

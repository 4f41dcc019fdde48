"""Random checkpoints in HF format for both sides to read."""

from pathlib import Path

from ctxext import loading
from ctxext.bench.cases import Work
from ctxext.experiment import BUNDLED
from ctxext.interop import hf
from ctxext.interop.hf_weights import lazy_tensors
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import init_params
from ctxext.rope import Unscaled


def random_weights(work: Work, directory: Path) -> Path:
    """A checkpoint of the work's shape, float32, written if it is not there yet; empty for work without a model."""
    if work.part in ("attention", "loss"):
        return directory
    path = (
        directory
        / f"{work.shape.hidden_size}-{work.shape.num_hidden_layers}-{work.shape.vocab_size}"
    )
    return path if path.exists() else write(work.shape, path)


def write(config: LlamaConfig, path: Path) -> Path:
    """A checkpoint of random numbers; its tokenizer is the bundled one and says nothing."""
    hf.write(
        path,
        config,
        lazy_tensors(config, init_params(config, 0)),
        Unscaled(),
        loading.load(BUNDLED).tokenizer,
        dtype="float32",
        seq_len=config.max_position_embeddings,
    )
    return path

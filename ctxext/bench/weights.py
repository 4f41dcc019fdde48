"""Random checkpoints in HF format, which every backend reads."""

from pathlib import Path

from ctxext import loading
from ctxext.bench.cases import BenchmarkCase
from ctxext.experiment import BUNDLED
from ctxext.interop import hf
from ctxext.interop.hf_weights import StoredModel, WriteOptions, lazy_tensors
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import init_params
from ctxext.rope import Unscaled


def random_weights(case: BenchmarkCase, directory: Path) -> Path:
    """A float32 checkpoint of the case's shape, written if it is not there yet.

    The empty `directory` itself for a case that needs no model.
    """
    if case.part in ("product", "attention", "loss"):
        return directory
    shape = case.shape
    path = directory / f"{shape.hidden_size}-{shape.num_hidden_layers}-{shape.vocab_size}"
    return path if path.exists() else write(shape, path)


def write(config: LlamaConfig, path: Path) -> Path:
    """A checkpoint of random numbers, with the bundled tokenizer, whose ids mean nothing to it."""
    model = StoredModel(
        config,
        Unscaled(),
        config.max_position_embeddings,
        lazy_tensors(config, init_params(config, 0)),
        loading.open_tokenizer(BUNDLED),
    )
    hf.write(path, model, WriteOptions("float32"))
    return path

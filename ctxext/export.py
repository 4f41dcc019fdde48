"""A model one can ask, written for other readers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ctxext import door
from ctxext.attention import Attention, Causal
from ctxext.config import LlamaConfig
from ctxext.experiment import BUNDLED
from ctxext.files import read_json
from ctxext.interop import hf, peft
from ctxext.interop.weights import find_weights, storage_dtype
from ctxext.lm import LM
from ctxext.methods import label
from ctxext.model import param_shapes
from ctxext.rope import RopeScaling
from ctxext.rundir import RunDir
from ctxext.sharding import ONE_DEVICE, Mesh
from ctxext.tokenizer import load_tokenizer
from ctxext.trainable import LoRA

FORMATS = ("hf",)


def export(
    lm: LM, out: str | Path, *, to: str = "hf", dtype: str = "bfloat16", seq_len: int | None = None,
    card: dict[str, Any] | None = None, max_shard_size: int = 5 * 10**9,
) -> Path:  # fmt: skip
    """Write `lm` to the directory `out`; `seq_len` is the extended window L' in tokens, factor x L if None.

    Raises ValueError, before anything is written, for a format, dtype or method that cannot be written down.
    """
    check(lm.config, lm.scaling, lm.attention, to=to, dtype=dtype, seq_len=seq_len)
    hf.save(out, lm.config, lm.params, lm.scaling, lm.tokenizer, dtype=dtype, seq_len=seq_len,
            max_shard_size=max_shard_size, card=card)  # fmt: skip
    return Path(out)


def convert(
    source: str | Path, out: str | Path, *, methods: Iterable[RopeScaling | Attention] = (), to: str = "hf",
    dtype: str | None = None, seq_len: int | None = None, max_shard_size: int = 5 * 10**9,
) -> Path:  # fmt: skip
    """Like `export`, for a checkpoint in HF format under `methods`: its parameters pass through one at a time.

    `dtype`: by default as they are stored, or float32 if that is mixed; `seq_len`: by default the window L' that the
    source declares, or factor x L where `methods` changes it. Raises ValueError as `export` and `door.load` do.
    """
    path, methods = door.locate(source), list(methods)
    if door.is_run(path):
        raise ValueError(f"{source} is a run directory, which is no HF checkpoint; write one with: ctxext export")
    config, scaling = hf.read_config(path)
    lm = LM(config, param_shapes(config), load_tokenizer(path), scaling=scaling).with_method(*methods)
    tensors = find_weights(path, config)
    dtype = dtype or storage_dtype(tensors.values())
    seq_len = seq_len or (None if methods else hf.window(path))
    check(config, lm.scaling, lm.attention, to=to, dtype=dtype, seq_len=seq_len)
    hf.write(out, config, tensors, lm.scaling, lm.tokenizer, dtype=dtype, seq_len=seq_len,
             max_shard_size=max_shard_size)  # fmt: skip
    return Path(out)


def check(
    config: LlamaConfig, scaling: RopeScaling, attention: Attention, *, to: str, dtype: str, seq_len: int | None = None
) -> None:
    """Raise ValueError, with the reason, for a format, dtype or method that cannot be written down."""
    if to not in FORMATS:
        raise ValueError(f"there is no format {to!r}; known: {', '.join(FORMATS)}")
    if attention != Causal():
        raise ValueError(f"{type(attention).__name__} is a way to run a model that the {to} format has no field for; "
                         "export with causal attention (in an experiment: export=None) and choose it again when "
                         "loading")  # fmt: skip
    hf.config_json(config, scaling, seq_len=seq_len or config.max_position_embeddings, dtype=dtype)


def export_adapter(
    source: str | Path, out: str | Path, *, base: str | Path | None = None, mesh: Mesh = ONE_DEVICE, trust: bool = False
) -> Path:
    """Write what a LoRA run trained as a PEFT directory, to be loaded on `base`: by default the run's own base.

    The base is not copied. PEFT has no field for frequencies, so that the base must have those of the run in its own
    config.json. Raises ValueError if it has not, saying how to write one that does, or if it is another model.
    """
    path = door.locate(source)
    if not door.is_run(path):
        raise ValueError(f"{source} is no run directory; --to peft writes what a run trained")
    run = RunDir(path)
    (config, scaling), settings = door.run_base(path, trust=trust), read_json(run.config_file)
    trainable, params = door.trained(run, config, mesh)
    if not isinstance(trainable, LoRA):
        raise ValueError(f"{source} did not train with --method lora; export the whole model with --to hf")
    base = base or settings["init"]
    if base is None or door.is_run(door.locate(base)):
        raise ValueError(f"PEFT loads an adapter on a base in HF format, not on {base or 'random parameters'}; export "
                         "that with --to hf and name it with --base")  # fmt: skip
    there = hf.read_config(door.locate(base))
    lengths = (config.max_position_embeddings, settings["train"]["seq_len"])
    if not all(_same_rope((config, scaling), there, length) for length in lengths):
        raise ValueError(f"the run has other frequencies ({label([scaling])}) than {base}, and an adapter cannot carry "
                         f"them; write a base that has: ctxext export {base} --method NAME ... --out SCALED, then name "
                         "it with --base SCALED")  # fmt: skip
    door.frozen(run, config, base=base, mesh=mesh, trust=trust)  # refuses other weights
    local = Path(base).exists() or base == BUNDLED  # else a name on the hub, which PEFT resolves too
    name = str(door.locate(base).resolve()) if local else str(base)
    peft.save(out, config, trainable, params, base=name)
    return Path(out)


def _same_rope(one: tuple[LlamaConfig, RopeScaling], other: tuple[LlamaConfig, RopeScaling], seq_len: int) -> bool:
    """True if both rotate alike at this length; the lists of a config.json are exact to float32."""
    a, b = (scaling.rope(config.rope_base(), seq_len) for config, scaling in (one, other))
    alike = np.allclose(a.inv_freq, b.inv_freq, rtol=1e-6, atol=0) and a.leading is b.leading is None
    return alike and bool(np.isclose(a.attention_factor, b.attention_factor, rtol=1e-6))

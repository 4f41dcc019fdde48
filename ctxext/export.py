"""A model one can ask, written for other readers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ctxext import loading
from ctxext.attention import Attention, Causal
from ctxext.experiment import BUNDLED
from ctxext.files import read_json
from ctxext.interop import gguf, hf, meta, peft
from ctxext.interop.hf_weights import entries, storage_dtype
from ctxext.interop.ropespec import LARGEST_DIVISOR
from ctxext.interop.tensor_blocks import Entry
from ctxext.methods import label
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import param_shapes
from ctxext.model.lm import LM
from ctxext.model.trainable import LoRA
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.rope import RopeScaling
from ctxext.rundir import RunDir
from ctxext.serialization import from_json

FORMATS = ("hf", "meta", "gguf")


def export(
    lm: LM,
    out: str | Path,
    *,
    to: str = "hf",
    dtype: str = "bfloat16",
    seq_len: int | None = None,
    card: dict[str, Any] | None = None,
    max_shard_size: int = 5 * 10**9,
    shards: int | None = None,
) -> Path:
    """Write `lm` to the directory `out`, for gguf to the file `out`; `seq_len`: the extended window L', tokens.

    That is factor x L if None. `shards`: of meta, by default as many as Meta ships for that size; `card`,
    `max_shard_size`: of hf. Raises ValueError, before anything is written, for a format, dtype or method that cannot
    be written down.
    """
    return _write(
        lm,
        entries(lm.config, lm.params),
        Path(out),
        to=to,
        dtype=dtype,
        seq_len=seq_len,
        card=card,
        max_shard_size=max_shard_size,
        shards=shards,
    )


def convert(
    source: str | Path,
    out: str | Path,
    *,
    methods: Iterable[RopeScaling | Attention] = (),
    to: str = "hf",
    dtype: str | None = None,
    seq_len: int | None = None,
    max_shard_size: int = 5 * 10**9,
    shards: int | None = None,
    original: int | None = None,
) -> Path:
    """Like `export`, for a checkpoint in HF or Meta format: its parameters pass through one at a time.

    `dtype`: by default as they are stored, or float32 if that is mixed; `seq_len`: by default the window L' that the
    source declares, or factor x L where `methods` changes it; `original`: the window L where the source, in Meta
    format, does not say it. Raises ValueError as `export` and `loading.load` do.
    """
    path, methods = loading.locate(source), list(methods)
    if loading.is_run(path):
        raise ValueError(
            f"{source} is a run directory, which is no HF checkpoint; write one with: ctxext export"
        )
    found = loading.read_checkpoint(path, original)
    lm = LM(
        found.config, param_shapes(found.config), found.tokenizer, scaling=found.scaling
    ).with_method(*methods)
    dtype = dtype or storage_dtype(found.tensors.values())
    seq_len = seq_len or (None if methods else found.window)
    return _write(
        lm,
        found.tensors,
        Path(out),
        to=to,
        dtype=dtype,
        seq_len=seq_len,
        card=None,
        max_shard_size=max_shard_size,
        shards=shards,
    )


def _write(
    lm: LM,
    tensors: dict[str, Entry],
    out: Path,
    *,
    to: str,
    dtype: str,
    seq_len: int | None,
    card: dict[str, Any] | None,
    max_shard_size: int,
    shards: int | None,
) -> Path:
    check(lm.config, lm.scaling, lm.attention, to=to, dtype=dtype, seq_len=seq_len)
    if shards is not None and to != "meta":
        raise ValueError("shards are counted in Meta's format alone; --shards belongs to --to meta")
    if to == "meta":
        meta.save(
            out,
            lm.config,
            tensors,
            lm.scaling,
            lm.tokenizer,
            dtype=dtype,
            seq_len=seq_len,
            shards=shards,
        )
    elif to == "gguf":
        gguf.save(out, lm.config, tensors, lm.scaling, lm.tokenizer, dtype=dtype, seq_len=seq_len)
    else:
        hf.write(
            out,
            lm.config,
            tensors,
            lm.scaling,
            lm.tokenizer,
            dtype=dtype,
            seq_len=seq_len,
            max_shard_size=max_shard_size,
            card=card,
        )
    return out


def check(
    config: LlamaConfig,
    scaling: RopeScaling,
    attention: Attention,
    *,
    to: str,
    dtype: str,
    seq_len: int | None = None,
) -> None:
    """Raise ValueError, with the reason, for a format, dtype or method that cannot be written down."""
    if to not in FORMATS:
        raise ValueError(f"there is no format {to!r}; known: {', '.join(FORMATS)}")
    check_attention(attention, to=to)
    if to == "meta":
        meta.check(config, scaling, dtype=dtype, seq_len=seq_len)
    elif to == "gguf":
        gguf.check(config, scaling, dtype=dtype, seq_len=seq_len)
    else:
        hf.config_json(
            config, scaling, seq_len=seq_len or config.max_position_embeddings, dtype=dtype
        )


def check_attention(attention: Attention, *, to: str) -> None:
    """Raise ValueError for anything but causal attention, which no format has a field for."""
    if attention != Causal():
        raise ValueError(
            f"{type(attention).__name__} is a way to run a model that the {to} format has no field for; "
            "export with causal attention (in an experiment: export=None) and choose it again when "
            "loading"
        )


def export_adapter(
    source: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    checkpoint: int | str = "latest",
    mesh: Mesh = ONE_DEVICE,
    trust: bool = False,
) -> Path:
    """Write what a LoRA run trained as a PEFT directory, to be loaded on `base`: by default the run's own base.

    The base is not copied. PEFT has no field for frequencies, so that the base must have those of the run in its own
    config.json, which is copied, with the checksum of its parameters beside it, for a later `prove`. Raises ValueError
    if it has not, saying how to write one that does, if it is another model, and for what no config.json can say.
    """
    path = loading.locate(source)
    if not loading.is_run(path):
        raise ValueError(f"{source} is no run directory; --to peft writes what a run trained")
    run = RunDir(path)
    (config, scaling), settings = loading.run_base(path, trust=trust), read_json(run.config_file)
    check_attention(from_json(settings["attention"], trust=trust), to="peft")
    check(
        config, scaling, Causal(), to="hf", dtype="float32"
    )  # the base has to say these frequencies
    trainable, params = loading.trained(run, config, mesh, checkpoint=checkpoint)
    if not isinstance(trainable, LoRA):
        raise ValueError(
            f"{source} did not train with --method lora; export the whole model with --to hf"
        )
    base = base or settings["init"]
    if base is None or loading.is_run(loading.locate(base)):
        raise ValueError(
            f"PEFT loads an adapter on a base in HF format, not on {base or 'random parameters'}; export "
            "that with --to hf and name it with --base"
        )
    there = hf.read_config(loading.locate(base))
    lengths = (config.max_position_embeddings, settings["train"]["seq_len"])
    if not all(same_rope((config, scaling), there, length) for length in lengths):
        raise ValueError(
            f"the run has other frequencies ({label([scaling])}) than {base}, and an adapter cannot carry "
            f"them; write a base that has: ctxext export {base} --method NAME ... --out SCALED, then name "
            "it with --base SCALED"
        )
    loading.frozen(run, config, base=base, mesh=mesh, trust=trust)  # refuses other weights
    parameters = {
        "checksum": read_json(run.provenance_file)["base"],
        "dtype": settings["train"]["dtype"],
    }
    recorded = {
        "config.json": read_json(loading.locate(base) / "config.json"),
        peft.BASE: parameters,
    }
    local = (
        Path(base).exists() or base == BUNDLED
    )  # else a name on the hub, which PEFT resolves too
    name = str(loading.locate(base).resolve()) if local else str(base)
    peft.save(out, config, trainable, params, base=name, beside=recorded)
    return Path(out)


def same_rope(
    one: tuple[LlamaConfig, RopeScaling], other: tuple[LlamaConfig, RopeScaling], seq_len: int
) -> bool:
    """True if both rotate alike at this length; a config.json is exact to float32, and has no frequency of zero."""
    a, b = (scaling.rope(config.rope_base(), seq_len) for config, scaling in (one, other))
    alike = (
        np.allclose(a.inv_freq, b.inv_freq, rtol=1e-6, atol=1 / LARGEST_DIVISOR)
        and a.leading is b.leading is None
    )
    return alike and bool(np.isclose(a.attention_factor, b.attention_factor, rtol=1e-6))

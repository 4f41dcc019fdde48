"""The backend transformers, on torch, with SDPA and the fused optimiser."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from ctxext.bench.cases import BenchmarkCase, RunOnce

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def version() -> str:
    """The versions that ran it."""
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def device() -> str:
    """The kind of accelerator, or "cpu"."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE


def device_peak() -> int | None:
    """The peak of an accelerator's own memory in bytes; None on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


def device_seconds(call: Callable[[], Any]) -> float | None:
    """Seconds of kernels on the accelerator while `call` runs; None on a CPU."""
    if DEVICE != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        _synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


def _timed(
    call: Callable[[], Any], value: Callable[[Any], list[float]]
) -> tuple[float, list[float]]:
    _synchronize()
    started = time.perf_counter()
    out = call()
    _synchronize()
    return time.perf_counter() - started, value(out)


def _synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _model(weights: Path, dtype: torch.dtype) -> Any:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        weights, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    return model.to(DEVICE)


def _ids(case: BenchmarkCase) -> torch.Tensor:
    return torch.from_numpy(case.input_ids().astype(np.int64)).to(DEVICE)


def _normal(case: BenchmarkCase, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.from_numpy(x).to(DEVICE) for x in case.normal(*shapes)]


def _product(case: BenchmarkCase, _: Path) -> RunOnce:
    square = (case.seq_len, case.seq_len)
    a, b = (x.to(getattr(torch, case.dtype)) for x in _normal(case, square, square))
    return lambda: _timed(lambda: a @ b, lambda out: _norms((out,)))


def _step(case: BenchmarkCase, weights: Path) -> RunOnce:
    model = _model(weights, torch.float32).train()
    ids = _ids(case)
    model.config.use_cache = False
    if case.remat == "full":
        with warnings.catch_warnings():  # it will have a new name in transformers 6
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True
    )
    autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=case.dtype == "bfloat16")

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        with autocast:
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach(), norm

    return lambda: _timed(call, lambda out: [float(x) for x in out])


def _prefill(case: BenchmarkCase, weights: Path) -> RunOnce:
    model = _model(weights, getattr(torch, case.dtype)).eval()
    ids = _ids(case)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        return model(input_ids=ids, use_cache=True, logits_to_keep=1).logits[0, -1].float()

    def value(logits: torch.Tensor) -> list[float]:
        return [float(logits.logsumexp(-1) - logits.max()), float(logits.argmax())]

    return lambda: _timed(call, value)


class _Timestamps(transformers.StoppingCriteria):
    """Records when each token was there, and never stops the generation."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> Any:
        _synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _decode(case: BenchmarkCase, weights: Path) -> RunOnce:
    model = _model(weights, getattr(torch, case.dtype)).eval()
    ids = _ids(case)
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def run_once() -> tuple[float, list[float]]:
        timestamps = _Timestamps()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=case.new_tokens,
            do_sample=False,
            stopping_criteria=[timestamps],
        )
        seconds = timestamps.times[-1] - timestamps.times[0]
        return seconds, out[:, case.seq_len :].flatten().tolist()

    return run_once


def _attention(case: BenchmarkCase, _: Path) -> RunOnce:
    heads = (case.batch, case.seq_len, case.shape.num_attention_heads, case.shape.head_dim)
    tensors = [
        x.transpose(1, 2).contiguous().to(getattr(torch, case.dtype))
        for x in _normal(case, *[heads] * 4)
    ]
    weight = tensors.pop()
    q, k, v = (x.requires_grad_() for x in tensors)

    def call() -> tuple[torch.Tensor, ...]:
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad((out * weight).float().sum(), (q, k, v))

    return lambda: _timed(call, _norms)


def _loss(case: BenchmarkCase, _: Path) -> RunOnce:
    D, V = case.shape.hidden_size, case.shape.vocab_size
    hidden, kernel = _normal(case, (case.batch, case.seq_len, D), (V, D))
    targets = _ids(case).flatten()
    hidden = hidden.to(getattr(torch, case.dtype)).requires_grad_()
    kernel = (kernel * D**-0.5).requires_grad_()

    def call() -> tuple[torch.Tensor, ...]:
        logits = (hidden @ kernel.to(hidden.dtype).T).float()
        return torch.autograd.grad(cross_entropy(logits.flatten(0, 1), targets), (hidden, kernel))

    return lambda: _timed(call, _norms)


def _norms(gradients: tuple[torch.Tensor, ...]) -> list[float]:
    return [float(x.float().norm()) for x in gradients]


PARTS = {
    "product": _product,
    "step": _step,
    "prefill": _prefill,
    "decode": _decode,
    "attention": _attention,
    "loss": _loss,
}

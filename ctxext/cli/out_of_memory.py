"""Too little memory in one line, with what makes each command need less."""

import re

DIVIDE = "divide it among more devices (--mesh)"
TRAINING = (
    "make --train.batch-size smaller and --train.accumulate larger by the same factor, add "
    "--train.remat full and --train.dtype bfloat16, use --method lora, divide the model among more "
    "devices (--mesh.fsdp), or shorten --train.seq-len; ctxext plan tells what fits"
)
ADVICE = {
    "train": TRAINING,
    "run": TRAINING,
    "demo": "close other programs, or run it on a machine with more memory",
    "eval": f"ask shorter lengths (--seq-len), add --compute-dtype bfloat16, or {DIVIDE}",
    "harness": f"lower --max-length, add --compute-dtype bfloat16, or {DIVIDE}",
    "generate": "shorten the prompt, lower --max-new-tokens, add --compute-dtype bfloat16, or "
    f"{DIVIDE}",
    "export": f"{DIVIDE}, or write it on a machine with more memory",
    "prove": "prove it on a machine with more memory",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or a jax device ran out of memory. A full disk does not count."""
    text = str(error)
    is_of_device = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (
        is_of_device and "RESOURCE_EXHAUSTED" in text and "No space left" not in text
    )


def memory_advice(command: str, error: BaseException) -> str:
    """One line: the size that did not fit, if the error names it, and advice for the command."""
    name = command.rpartition(".")[2].rstrip("_")
    size = re.search(r"\d[\d.,]* ?(?:[KMGTP]?i?B|bytes)\b", str(error))
    what = f" ({size[0]} could not be allocated)" if size else ""
    advice = ADVICE.get(name, "run it on a machine with more memory, or on smaller files")
    return f"out of memory{what}: {advice}"

"""The names of stored tensors: what training tools add to them, and tensors of other models."""

import re
from collections.abc import Collection, Iterable

from ctxext.interop.families.base import Family

WRAPPERS = (
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
"""Modules that torch.compile, DDP, FSDP, activation checkpointing and DeepSpeed put around others.

No tensor of a model has such a part in its name, so that leaving it out is exact.
"""

LONGEST_NAME = 500
"""More characters are a mistake, and no pattern is matched against them."""
OTHER_TENSORS = (
    (
        r"\.lora_(embedding_)?[AB]\b|\.base_layer\.",
        "adapters that are not merged",
        "merge them with PEFT (merge_and_unload, then save_pretrained), then import the result",
    ),
    (
        r"\.(qweight|qzeros|scales|absmax|quant_map|quant_state.*|weight_scale\w*|SCB)$",
        "quantized weights",
        "use the original checkpoint, or save it without quantization",
    ),
    (
        r"^(score|classifier|v_head|value_head|regression_head)\.",
        "the head of a classifier or reward model",
        "use the language model that it was trained from",
    ),
    (
        r"\.(qkv_proj|query_key_value|[Ww]qkv|W_pack|gate_up_proj)\.",
        "fused projections, whose order of rows no key declares",
        "split them into q_proj, k_proj, v_proj, gate_proj and up_proj, or use the checkpoint that "
        "they were fused from",
    ),
    (
        r"(^|\.)(vision_\w+|multi_modal_projector|mm_projector|language_model)\.",
        "a model of images and text",
        "save its language model alone",
    ),
    (
        r"^tok_embeddings\.|\.attention\.wq\.",
        "Meta's names",
        "import Meta's own directory (params.json, consolidated.NN.pth), or convert it with "
        "transformers' convert_llama_weights_to_hf.py",
    ),
    (
        r"\.(q_norm|k_norm|experts|block_sparse_moe)\.",
        "another family of models",
        "take config.json and weights from one checkpoint",
    ),
    (r"\.bias$", "biases", "set attention_bias or mlp_bias in config.json"),
)
"""Names that tell what a file holds instead of the expected tensors: pattern, what, what to do."""


def without_wrappers(name: str) -> str:
    """A name without the parts of `WRAPPERS`. Raises ValueError for one too long to be a name."""
    if len(name) > LONGEST_NAME:
        raise ValueError(f"the tensor name {name:.40} ... has {len(name)} characters")
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def plain_names(stored: Iterable[str], expected: Collection[str], family: Family) -> dict[str, str]:
    """Stored name -> name in the family, without the parts that training tools add.

    As in transformers, the prefix of the inner model may be missing, or be there twice. Names that
    are not `expected` stay as they are, but for wrappers. Raises ValueError for two tensors of one
    name, and for a name that is too long to be one.
    """
    prefix = family.layers.partition(".")[0] + "."
    plain: dict[str, str] = {}
    sources: dict[str, str] = {}
    for name in stored:
        without = without_wrappers(name)
        candidates = (without, prefix + without, without.removeprefix(prefix))
        plain[name] = next((each for each in candidates if each in expected), without)
        if plain[name] in sources:
            raise ValueError(
                f"{sources[plain[name]]} and {name} are both {plain[name]}; remove one of them"
            )
        sources[plain[name]] = name
    return plain


def describe_unknown(names: Iterable[str]) -> str:
    """The kind of file that tensors unknown to the model point to; empty if they point to none."""
    for pattern, what, advice in OTHER_TENSORS:
        for name in names:
            if re.search(pattern, name):
                return f"{name} belongs to {what}: {advice}"
    return ""

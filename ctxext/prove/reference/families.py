"""Families of models as transformers documents them: their decoders, keys and tensor names.

The names on the left are Llama's. ALiBi in MPT follows the code of its authors, which reads
`alibi_bias_max`; transformers 5.23 takes it to be 8 whatever the file says.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from ctxext.prove.reference.llama import Decoder

Config = dict[str, Any]


@dataclasses.dataclass
class Layout:
    """What a config.json of some family says, in Llama's terms.

    `config`: with Llama's keys. `names`: patterns of Llama's tensor names, and the family's.
    `biases`: the modules that have biases.
    """

    config: Config
    decoder: Decoder
    names: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    biases: str = r"$^"
    per_group: bool = False
    """The rows of a fused matrix go by key-value head, otherwise by query, key and value."""

    def stored(self, name: str) -> str:
        """The family's name of a tensor that Llama calls `name`."""
        for pattern, own in self.names:
            name = re.sub(pattern, own, name)
        return name

    def rows(self, name: str, fused: np.ndarray) -> np.ndarray:
        """The rows of a tensor that Llama calls `name` in the matrix that holds q, k and v."""
        N = self.config["num_attention_heads"]
        K = self.config["num_key_value_heads"]
        part = "qkv".index(name.split("self_attn.")[1][0])
        if not self.per_group:
            ends = np.cumsum([0, N, K, K]) * (len(fused) // (N + 2 * K))
            return fused[ends[part] : ends[part + 1]]
        of_group = fused.reshape(K, N // K + 2, -1, *fused.shape[1:])
        heads = (slice(None, -2), slice(-2, -1), slice(-1, None))[part]
        return of_group[:, heads].reshape(-1, *fused.shape[1:])


def layout(config: Config) -> Layout:
    """The layout of a config.json. Raises ValueError for a family that is not known here."""
    family = config["model_type"]
    if family not in LAYOUTS:
        raise ValueError(f"this reader does not know model_type {family!r}")
    return LAYOUTS[family](config)


def _llama(config: Config) -> Layout:
    flags = {"attention_bias": r"self_attn\.", "mlp_bias": r"mlp\."}
    patterns = [pattern for flag, pattern in flags.items() if config.get(flag)]
    return Layout(config, Decoder(), biases="|".join(patterns) or r"$^")


def _window_of(config: Config, sliding: bool) -> int | None:
    return config["sliding_window"] if sliding else None


def _windows(config: Config, default: list[bool]) -> list[int | None]:
    if config.get("layer_types"):
        default = [name == "sliding_attention" for name in config["layer_types"]]
    return [_window_of(config, sliding) for sliding in default]


def _mistral(config: Config) -> Layout:
    config = {"sliding_window": 4096, **config}
    all_layers = [config["sliding_window"] is not None] * config["num_hidden_layers"]
    return Layout(config, Decoder(windows=_windows(config, all_layers)))


def _ministral3(config: Config) -> Layout:
    rope = config["rope_parameters"]
    temperature = (rope["llama_4_scaling_beta"], rope["original_max_position_embeddings"])
    windows = [config.get("sliding_window")] * config["num_hidden_layers"]
    return Layout(config, Decoder(windows=windows, temperature=temperature))


def _qwen_windows(config: Config) -> list[int | None]:
    config = {"sliding_window": 4096, **config}
    uses = config.get("use_sliding_window", False)
    first = config.get("max_window_layers", 28)
    return _windows(config, [uses and i >= first for i in range(config["num_hidden_layers"])])


def _qwen2(config: Config) -> Layout:
    decoder = Decoder(windows=_qwen_windows(config))
    return Layout(config, decoder, biases=r"self_attn\.[qkv]_proj")


def _qwen3(config: Config) -> Layout:
    biases = _llama({**config, "mlp_bias": False}).biases
    decoder = Decoder(windows=_qwen_windows(config), qk_norm=True)
    return Layout({"head_dim": 128, **config}, decoder, biases=biases)


def _smollm3(config: Config) -> Layout:
    config = {"tie_word_embeddings": True, **config}
    if "rope_theta" not in {**config, **(config.get("rope_parameters") or {})}:
        config["rope_theta"] = 2000000.0
    count = config["num_hidden_layers"]
    every = config.get("no_rope_layer_interval", 4)
    flags = config.get("no_rope_layers") or [(i + 1) % every != 0 for i in range(count)]
    rotates = [bool(flag) for flag in flags]
    uses = config.get("use_sliding_window", False)
    windows = _windows(config, [uses and not rotates[i] for i in range(count)])
    return Layout(config, Decoder(rotates=rotates, windows=windows), biases=_llama(config).biases)


def _falcon(config: Config) -> Layout:
    heads = config["num_attention_heads"]
    is_new = config.get("new_decoder_architecture", False)
    parallel = is_new or config.get("parallel_attn", True)
    one_norm = config.get("num_ln_in_parallel_attn") == 1 if is_new else parallel
    kv = config.get("num_kv_heads") or heads
    if not is_new:
        kv = 1 if config.get("multi_query", True) else heads
    names = [
        (r"model\.embed_tokens", "transformer.word_embeddings"),
        (r"model\.norm\.", "transformer.ln_f."),
        (r"model\.layers", "transformer.h"),
        (r"self_attn\.[qkv]_proj", "self_attention.query_key_value"),
        (r"self_attn\.o_proj", "self_attention.dense"),
        ("up_proj", "dense_h_to_4h"),
        ("down_proj", "dense_4h_to_h"),
    ]
    if parallel and not one_norm:
        names += [("input_layernorm", "ln_attn"), ("post_attention_layernorm", "ln_mlp")]
    translated = {
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        **config,
        "num_key_value_heads": kv,
        "rms_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "hidden_act": config.get("activation", "gelu"),
    }
    decoder = Decoder(layer_norm=True, gated=False, parallel=parallel, one_norm=one_norm)
    biases = "norm|proj" if config.get("bias") else "norm"
    return Layout(translated, decoder, names, biases, per_group=True)


def _mpt(config: Config) -> Layout:
    attention = config.get("attn_config") or {}
    translated = {
        "tie_word_embeddings": True,
        **config,
        "hidden_size": config["d_model"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": config["n_heads"],
        "rms_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "hidden_act": "gelu",
    }
    names = [
        (r"model\.embed_tokens", "transformer.wte"),
        (r"model\.norm\.", "transformer.norm_f."),
        (r"model\.layers", "transformer.blocks"),
        ("input_layernorm", "norm_1"),
        ("post_attention_layernorm", "norm_2"),
        (r"self_attn\.[qkv]_proj", "attn.Wqkv"),
        (r"self_attn\.o_proj", "attn.out_proj"),
        (r"\.mlp\.", ".ffn."),
    ]
    decoder = Decoder(
        layer_norm=True,
        gated=False,
        clip=attention.get("clip_qkv") or None,
        alibi=attention.get("alibi_bias_max", 8),
    )
    return Layout(translated, decoder, names)


LAYOUTS = {
    "llama": _llama,
    "mistral": _mistral,
    "ministral": _mistral,
    "ministral3": _ministral3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "smollm3": _smollm3,
    "falcon": _falcon,
    "mpt": _mpt,
}

"""Programs that are known to read the rope parameters of a config.json otherwise than transformers.

Each rule names its source. Those of transformers are tested in it (`make check`), those of
llama.cpp in it (`make slow`); the others come from reading the code or the reports of their users.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class KnownIncompatibility:
    """A reader, and what goes wrong when it runs this export."""

    reader: str
    effect: str
    source: str
    """Where this is known from: an address, or the tests that show it."""


TESTED = "tested in it, make check"
TESTED_IN_LLAMA_CPP = "tested in it, make slow"
VLLM_YARN = "https://github.com/vllm-project/vllm: pull 56446, issue 48621"
VLLM_CODE = "vLLM 0.33, vllm/model_executor/layers/rotary_embedding"
VLLM_LENGTH = "vLLM 0.33, vllm/config/model.py"
SGLANG = (
    "https://github.com/sgl-project/sglang/blob/108c36c008291c3a1ea524342837056c503c5724"
    "/python/sglang/srt/layers/rotary_embedding/factory.py"
)
SGLANG_LONGROPE = (
    "https://github.com/sgl-project/sglang/blob/0b1fd02d56f010c589968aa6e05534e10c2d4bf3"
    "/python/sglang/srt/layers/rotary_embedding/rope_variant.py"
)
SGLANG_CODE = "SGLang 0.5.23, sglang/srt/layers/rotary_embedding"
SGLANG_LENGTH = "SGLang 0.5.23, sglang/srt/utils/hf_transformers/common.py"
MLX_ATTENTION_FACTOR = "https://github.com/ml-explore/mlx-lm/pull/1507"
MLX = (
    "https://github.com/ml-explore/mlx-lm/blob/060aa434944981d9d20ff39d118e787fc1c78d3d"
    "/mlx_lm/models/rope_utils.py"
)
MLX_LLAMA = (
    "https://github.com/ml-explore/mlx-lm/blob/17772c052c3d9b9bc16e052fcd75c2845dda4568"
    "/mlx_lm/models/llama.py"
)
EXLLAMA = (
    "https://github.com/turboderp-org/exllamav3/blob/04458205486c8b5f76f556e28d575c0014884835"
    "/exllamav3/util/rope.py"
)
EXLLAMA_MSCALE = "https://github.com/turboderp-org/exllamav3/issues/259"
CONVERTER = "convert_hf_to_gguf.py of llama.cpp"


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """The parts of a config.json that say how positions are rotated."""

    spec: dict[str, Any]
    """`rope_parameters`, or `rope_scaling` of transformers 4."""
    rope_type: str
    window: int | None
    """`max_position_embeddings`."""
    outer_original: int | None
    """`original_max_position_embeddings` next to `spec`, not in it."""
    only_new: bool
    """Whether it is written in the form of transformers 5 only."""

    @staticmethod
    def of(config: dict[str, Any]) -> "RopeConfig":
        old = config.get("rope_scaling") or {}
        new = config.get("rope_parameters") or {}
        spec = new or old
        rope_type = spec.get("rope_type") or spec.get("type") or "default"
        only_new = bool(new) and not old and "rope_theta" not in config
        window = config.get("max_position_embeddings")
        outer_original = config.get("original_max_position_embeddings")
        return RopeConfig(spec, rope_type, window, outer_original, only_new)

    @property
    def original(self) -> float:
        """The window of pre-training; without it, readers take the extended one."""
        return self.spec.get("original_max_position_embeddings") or self.window or 1

    @property
    def stretch(self) -> float | None:
        """max_position_embeddings / original_max_position_embeddings."""
        original = self.spec.get("original_max_position_embeddings")
        return self.window / original if self.window and original else None

    @property
    def factor(self) -> float:
        return self.spec.get("factor") or self.stretch or 1.0


def rope_incompatibilities(config: dict[str, Any]) -> Iterator[KnownIncompatibility]:
    """What is known of readers of this config.json. Values are numbers where they must be."""
    if is_by_layer_type(config):
        effect = "knows rope_parameters by layer type in other families only: it stops"
        yield KnownIncompatibility("transformers 5", effect, TESTED)
        effect = "does not know rope_parameters: it takes theta to be 10000, without a scaling"
        yield KnownIncompatibility("transformers 4", effect, TESTED)
        return
    rope = RopeConfig.of(config)
    yield from _of_the_form(config, rope)
    rules = {
        "linear": _linear,
        "yarn": _yarn,
        "longrope": _longrope,
        "su": _longrope,
        "dynamic": _dynamic,
        "proportional": _proportional,
    }
    if rope.rope_type in rules:
        yield from rules[rope.rope_type](rope)


def is_by_layer_type(config: dict[str, Any]) -> bool:
    """Whether each type of layers has its rope_parameters."""
    return not {"full_attention", "sliding_attention"}.isdisjoint(
        config.get("rope_parameters") or {}
    )


def _of_the_form(config: dict[str, Any], rope: RopeConfig) -> Iterator[KnownIncompatibility]:
    new = config.get("rope_parameters") or {}
    if new and rope.rope_type != "default" and not config.get("rope_scaling"):
        effect = "does not know rope_parameters: it runs without the scaling and without a warning"
        yield KnownIncompatibility("transformers 4", effect, TESTED)
        yield KnownIncompatibility("mlx-lm", effect, MLX_LLAMA)
    if rope.only_new and new.get("rope_theta", 10000.0) != 10000.0:
        effect = "does not know rope_parameters: it takes theta to be 10000"
        yield KnownIncompatibility("transformers 4", effect, TESTED)
        yield KnownIncompatibility("mlx-lm", effect, MLX_LLAMA)


def _linear(rope: RopeConfig) -> Iterator[KnownIncompatibility]:
    original = rope.spec.get("original_max_position_embeddings")
    stated = original or rope.outer_original
    if not rope.window or not stated or stated >= rope.window:
        return
    longest = round(rope.factor * rope.window)
    effect = f"takes texts of {longest} tokens, max_position_embeddings times the factor once more"
    yield KnownIncompatibility("vLLM", f"{effect}; give --max-model-len {rope.window}", VLLM_LENGTH)
    if original is None:
        yield KnownIncompatibility(
            "SGLang", f"{effect}; give --context-length {rope.window}", SGLANG_LENGTH
        )


Temperature = Callable[[RopeConfig], float]
"""A reader's factor on cos and sin."""
Temperatures = Sequence[tuple[str, Temperature, str]]
"""Of several readers, each with its name and the source."""


def _wrong_factors(
    rope: RopeConfig, right: float, temperatures: Temperatures
) -> Iterator[KnownIncompatibility]:
    """Yield the readers whose factor is another than the right one."""
    name = "longrope" if rope.rope_type == "su" else rope.rope_type
    for reader, temperature, source in temperatures:
        wrong = temperature(rope)
        if abs(wrong - right) > 1e-4:
            effect = f"runs {name} with the attention factor {wrong:.4f} instead of {right:.4f}"
            yield KnownIncompatibility(reader, effect, source)


def yarn_default(factor: float, mscale: float = 1.0) -> float:
    """0.1 mscale ln s + 1 (arXiv 2309.00071)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_right(rope: RopeConfig) -> float:
    """The factor on cos and sin, as transformers computes it."""
    spec = rope.spec
    if spec.get("attention_factor") is not None:
        return float(spec["attention_factor"])
    if spec.get("mscale") and spec.get("mscale_all_dim"):
        return _ratio(rope.factor, spec["mscale"], spec["mscale_all_dim"])
    return yarn_default(rope.factor)


def _ratio(factor: float, mscale: float, mscale_all_dim: float) -> float:
    return yarn_default(factor, mscale) / yarn_default(factor, mscale_all_dim)


def _vllm_before(rope: RopeConfig) -> float:
    return rope.spec.get("attn_factor", 1.0) * yarn_default(rope.factor)


def _sglang(rope: RopeConfig) -> float:
    mscale, all_dim = rope.spec.get("mscale"), rope.spec.get("mscale_all_dim")
    own = yarn_default(rope.factor)
    if mscale is not None and all_dim is not None:
        own = _ratio(rope.factor, mscale, all_dim)
    return rope.spec.get("attn_factor", 1.0) * own


def _mlx_before(rope: RopeConfig) -> float:
    return _ratio(rope.factor, rope.spec.get("mscale", 1.0), rope.spec.get("mscale_all_dim", 0.0))


def _mlx(rope: RopeConfig) -> float:
    given = rope.spec.get("attention_factor")
    return _mlx_before(rope) if given is None else float(given)


def _exllama(rope: RopeConfig) -> float:
    given = rope.spec.get("attention_factor")
    if given is not None:
        return float(given)
    # What scales queries by their position replaces the factor there.
    if rope.spec.get("llama_4_scaling_beta"):
        return 1.0
    return yarn_default(rope.stretch or rope.factor)


def _llama_cpp_converter(rope: RopeConfig) -> float:
    return yarn_default(rope.factor)


YARN_TEMPERATURES: Temperatures = (
    ("vLLM before September 2026", _vllm_before, VLLM_YARN),
    ("SGLang", _sglang, SGLANG),
    ("mlx-lm before July 2026", _mlx_before, MLX_ATTENTION_FACTOR),
    ("mlx-lm", _mlx, MLX),
    ("exllamav3 after 1.2.1", _exllama, EXLLAMA_MSCALE),
    ("llama.cpp's converter", _llama_cpp_converter, CONVERTER),
)
"""How each reader computes the factor on cos and sin of yarn."""


def _yarn(rope: RopeConfig) -> Iterator[KnownIncompatibility]:
    yield from _wrong_factors(rope, _yarn_right(rope), YARN_TEMPERATURES)
    extended = round(rope.factor * rope.original)
    if rope.window and rope.window < extended:
        effect = (
            f"accepts no text of more than {rope.window} tokens, where factor x L is {extended}"
        )
        yield KnownIncompatibility("vLLM 0.33", effect, VLLM_LENGTH)
        yield KnownIncompatibility("SGLang", effect, SGLANG_LENGTH)
    if rope.stretch and abs(rope.stretch - rope.factor) > 1e-6:
        yield KnownIncompatibility(
            "exllamav3",
            "takes the factor to be max_position_embeddings / original_max_position_embeddings, "
            f"{rope.stretch:g} instead of {rope.factor:g}",
            EXLLAMA,
        )
    if rope.spec.get("truncate") is False:
        effect = "rounds the bounds of yarn's ramp to whole pairs, whatever truncate says"
        yield KnownIncompatibility("mlx-lm", effect, MLX)
        yield KnownIncompatibility("llama.cpp's converter", effect, CONVERTER)
    betas = (rope.spec.get("beta_fast") or 32, rope.spec.get("beta_slow") or 1)
    if betas != (32, 1):
        yield KnownIncompatibility(
            "llama.cpp",
            "runs yarn with the betas 32 and 1 of its programs; write the file with --to gguf",
            TESTED_IN_LLAMA_CPP,
        )


def _longrope(rope: RopeConfig) -> Iterator[KnownIncompatibility]:
    if rope.rope_type == "su":
        effect = "does not know the name su and stops; it is longrope"
        yield KnownIncompatibility("transformers 5", effect, TESTED)
        yield KnownIncompatibility("mlx-lm", effect, MLX)
    if rope.spec.get("short_factor") != rope.spec.get("long_factor"):
        switches = "changes to the long list when a text grows beyond the window"
        yield KnownIncompatibility(
            "transformers",
            f"{switches}, in the middle of it: keys in the cache keep the short one's angles",
            TESTED,
        )
        yield KnownIncompatibility(
            "SGLang", f"{switches}, and so for all texts of its batch", SGLANG_LONGROPE
        )
        always = "takes the long list for short texts too"
        yield KnownIncompatibility("vLLM", f"{always}, once max_model_len is larger", VLLM_CODE)
        yield KnownIncompatibility("mlx-lm", always, MLX)
        yield KnownIncompatibility("exllamav3", always, EXLLAMA)
    if rope.window and rope.outer_original and rope.outer_original < rope.window:
        yield KnownIncompatibility(
            "vLLM",
            f"takes texts of {rope.outer_original} tokens only; give --max-model-len {rope.window}",
            VLLM_LENGTH,
        )
    yield from _wrong_factors(rope, _longrope_right(rope), LONGROPE_TEMPERATURES)
    if rope.spec.get("attention_factor") is not None:
        yield KnownIncompatibility(
            "llama.cpp's converter",
            "writes the divisors as type longrope; write the file with --to gguf",
            CONVERTER,
        )


def longrope_default(stretch: float, original: float) -> float:
    """sqrt(1 + ln s / ln L) (arXiv 2402.13753)."""
    return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))


def _longrope_right(rope: RopeConfig) -> float:
    """The factor on cos and sin, as transformers computes it."""
    given = rope.spec.get("attention_factor")
    if given is not None:
        return float(given)
    return longrope_default(rope.factor, rope.original)


def _longrope_own(rope: RopeConfig) -> float:
    return longrope_default(rope.stretch or rope.factor, rope.original)


def _longrope_mscale(rope: RopeConfig) -> float:
    given = rope.spec.get("long_mscale")
    return _longrope_own(rope) if given is None else float(given)


LONGROPE_TEMPERATURES: Temperatures = (
    ("vLLM", _longrope_mscale, VLLM_CODE),
    ("SGLang", _longrope_mscale, SGLANG_LONGROPE),
    ("mlx-lm", _longrope_own, MLX),
    ("exllamav3", _longrope_own, EXLLAMA),
)
"""How each reader computes the factor on cos and sin of longrope."""


def _dynamic(rope: RopeConfig) -> Iterator[KnownIncompatibility]:
    frozen = "freezes the frequencies at factor x L"
    yield KnownIncompatibility(
        "vLLM",
        "leaves the scaling out in version 0.33, which has angles for L tokens only; earlier ones "
        "freeze the frequencies at factor x L",
        VLLM_CODE,
    )
    yield KnownIncompatibility("SGLang", frozen, SGLANG)
    yield KnownIncompatibility("mlx-lm", "does not know rope_type dynamic and stops", MLX)
    yield KnownIncompatibility("exllamav3", "does not know rope_type dynamic and stops", EXLLAMA)
    yield KnownIncompatibility(
        "llama.cpp's converter",
        "leaves dynamic scaling out: the file runs without it",
        CONVERTER,
    )


def _proportional(rope: RopeConfig) -> Iterator[KnownIncompatibility]:
    if (rope.spec.get("factor") or 1.0) != 1.0:
        effect = "runs proportional without its factor"
        yield KnownIncompatibility("vLLM", effect, VLLM_CODE)
        yield KnownIncompatibility("SGLang", effect, SGLANG_CODE)

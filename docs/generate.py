"""Write docs/experiment.md, docs/methods.md and docs/families.md from the code: `make docs`. A test
fails when they are out of date."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import pkgutil
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctxext.model.config import LlamaConfig

HERE = Path(__file__).parent

STANDARD = {
    "attention_factor": "m, the factor on queries and keys; None: by the method's formula.",
    "batch_tokens": "About how many tokens go through the model at once.",
    "beta_fast": "Turns per window above which a pair keeps its frequency.",
    "beta_slow": "Turns per window below which a pair is fully interpolated.",
    "factor": "The target window divided by the window of pre-training.",
    "max_new_tokens": "Tokens kept free for the answer, at least.",
    "max_position_embeddings": "L', the target window in tokens.",
    "num_documents": "Documents that are read.",
    "seed": "The seed of everything drawn.",
    "seq_len": "A length in tokens.",
    "seq_lens": "The lengths in tokens.",
    "source": "Where the text is from.",
    "truncate": "Round the ends of the ramp outward to whole pairs.",
    "wording": "The text of the prompt; another one is read from a file.",
}
"""What a field of this name means in every class that does not say otherwise."""


def field_docs(cls: type) -> dict[str, str]:
    """The string after each field of a dataclass, base classes included, as one line."""
    docs: dict[str, str] = {}
    for base in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for node, after in zip(definition.body, definition.body[1:], strict=False):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                docs[node.target.id] = " ".join(str(after.value.value).split())
    return docs


def type_text(annotation: Any) -> str:
    """A type as a reader of an experiment file writes it."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if typing.get_origin(annotation) is not None:
        text = str(annotation)
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", text)
    if typing.get_origin(annotation) is typing.Literal:
        text = " or ".join(json.dumps(value) for value in typing.get_args(annotation))
    return text


def default_text(field: dataclasses.Field) -> str:
    """The default of a field as code; "required" where there is none."""
    if field.default is not dataclasses.MISSING:
        default = repr(field.default)
    elif field.default_factory is not dataclasses.MISSING:
        default = repr(field.default_factory())
    else:
        return "required"
    return f"`{default}`" if len(default) <= 80 else f"`{default.split('(')[0]}(...)`"


def summary(cls: type) -> str:
    """The docstring of a class without its indentation, as Markdown: formulas keep their _ and
    *."""
    parts = inspect.cleandoc(cls.__doc__ or "").split("`")
    parts[::2] = [re.sub(r"([_*<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def table(cls: type, prefix: str = "") -> Iterator[str]:
    """One row per field of a dataclass: name, type, default, meaning."""
    docs = field_docs(cls)
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    if not fields:
        return
    yield "| field | type | default | meaning |"
    yield "|---|---|---|---|"
    for field in fields:
        meaning = docs.get(field.name) or STANDARD.get(field.name)
        if meaning is None:
            raise ValueError(f"{cls.__name__}.{field.name} has no docstring: write one after it")
        name = f"`{prefix}{field.name}`"
        cells = [name, type_text(hints[field.name]), default_text(field), meaning]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def concrete(base: type) -> list[type]:
    """Every final dataclass of the package below a base class, by name."""
    found = {base} | {below for child in base.__subclasses__() for below in concrete(child)}
    # A class whose module was unloaded, as by a test, is still known to its base.
    loaded = [c for c in found if c.__module__ in sys.modules]
    ours = [c for c in loaded if c.__module__.startswith("ctxext.") and not inspect.isabstract(c)]
    return sorted((c for c in ours if not c.__name__.startswith("_")), key=lambda c: c.__name__)


def experiment_page() -> str:
    """Every field of an experiment and of what it is made of."""
    from ctxext import data, evals, tasks
    from ctxext.data import Source
    from ctxext.evals.base import Eval
    from ctxext.evals.expected import Expected
    from ctxext.experiment import Experiment, Export, Train
    from ctxext.losses import Loss
    from ctxext.model.config import LlamaConfig
    from ctxext.model.parts import Parts
    from ctxext.model.trainable import Trainable
    from ctxext.optim import Optim
    from ctxext.parallel.mesh import Mesh
    from ctxext.tasks import Task

    for package in (data, evals, tasks):  # importing a module defines its classes
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    lines = [
        "# Every field of an experiment",
        "",
        "Generated by `make docs` from the docstrings; do not edit.",
        "",
        "An experiment is a frozen value in a Python file, such as those in `experiments/`. On the",
        "command line every leaf is an option: `--train.steps 400`, `--optim.learning-rate 1e-5`.",
        "Methods are listed in [methods.md](methods.md).",
        "",
    ]
    for title, cls, prefix in (
        ("Experiment", Experiment, ""),
        ("Train", Train, "train."),
        ("Optim", Optim, "optim."),
        ("Mesh", Mesh, "mesh."),
        ("Export", Export, "export."),
        ("Expected", Expected, ""),
        ("LlamaConfig", LlamaConfig, "model."),
        ("Parts", Parts, "model.parts."),
    ):
        lines += [f"## {title}", "", summary(cls), "", *table(cls, prefix)]
    for title, base in (
        ("What is trained", Trainable),
        ("Losses", Loss),
        ("Data sources", Source),
        ("Evaluations", Eval),
        ("Tasks", Task),
    ):
        lines += [f"## {title}", "", summary(base), ""]
        for cls in concrete(base):
            lines += [f"### {cls.__name__}", "", summary(cls), "", *table(cls)]
    return "\n".join(lines).rstrip() + "\n"


LEFT_OUT = """
SkipAlign (arXiv 2405.03939), which skips positions inside instructions and before answers, is not
here: no code of it was found in public, and of the paper only the abstract, which does not say how
the skips are drawn.
"""
FREQUENCIES_GUIDE = """
**Which frequencies to try when.** Begin with `yarn`: of the static ones it does best on the bundled
model, zero-shot and trained, and every reader of a checkpoint knows it. Then:

* *Short texts must stay exactly as they were, and nothing is trained:* `dynamic-yarn` and the other
  dynamic forms change nothing up to L tokens. Most formats cannot hold them.
* *The loss is good, but what is far away is not found:* `cope` or `hard-clip` over the method that
  you have. The slowest pairs saw a part of one turn in pre-training; slowed down or stopped, they
  meet no new angle. Their 20 pairs are 20 of 64, but also 20 of 32: with heads of 64, try
  `--num-pairs` 10 too. Train it: on the bundled base, 10 pairs without training, CoPE over YaRN
  reads 5 of 20 in the window and none beyond, where YaRN alone reads 20, 19 and 13 of 20.
* *The model will be trained at a few lengths and used at others:* `resonance` over `yarn`. Fast
  pairs then repeat the very angles that they met in training. Pair 0 changes most, from 2 pi to 6
  tokens. Without training it is as good as YaRN on the bundled base up to a factor of 4, and at 8
  not shown to be worse.
* *Another compromise of NTK and linear:* `ntk-mixed`. Its authors use it together with
  `--method log-temperature`. Alone and without training it is no better than `ntk` on the bundled
  base: 12 of 20 at a factor of 2, none at 4.
* *Llama 2 7B, Mistral 7B or Llama 3 8B, and far more than 16 windows:* `long-rope` with published
  divisors. They were searched for these models, and are refused for others.
* *Another model, a factor of 8 or more, and training:* `long-rope2`. From the critical pair on its
  divisors exceed the factor, where those of YaRN stop at it, and plain RoPE up to L keeps short
  texts.
* *A model with windows in some layers:* `full-attention-only` around the method that you have, as
  Olmo 3 and Gemma 3 do it. A window never shows a distance that pre-training did not.
* *Divisors of your own search:* `custom` for one list, `long-rope` for two, or `long-rope2` with
  `--slow-divisors`, which are searched from the critical pair on and filled in below.
* *Long texts are too expensive to train on:* `nope`, which is DroPE: drop the rotation, then
  recalibrate at the old length, `--method nope --train.seq-len L`. It takes many more steps than
  the others; before them the model is lost.

`cope`, `hard-clip`, `resonance` and `full-attention-only` wrap another scaling, which `--inner`
names; the fields of both are options: `--method cope --inner yarn --factor 8`. Length, factor and m
are those of the wrapped scaling. Without `--inner` they wrap that of the checkpoint. A wrapper can
wrap another one (`--method hard-clip --inner resonance --inner.inner yarn --factor 8`), and so can
a class of your own (`FILE.py:Class`) that extends `RopeWrapper`.
"""


ATTENTION_GUIDE = """
**Which attention to try when.** These methods change how a model is run, so that no format holds
them: export with causal attention and choose the method again when loading. `s2-attn` is for
training, `ssmax` and `alibi` need it, and all others work without.

* *Nothing may be trained, and far tokens have to be found:* `rerope` or `dca`, each with the scale
  of the queries in its released code, `--training-length L`. They have no factor. On the bundled
  base and without training, ReRoPE with w = L / 2 reads 20, 20 and 19 of 20 passkeys at two, four
  and eight windows, and DCA 20, 20 and 18; without the scale 19, 16 and 6, and 19, 15 and 3. YaRN
  with the factor of each length reads 15, 13 and 9. Under ReRoPE all tokens beyond w are at one
  distance; DCA keeps the order within a chunk.
* *The same, and the order of far tokens matters:* `leaky-rerope` or `self-extend`. Their factor,
  `--compression` or `--group-size`, has to keep distances below L: twice the factor with w = L / 2
  or L / 4. They then read 20 of 20 at two windows and 16 at four, and longer texts not at all.
* *Texts up to L must stay exactly as they were:* `jet-long-freq`, which reads 16, 15 and 8 of 20
  there, or `jet-long`, which reads 17, 3 and none. Both follow the length and need no factor.
* *Text without end, of which the near past matters:* `streaming-llm` or `lm-infinite`. The loss
  stays that of a window at every length, and nothing farther away is found.
* *The end of the trained window is used badly:* `string`. It is for texts up to L.
* *Attention is spread over too many tokens:* `log-temperature`, around what you have: `--method
  log-temperature --training-length 4096 --inner dca --chunk-size 3072 --local-window 512`. Alone
  it does not make a model read farther.
* *Training at the new length is too expensive:* `s2-attn`. The run that trains with it evaluates,
  exports and generates with full attention.
"""


PUBLISHED_NOTES = """
The number in front is the length that a list was searched for, and the last one that of the
fine-tuned checkpoint; `ft` is the list of the fine-tuning. On short texts the authors give the
fine-tuned model its `4k` list:
`--method longrope --factor 32 --short-factor 4k_la2_128k --long-factor ft_la2_128k`. Llama 3's was
published with `--short-factor plain`. Mistral's factors count from 4,096 tokens. MIT License,
Copyright (c) Microsoft Corporation; sources and license are in
`ctxext/assets/longrope_divisors.json`.
"""


def published_lists() -> list[str]:
    """The names of the published divisors, by model."""
    from ctxext.methods.published_divisors import published_divisors

    lines = ["Published divisors, by the model that they were searched for and the factor:", ""]
    lists = published_divisors().items()
    for model in dict.fromkeys(row.model for _, row in lists):
        named = [f"`{name}` ({row.factor:g})" for name, row in lists if row.model == model]
        lines.append(f"* {model}: {', '.join(named)}.")
    return [*lines, *PUBLISHED_NOTES.splitlines(), ""]


def methods_page() -> str:
    """Every method: paper, fields, and the formats that can represent it."""
    from ctxext.cli.main import main
    from ctxext.cli.support_matrix import COLUMNS, LEGEND
    from ctxext.methods import find

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["methods", "--json"]) == 0
    methods = json.loads(printed.getvalue())
    lines = [
        "# Methods",
        "",
        "Generated by `make docs`; do not edit. `ctxext methods` prints the same in a terminal;",
        "`--json` adds the reason of every refusal. Your own: [own-methods.md](own-methods.md).",
        "",
        *(f"* {line}" for line in LEGEND),
        "",
        "In the formulas, L is the window of pre-training and L' the target window, in tokens;",
        "l is the length of a text and T of a row; d is the head dimension. Pair i rotates by f_i",
        "per position, which is f_i L / 2 pi turns in a window. A method gives f'_i, and m, the",
        "factor on queries and keys, so that logits scale by m^2. r_i is YaRN's ramp: 0 above",
        "`beta_fast` turns, 1 below `beta_slow`. p is a position, and D the distance from a query",
        "back to a key.",
        "",
    ]
    titles = {"rope": "Frequencies", "attention": "Attention", "positions": "Training positions"}
    for seam, title in titles.items():
        chosen = [method for method in methods if method["seam"] == seam]
        lines += [f"## {title}", "", "| method | arXiv | " + " | ".join(COLUMNS) + " |"]
        lines += ["|---|---|" + "---|" * len(COLUMNS)]
        for method in chosen:
            cells = [method["formats"][name]["how"] for name in COLUMNS]
            paper = method["paper"]
            link = f"[{paper}](https://arxiv.org/abs/{paper})" if paper else ""
            lines += [f"| `{method['name']}` | {link} | " + " | ".join(cells) + " |"]
        lines += [""]
        if seam == "rope":
            lines += [*FREQUENCIES_GUIDE.strip().splitlines(), ""]
        if seam == "attention":
            lines += [*ATTENTION_GUIDE.strip().splitlines(), ""]
        if seam == "positions":
            lines += [*LEFT_OUT.strip().splitlines(), ""]
        for method in chosen:
            cls = find(method["name"])
            lines += [f"### {method['name']}", "", summary(cls), "", *table(cls)]
            if method["name"] == "long-rope":
                lines += published_lists()
    return "\n".join(lines).rstrip() + "\n"


FAMILIES_INTRO = """# Families of models

Generated by `make docs` from the code; do not edit.

Every family is read from Hugging Face's directories, evaluated, trained, adapted and written in its
own form; an export is proven by the reference reader in numpy and by transformers. A setting of a
model's files that the decoder does not compute is refused by its key; so are methods and formats
that do not know the family. Scalings of rotary embeddings need rotary layers; attention methods
also work with ALiBi, by the distances that they give it.
"""
FAMILIES_NOTES = """
A Mistral whose `config.json` has `layer_types`, with windows in some layers only, is read and
written as a Ministral, as transformers 5 reads it. Falcon RW (`alibi` true) is refused:
transformers rounds its bias to bfloat16 and, in eager attention, adds it twice. For MPT,
`alibi_bias_max` counts, as in the code of its authors; transformers takes it to be 8, so that a
proof leaves transformers out where it is not. Layers that differ in their windows or their rotation
share one compiled program. A Ministral 3 has its temperature by its own `config.json`, and the
method `ministral3-temperature` on a Llama is exported as one. The fused kernels of TPUs and GPUs
leave layers that differ in their windows, and ALiBi, to the kernel `blocked`.

In a Ministral, Qwen2 or Qwen3 with windows in some layers, `rope_parameters` may be by layer type
(`full_attention`, `sliding_attention`), as Gemma 3 and Olmo 3 have them: each type with its theta,
and the scaling in the layers with full attention only (`full-attention-only`) or in both. It is
written so where the types differ; a proof then leaves transformers out, whose 5.23 reads one
`rope_parameters` for all layers in these families.

The columns are those of one published shape of each family. In GGUF a family is what llama.cpp's
architecture computes, and a model that differs from it is refused by name. A sliding window must
hide no token of the declared context (that of Ministral 8B does not). In a SmolLM3, every fourth
layer does not rotate, and no other. A Falcon has attention and MLP in parallel. A file of
architecture `llama` is read as a Llama, also where it was a Mistral. Only that architecture loads
divisors of frequencies (`rope_freqs.weight`); the others know linear scaling, YaRN with the paper's
constants, and any theta. llama.cpp computes GELU by its approximation with tanh, so that its logits
of Falcon and MPT differ by about a thousandth, and a proof says so. Meta's format holds Llamas
alone; Mistral's own form (`params.json` next to `consolidated.safetensors`) is another one, and is
not read.

Falcon and MPT hold queries, keys and values as one matrix. Adapters of `q_proj`, `k_proj` and
`v_proj` are written as one adapter of it, whose rank is the sum of theirs; PEFT's own adapter of
that matrix is read as one of each, with a common A. Both are exact, with DoRA too.

`AutoTokenizer` of transformers 5 cuts the text of every Qwen2 by Qwen's rules, whatever its
`tokenizer.json` says. For a Qwen2 with another tokenizer, such as a distilled model's, a proof
compares the ids of `PreTrainedTokenizerFast`, which reads the file, and names `AutoTokenizer` among
the readers that get it wrong.

Adding a family: a file in `ctxext/interop/families/`, which is found there and also says what runs
it in llama.cpp; and, as the reader of proofs shares no code with it, its layout in
`ctxext/prove/reference/families.py` and, for GGUF, in `gguf_architectures.py` next to it.
"""
PART_NAMES = {
    "norm": "LayerNorm",
    "norm_bias": "norms with a bias",
    "gated": "MLP without a gate",
    "qkv_bias": "biases on q, k and v",
    "qk_norm": "q and k normed per head",
    "clip_qkv": "q, k and v clipped",
    "parallel": "attention and MLP in parallel",
    "shared_norm": "one norm for both",
    "sliding_window": "a sliding window",
    "windowed": "windows in some layers",
    "rotary": "layers that do not rotate",
    "alibi_exponent": "ALiBi",
    "temperature_beta": "queries scaled by position",
}


def families_page() -> str:
    """Every family: what its decoder adds to Llama's, and the formats that hold it."""
    from ctxext.interop.families import FAMILIES
    from ctxext.interop.formats import FORMATS
    from ctxext.model.config import SHAPES, LlamaConfig
    from ctxext.model.parts import LLAMA_PARTS
    from ctxext.rope import Unscaled

    lines = FAMILIES_INTRO.splitlines() + [""]
    columns = [*FORMATS, "modules that PEFT adapts"]
    lines += ["| family | what its decoder adds to Llama's | " + " | ".join(columns) + " |"]
    lines += ["|---|---|" + "---|" * len(columns)]
    for name in FAMILIES:
        config = next(shape for shape in SHAPES.values() if shape.family == name)
        parts = [
            PART_NAMES[field.name]
            for field in dataclasses.fields(config.parts)
            if getattr(config.parts, field.name) != getattr(LLAMA_PARTS, field.name)
        ]
        full_parts = dataclasses.replace(config.parts, sliding_window=None, windowed=())
        full = dataclasses.replace(config, parts=full_parts)
        cells = []
        for entry in FORMATS.values():

            def check(config: LlamaConfig, entry=entry) -> None:
                window = config.max_position_embeddings
                entry.check(config, Unscaled(), window=window, dtype="bfloat16")

            cell = _yes(lambda config=config, check=check: check(config))
            if cell == "no":
                cell = _yes(lambda full=full, check=check: check(full))
                cell = cell.replace("yes", "without a window")
            cells.append(cell)
        cells.append(", ".join(f"`{module}`" for module in _adapted_modules(config)))
        lines.append(f"| `{name}` | {', '.join(parts)} | " + " | ".join(cells) + " |")
    lines += FAMILIES_NOTES.splitlines()
    return "\n".join(lines).rstrip() + "\n"


def _adapted_modules(config: "LlamaConfig") -> list[str]:
    """PEFT's names of the modules that an adapter of every projection is written for."""
    from ctxext.interop.family_tensors import stored_name
    from ctxext.interop.hf_weights import slots
    from ctxext.model.decoder import param_shapes
    from ctxext.model.trainable import LINEARS

    names = [name for name in slots(param_shapes(config)) if name.startswith("model.layers.0.")]
    adapted = []
    for linear in LINEARS:
        matrices = [name for name in names if name.endswith(f".{linear}.weight")]
        adapted += [stored_name(name, config).split(".")[-2] for name in matrices]
    return list(dict.fromkeys(adapted))


def _yes(check: Callable[[], None]) -> str:
    """ "yes" if a check passes, "no" if it refuses."""
    try:
        check()
    except ValueError:
        return "no"
    return "yes"


PAGES = {
    "experiment.md": experiment_page,
    "methods.md": methods_page,
    "families.md": families_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())

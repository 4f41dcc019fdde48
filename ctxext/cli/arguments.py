"""What the command line takes: every command with its options, as one list to read. Nothing heavy is imported."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def _dtype(name: str) -> str:
    return DTYPES.get(name, name)


class _ExportFormats:
    """The formats of `export --to`, imported only when they are needed, because that imports jax."""

    def __iter__(self) -> Iterator[str]:
        from ctxext.interop.formats import FORMATS

        return iter([*FORMATS, "peft"])


class _TaskNames:
    """The tasks of `eval --evals`, imported only to print them; other names are checked later."""

    def __iter__(self) -> Iterator[str]:
        from ctxext.tasks import by_suite_name

        return iter(by_suite_name())

    def __contains__(self, name: str) -> bool:
        return True


class Parser(argparse.ArgumentParser):
    """One line for a wrong option, as for any other bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"ctxext: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Every command with its own options; what a command does not know is left to overrides and method fields."""
    root = Parser(
        "ctxext",
        description="Stretch the context window of Llama models, and know whether it worked.",
        allow_abbrev=False,
    )
    commands = root.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str, *, json_too: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=name)
        if json_too:
            sub.add_argument("--json", action="store_true", help="print data instead of text")
        return sub

    def process_options(sub: argparse.ArgumentParser) -> None:
        many = sub.add_argument_group(
            "many processes",
            "found by themselves under Slurm, Open MPI, Kubernetes and on "
            "Cloud TPU; run the same command in each of them",
        )
        many.add_argument("--coordinator", metavar="HOST:PORT", help="a free port of process 0")
        many.add_argument(
            "--num-processes", type=int, metavar="N", help="1: alone, whatever the environment says"
        )
        many.add_argument(
            "--process-id", type=int, metavar="I", help="0 to N - 1; 0 writes and prints"
        )

    def run_options(sub: argparse.ArgumentParser) -> None:
        process_options(sub)
        sub.add_argument(
            "--run-dir", type=Path, help="default: runs/<name>-<hash of the configuration>"
        )
        sub.add_argument(
            "--dry-run", action="store_true", help="shapes, parameters, steps; allocates nothing"
        )
        sub.add_argument(
            "--print-config", action="store_true", help="the resolved experiment as JSON"
        )
        sub.add_argument(
            "--track",
            default="wandb",
            metavar="NAME,...",
            help="wandb (default; online if configured, "
            "else offline), tensorboard, trackio; metrics.jsonl is always written",
        )
        sub.add_argument("--no-wandb", action="store_true", help="not wandb")
        sub.epilog = "Any leaf of the experiment can be overridden: --train.steps 400 --rope.factor=8 --data.path DIR"

    def checkpoint_option(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--checkpoint",
            default="latest",
            metavar="latest|best|STEP",
            help="of a run; best: of the lowest training loss, see train.keep_best",
        )

    def method_options(sub: argparse.ArgumentParser) -> None:
        process_options(sub)
        sub.add_argument(
            "--method", action="append", metavar="NAME|FILE.py:Class", help="see ctxext methods"
        )
        sub.add_argument("--attention", metavar="NAME|FILE.py:Class", help="an attention method")
        sub.add_argument(
            "--adapter",
            type=Path,
            metavar="PEFT_DIR",
            help="merge this adapter into the parameters",
        )
        checkpoint_option(sub)
        sub.add_argument(
            "--trust-run",
            action="store_true",
            help="import the code that a run directory refers to",
        )
        sub.add_argument("--compute-dtype", default="float32", choices=["float32", "bfloat16"])
        sub.add_argument(
            "--mesh", nargs="+", default=[], metavar="AXIS=N", help="devices: data=2 fsdp=4 seq=2"
        )
        sub.epilog = (
            "Fields of the methods are options too: --method yarn --factor 4 --beta-fast 16"
        )

    run_options(command("demo", "the main job on the bundled base, in minutes"))
    for name, text in (
        ("run", "train -> eval -> export -> prove -> report"),
        ("train", "train only; resumes by itself if the run exists"),
    ):
        sub = command(name, text)
        sub.add_argument("experiment", metavar="EXPERIMENT.py")
        sub.add_argument(
            "--init", metavar="DIR", help="base checkpoint: HF or run directory, or a hub name"
        )
        sub.add_argument(
            "--method",
            action="append",
            metavar="NAME|FILE.py:Class",
            help="put a method into its seam",
        )
        sub.add_argument("--trial", metavar="NAME", help="one experiment of the file's sweep()")
        run_options(sub)
    sub = command(
        "sweep",
        "every experiment that sweep() of a file yields, here, on Ray or on Slurm; one report",
    )
    sub.add_argument("experiment", metavar="EXPERIMENT.py")
    sub.add_argument(
        "--init", metavar="DIR", help="base checkpoint: HF or run directory, or a hub name"
    )
    sub.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="a run directory for each trial, its log, "
        "and the report; the same command resumes what is not finished",
    )
    sub.add_argument(
        "--launcher",
        default="local",
        choices=["local", "ray", "slurm", "submitit-local"],
        help="ray, slurm: extras of these names; submitit-local: Slurm's way on this machine",
    )
    sub.add_argument("--jobs", type=int, default=1, help="trials at a time")
    sub.add_argument("--cpus", type=int, default=1, help="of a trial, for ray and slurm")
    sub.add_argument("--gpus", type=int, default=0, help="of a trial, for ray and slurm")
    sub.add_argument(
        "--minutes", type=int, default=240, help="of a trial, for slurm; it is requeued and resumes"
    )
    sub.add_argument("--retries", type=int, default=0, help="of a trial that fails")
    sub.add_argument("--partition", metavar="NAME", help="of slurm")
    sub.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster; default: one that is started here"
    )
    sub.add_argument("--track", default="wandb", metavar="NAME,...", help="as for ctxext run")
    sub.add_argument("--dry-run", action="store_true", help="the trials' commands; runs nothing")
    sub.add_argument(
        "--wandb-yaml",
        action="store_true",
        help="the configuration for `wandb sweep`; runs nothing",
    )
    sub.epilog = "Any leaf can be overridden, for all trials: --train.steps 400"
    sub = command(
        "plan", "does it fit: memory, operations, the longest context; nothing is allocated"
    )
    sub.add_argument("experiment", metavar="EXPERIMENT.py")
    sub.add_argument(
        "--init",
        metavar="DIR",
        help="base checkpoint whose shape to plan for; weights are not read",
    )
    sub.add_argument(
        "--method", action="append", metavar="NAME|FILE.py:Class", help="put a method into its seam"
    )
    sub.add_argument(
        "--topology",
        metavar="NAME",
        help="v4|v5e|v5p|v6e:CHIPS, h100:8, ...; default: all accelerators",
    )
    sub.add_argument(
        "--search", action="store_true", help="the longest context that fits, over mesh and remat"
    )
    sub.add_argument(
        "--compile",
        action="store_true",
        help="ask its compiler, no device needed: [plan], [plan-gpu]",
    )
    sub.add_argument(
        "--precise",
        action="store_true",
        help="with --compile: at the effort of a real run, minutes",
    )
    sub.epilog = (
        "Any leaf of the experiment can be overridden: --mesh.fsdp 16 --train.seq-len 32768"
    )
    sub = command("eval", "evaluate a run or an HF directory, with any method")
    sub.add_argument("source", metavar="RUN|HF_DIR")
    method_options(sub)
    sub.add_argument(
        "--evals",
        nargs="+",
        metavar="NAME",
        default=["passkey", "kv", "lines", "vt", "mqar", "ppl", "controls"],
        choices=_TaskNames(),  # pyright: ignore[reportArgumentType]
        help="%(choices)s, passkey:landmark|yarn|pi|longlora, ruler, ruler:reference, "
        "ppl, ppl:token|yarn|pi|longlora|truncate, longppl, longppl:DIR (key tokens found by DIR), "
        "controls (of all named; default: %(default)s)",
    )
    sub.add_argument(
        "--seq-len", type=int, nargs="+", help="tokens; default: 1, 2, 4 and 8 windows"
    )
    sub.add_argument(
        "--budget",
        choices=["small", "full"],
        default="small",
        help="how much is asked; what it can show is said first",
    )
    sub.add_argument(
        "--haystack",
        default="stdlib",
        metavar="PATH",
        help="stdlib, or text, JSONL, Parquet or Arrow",
    )
    sub.add_argument(
        "--questions", type=Path, metavar="FILE", help="of qa: SQuAD, HotpotQA or JSONL"
    )
    sub.add_argument(
        "--ruler", type=Path, metavar="DIR", help="of ruler:reference: samples (see: ctxext ruler)"
    )
    sub.add_argument(
        "--wording",
        type=Path,
        metavar="FILE",
        help="of passkey:<protocol>: the authors' own text, JSON",
    )
    sub.add_argument(
        "--out",
        type=Path,
        help="directory for records.jsonl; default: the run, or runs/eval-<name>",
    )
    sub.add_argument(
        "--part",
        default="1/1",
        metavar="I/N",
        help="this process takes share I of N; same --out for all",
    )
    sub = command(
        "harness", "tasks of lm-evaluation-harness, of a model or against its base: extra [lm-eval]"
    )
    sub.add_argument("source", metavar="RUN|HF_DIR")
    method_options(sub)
    sub.add_argument(
        "--tasks", nargs="+", required=True, metavar="TASK", help="names, groups or YAML files"
    )
    sub.add_argument(
        "--include-path", type=Path, metavar="DIR", help="a directory of tasks of your own"
    )
    sub.add_argument(
        "--against",
        metavar="RUN|HF_DIR",
        help="ask this model too, and compare document by document",
    )
    sub.add_argument(
        "--limit", type=float, metavar="N", help="documents per task; below 1: a part of them"
    )
    sub.add_argument("--num-fewshot", type=int, metavar="K")
    sub.add_argument(
        "--max-length", type=int, metavar="N", help="tokens; default: the window of pre-training"
    )
    sub.add_argument("--seed", type=int, default=0, help="of tasks that sample")
    sub.add_argument(
        "--out", type=Path, help="directory for harness/; default: the run, or runs/eval-<name>"
    )
    sub = command("export", "write a run or a checkpoint for other readers", json_too=False)
    sub.add_argument("source", metavar="RUN|HF_DIR")
    method_options(sub)
    sub.add_argument(
        "--to",
        choices=_ExportFormats(),
        default="hf",
        metavar="FORMAT",
        help="%(choices)s: a whole model (gguf: one file), or for peft what a LoRA run trained "
        "(default: hf)",
    )
    sub.add_argument("--out", required=True)
    sub.add_argument(
        "--base", metavar="HF_DIR", help="peft: the base to load it on (default: the run's own)"
    )
    sub.add_argument(
        "--dtype",
        type=_dtype,
        choices=[*DTYPES.values(), "q8_0"],
        help="or f32, f16, bf16; q8_0: of gguf (default: as in HF_DIR, else bfloat16)",
    )
    sub.add_argument(
        "--seq-len", type=int, help="the extended window L' in tokens (default: factor x L)"
    )
    sub.add_argument(
        "--shards", type=int, metavar="N", help="meta: consolidated.NN.pth files (default: by size)"
    )
    sub = command(
        "prove",
        "reload an export, or a PEFT adapter on its base, in independent readers and compare",
    )
    sub.add_argument(
        "source", metavar="DIR|FILE.gguf", help="in HF, Meta or GGUF format, ours or not"
    )
    sub.add_argument(
        "--against",
        metavar="RUN|HF_DIR",
        help="compare with this model instead of the export itself; "
        "GGUF needs one; of an adapter, an HF_DIR is the base",
    )
    sub.add_argument(
        "--method", action="append", metavar="NAME", help="of --against, with its fields as options"
    )
    sub.add_argument(
        "--original",
        type=int,
        help="Meta: the window L of pre-training, where rope.json is missing",
    )
    checkpoint_option(sub)
    sub = command(
        "import", "check an HF or Meta checkpoint and write it as a base directory", json_too=False
    )
    sub.add_argument("source", metavar="SRC")
    sub.add_argument("--out", required=True)
    sub.add_argument(
        "--dtype", type=_dtype, choices=[*DTYPES.values()], help="default: as it is stored"
    )
    sub.add_argument(
        "--original",
        type=int,
        help="Meta: the window L of pre-training, which the format does not say",
    )
    sub = command(
        "prepare",
        "text, JSONL, Parquet or a dataset -> token files that training maps; resumes by itself",
    )
    sub.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="files or directories, or datasets of the hub; a domain each",
    )
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument(
        "--tokenizer",
        required=True,
        metavar="HF_DIR|tokenizer.model",
        help="that of the model to train",
    )
    sub.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes; the result is the same"
    )
    sub.add_argument("--field", default="text", help="key or column of the text (default: text)")
    sub.add_argument(
        "--min-tokens", type=int, default=0, metavar="N", help="leave shorter documents out"
    )
    sub.add_argument("--max-tokens", type=int, metavar="N", help="leave longer documents out")
    sub.add_argument(
        "--held-out",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of documents, by their hash; 0.01",
    )
    for name in ("bos", "eos"):
        sub.add_argument(
            f"--{name}",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="of each document",
        )
    sub.add_argument(
        "--max-rejects",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of broken lines (default: 0.01)",
    )
    sub.add_argument(
        "--dry-run", action="store_true", help="files, sizes, tokens by a sample; writes nothing"
    )
    sub = command(
        "generate", "continue a prompt, or answer in a chat; text appears as it is written"
    )
    sub.add_argument("source", metavar="RUN|HF_DIR")
    method_options(sub)
    prompt = sub.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument(
        "--prompt-file", metavar="FILE|-", help="UTF-8, as it is, or what is piped in"
    )
    sub.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="N",
        help="default: 256; ends before at eos",
    )
    sub.add_argument(
        "--temperature", type=float, default=0.0, help="default: 0, the most likely token"
    )
    sub.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw from the likeliest tokens that have this much",
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--chat",
        action="store_true",
        help="by the model's chat template; without a prompt, turn by turn",
    )
    sub.add_argument("--chat-template", type=Path, metavar="FILE", help="another one, in Jinja")
    sub.add_argument("--system", metavar="TEXT", help="what the chat begins with")
    sub = command("report", "verdict, tables and one HTML page of runs, recomputed from their rows")
    sub.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    sub.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default: RUN/report.html; ./report.html for several",
    )
    sub.add_argument(
        "--seeds",
        action="store_true",
        help="the runs differ in their seed: put their variants together",
    )
    sub.add_argument(
        "--plot", type=Path, metavar="FILE.svg|FILE.html", help="with --seeds: a dot per variant"
    )
    sub = command(
        "ruler",
        "RULER's own samples for a model's tokenizer, by its package: extra [ruler]",
        json_too=False,
    )
    sub.add_argument("source", metavar="RUN|HF_DIR", help="whose tokenizer; weights are not read")
    sub.add_argument("--seq-len", type=int, required=True, help="the nominal length, tokens")
    sub.add_argument("--n", type=int, default=50, help="samples of each task")
    sub.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="niah_single_1 ... qa_2; default: all 13"
    )
    sub.add_argument("--out", type=Path, required=True)
    sub = command("bench", "what things cost here, beside transformers on torch if asked")
    sub.add_argument("source", metavar="RUN|HF_DIR", nargs="?", default="tiny-llama")
    sub.add_argument(
        "--parts",
        nargs="+",
        default=["eval"],
        metavar="PART",
        help="eval (default), step, prefill, "
        "decode, attention, loss, memory (steps of 8k to 64k tokens), io",
    )
    sub.add_argument(
        "--against", choices=["hf"], help="the same work by transformers on torch, in turns"
    )
    sub.add_argument(
        "--rounds", type=int, default=5, help="of each work, after two that do not count"
    )
    sub.add_argument(
        "--plot", type=Path, metavar="FILE.svg|FILE.html", help="time and memory against the length"
    )
    sub = command(
        "dashboard", "save the wandb workspace of a project, print its address: extra [dashboard]"
    )
    sub.add_argument("--project", default=os.environ.get("WANDB_PROJECT", "ctxext"), metavar="NAME")
    sub.add_argument(
        "--entity",
        default=os.environ.get("WANDB_ENTITY", ""),
        metavar="NAME",
        help="default: yours",
    )
    command("methods", "every method: seam, paper, fields, and the formats that can say it")
    sub = command("rope", "frequencies, attention factor and HF keys of methods")
    sub.add_argument(
        "names",
        metavar="METHOD",
        nargs="+",
        help="name or FILE.py:Class; fields go to each that has them",
    )
    sub.add_argument("--head-dim", type=int, default=128)
    sub.add_argument("--theta", type=float, default=10000.0)
    sub.add_argument(
        "--original", type=int, default=4096, help="the window L of pre-training, tokens"
    )
    sub.add_argument(
        "--seq-len", type=int, help="the target length, tokens; default: the largest factor x L"
    )
    sub.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.svg|FILE.html",
        help="draw wavelengths against the window",
    )
    sub.epilog = "Methods first, then their fields: ctxext rope none yarn --factor 2 --beta-fast 16 --plot waves.svg"
    return root

"""The command line. Thin: every command imports what it needs when it runs, so that --help stays light."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

Command = Callable[[argparse.Namespace, list[str]], Any]


def _experiment(args: argparse.Namespace, rest: list[str]) -> Any:
    """The experiment file with --init, --method and leaf overrides applied."""
    from ctxext import door
    from ctxext.experiment import BUNDLED, load_experiment
    from ctxext.interop import hf
    from ctxext.overrides import override, swap_method

    init = args.init or BUNDLED
    experiment = load_experiment(args.experiment, lambda: hf.read_config(door.locate(init))[0])
    if args.init:
        rest = ["--init", args.init, *rest]
    for name in args.method or ():
        experiment = swap_method(experiment, name, rest)
    return override(experiment, rest)


def _inspect(args: argparse.Namespace, experiment: Any) -> bool:
    """Serve --print-config and --dry-run; True if one of them was asked for."""
    from ctxext import door
    from ctxext.experiment import to_json

    if args.print_config:
        print(json.dumps(to_json(experiment), indent=2))
    if args.dry_run:
        from ctxext.dryrun import dry_run

        config, scaling = door.base_config(experiment)
        print(dry_run(experiment, config, scaling))
    return args.print_config or args.dry_run


def run(args: argparse.Namespace, rest: list[str]) -> None:
    experiment = _experiment(args, rest)
    if not _inspect(args, experiment):
        from ctxext import pipeline as module

        result = module.run(experiment, run_dir=args.run_dir, file=args.experiment, wandb=not args.no_wandb)
        print(json.dumps(result.summary) if args.json else result.text)


def demo(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import demo as module

    args.experiment, args.init, args.method = module.__file__, None, None
    run(args, rest)


def train(args: argparse.Namespace, rest: list[str]) -> None:
    experiment = _experiment(args, rest)
    if not _inspect(args, experiment):
        from ctxext import pipeline as module

        path = module.train_only(experiment, args.run_dir, file=args.experiment, wandb=not args.no_wandb)
        print(json.dumps({"run": str(path)}) if args.json else f"run directory: {path}")


def plan(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import door
    from ctxext.plan.view import Plan

    experiment = _experiment(args, rest)
    found = Plan.of(experiment, *door.base_config(experiment), on=args.topology, compiled=args.compile,
                    precise=args.precise, searched=args.search)  # fmt: skip
    print(found.json() if args.json else found.text())


def _methods(args: argparse.Namespace, rest: list[str]) -> tuple[Any, ...]:
    """The methods of --method and --attention, with their fields from the other options."""
    from ctxext.overrides import make_methods, parse_fields

    return make_methods([*(args.method or ()), *([args.attention] if args.attention else ())], parse_fields(rest))


def _open(args: argparse.Namespace, rest: list[str]) -> Any:
    """The model of SOURCE under those methods."""
    from ctxext import door

    return door.load(args.source, method=_methods(args, rest), adapter=args.adapter, dtype=args.compute_dtype,
                     mesh=_mesh(args), trust=args.trust_run)  # fmt: skip


def _mesh(args: argparse.Namespace) -> Any:
    from ctxext.sharding import Mesh

    return Mesh.parse(args.mesh)


def evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import evaluate as module
    from ctxext import report

    chosen = _methods(args, rest)
    sink, rows = module.evaluate_checkpoint(
        args.source, adapter=args.adapter, methods=[chosen or None], evals=args.evals, seq_lens=args.seq_len,
        budget=args.budget, out=args.out, dtype=args.compute_dtype, mesh=_mesh(args), trust=args.trust_run,
    )  # fmt: skip
    print(json.dumps(report.summary(rows)) if args.json else f"{report.tables(rows)}\n\nrows: {sink}")


def export(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import door
    from ctxext import export as module

    if args.to == "peft":
        if rest or args.method or args.attention or args.adapter or args.dtype or args.seq_len:
            raise ValueError("--to peft writes what a run trained, as it is, in float32; it takes --base and --out")
        module.export_adapter(args.source, args.out, base=args.base, mesh=_mesh(args), trust=args.trust_run)
        print(f"wrote {args.out}")
        return
    if args.base:
        raise ValueError("--base belongs to --to peft")
    lm = _open(args, rest)
    seq_len = args.seq_len or (None if args.method else door.declared_window(args.source))
    module.export(lm, args.out, to=args.to, dtype=args.dtype or "bfloat16", seq_len=seq_len)
    print(f"wrote {args.out}; check it with: ctxext prove {args.out}")


def prove(args: argparse.Namespace, rest: list[str]) -> int:
    _refuse(rest)
    from ctxext import door
    from ctxext import prove as module

    against = door.load(args.against) if args.against else None
    proof = module.prove(Path(args.source), against=against)
    print(json.dumps(proof) if args.json else module.describe(proof))
    return 0 if proof["equal"] else 1


def import_(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    from ctxext import door
    from ctxext import export as module

    module.export(door.load(args.source), args.out, dtype=args.dtype, seq_len=door.declared_window(args.source))
    print(f"wrote {args.out}")


def generate(args: argparse.Namespace, rest: list[str]) -> None:
    lm = _open(args, rest)
    eos = lm.config.eos_token_id
    tokens = lm.generate(
        [lm.tokenizer.encode(args.prompt, bos=True)], max_new_tokens=args.max_new_tokens,
        temperature=args.temperature, top_p=args.top_p, seed=args.seed, eos_token_id=eos,
    )[0].tolist()  # fmt: skip
    stops = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    ends = [tokens.index(stop) for stop in stops if stop in tokens]
    print(lm.tokenizer.decode(tokens[: min(ends)] if ends else tokens))


def report(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    from ctxext import report as module

    if args.seeds:
        tasks = module.across_seeds(args.runs, args.plot)
        print(json.dumps([task.data for task in tasks]) if args.json else "\n\n".join(task.text for task in tasks))
        return
    if args.plot:
        raise ValueError("--plot draws the arms of --seeds; the page of a run has its own charts")
    rows = module.read_rows(args.runs)
    if args.json:
        print(json.dumps(module.summary(rows)), flush=True)
    else:
        print("\n".join([*module.verdict(rows), "", module.tables(rows)]), flush=True)
    page = module.write_report(args.runs, args.out)
    print(f"\npage: {page}", file=sys.stderr if args.json else sys.stdout)


def methods(args: argparse.Namespace, rest: list[str]) -> None:
    _refuse(rest)
    from ctxext.listing import methods_table

    print(methods_table(as_json=args.json))


def rope(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import listing
    from ctxext.overrides import make_methods, parse_fields

    view = listing.RopeView.of(make_methods(args.names, parse_fields(rest)), args.head_dim, args.theta, args.original,
                               args.seq_len)  # fmt: skip
    page = view.plot(args.plot) if args.plot else None
    print(view.json() if args.json else view.text(), flush=True)
    if page:
        print(f"\nplot: {page}", file=sys.stderr if args.json else sys.stdout)


def _refuse(rest: list[str]) -> None:
    if rest:
        raise ValueError(f"unknown option {rest[0]}; see --help")


class Parser(argparse.ArgumentParser):
    """One line for a wrong option, as for any other bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"ctxext: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Every command with its own options; what a command does not know is left to overrides and method fields."""
    root = Parser("ctxext", description="Stretch the context window of Llama models, and know "
                                   "whether it worked.", allow_abbrev=False)  # fmt: skip
    commands = root.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Command, text: str, *, json_too: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        if json_too:
            sub.add_argument("--json", action="store_true", help="print data instead of text")
        return sub

    def process_options(sub: argparse.ArgumentParser) -> None:
        many = sub.add_argument_group("many processes", "found by themselves under Slurm, Open MPI, Kubernetes and on "
                                      "Cloud TPU; run the same command in each of them")  # fmt: skip
        many.add_argument("--coordinator", metavar="HOST:PORT", help="a free port of process 0")
        many.add_argument("--num-processes", type=int, metavar="N", help="1: alone, whatever the environment says")
        many.add_argument("--process-id", type=int, metavar="I", help="0 to N - 1; 0 writes and prints")

    def run_options(sub: argparse.ArgumentParser) -> None:
        process_options(sub)
        sub.add_argument("--run-dir", type=Path, help="default: runs/<name>-<hash of the configuration>")
        sub.add_argument("--dry-run", action="store_true", help="shapes, parameters, steps; allocates nothing")
        sub.add_argument("--print-config", action="store_true", help="the resolved experiment as JSON")
        sub.add_argument("--no-wandb", action="store_true", help="no wandb (otherwise online if configured)")
        sub.epilog = "Any leaf of the experiment can be overridden: --train.steps 400 --rope.factor=8 --data.path DIR"

    def method_options(sub: argparse.ArgumentParser) -> None:
        process_options(sub)
        sub.add_argument("--method", action="append", metavar="NAME|FILE.py:Class", help="see ctxext methods")
        sub.add_argument("--attention", metavar="NAME|FILE.py:Class", help="an attention method")
        sub.add_argument("--adapter", type=Path, metavar="PEFT_DIR", help="merge this adapter into the parameters")
        sub.add_argument("--trust-run", action="store_true", help="import the code that a run directory refers to")
        sub.add_argument("--compute-dtype", default="float32", choices=["float32", "bfloat16"])
        sub.add_argument("--mesh", nargs="+", default=[], metavar="AXIS=N", help="devices: data=2 fsdp=4 tensor=1")
        sub.epilog = "Fields of the methods are options too: --method yarn --factor 4 --beta-fast 16"

    run_options(command("demo", demo, "the main job on the bundled base, in minutes"))
    for name, function, text in (("run", run, "train -> eval -> export -> prove -> report"),
                                 ("train", train, "train only; resumes by itself if the run exists")):  # fmt: skip
        sub = command(name, function, text)
        sub.add_argument("experiment", metavar="EXPERIMENT.py")
        sub.add_argument("--init", metavar="DIR", help="base checkpoint: HF or run directory, or a hub name")
        sub.add_argument("--method", action="append", metavar="NAME|FILE.py:Class", help="put a method into its seam")
        run_options(sub)
    sub = command("plan", plan, "does it fit: memory, operations, the longest context; nothing is allocated")
    sub.add_argument("experiment", metavar="EXPERIMENT.py")
    sub.add_argument("--init", metavar="DIR", help="base checkpoint whose shape to plan for; weights are not read")
    sub.add_argument("--method", action="append", metavar="NAME|FILE.py:Class", help="put a method into its seam")
    sub.add_argument("--topology", metavar="NAME", help="v4|v5e|v5p|v6e:CHIPS, h100:8, ...; default: all accelerators")
    sub.add_argument("--search", action="store_true", help="the longest context that fits, over mesh and remat")
    sub.add_argument("--compile", action="store_true", help="ask the TPU compiler, without a TPU: extra [plan]")
    sub.add_argument("--precise", action="store_true", help="with --compile: at the effort of a real run, minutes")
    sub.epilog = "Any leaf of the experiment can be overridden: --mesh.fsdp 16 --train.seq-len 32768"
    sub = command("eval", evaluate, "evaluate a run or an HF directory, with any method")
    sub.add_argument("source", metavar="RUN|HF_DIR")
    method_options(sub)
    sub.add_argument("--evals", nargs="+", default=["passkey", "ppl"], help="passkey, kv, ppl, controls")
    sub.add_argument("--seq-len", type=int, nargs="+", help="tokens; default: 1/2, 1, 2 and 4 windows")
    sub.add_argument("--budget", choices=["small", "full"], default="small")
    sub.add_argument("--out", type=Path, help="directory for rows.jsonl; default: the run, or runs/eval-<name>")
    sub = command("export", export, "write a run or an HF directory for other readers", json_too=False)
    sub.add_argument("source", metavar="RUN|HF_DIR")
    method_options(sub)
    sub.add_argument("--to", choices=["hf", "peft"], default="hf", help="a whole model, or what a LoRA run trained")
    sub.add_argument("--out", required=True)
    sub.add_argument("--base", metavar="HF_DIR", help="peft: the base to load it on (default: the run's own)")
    sub.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: bfloat16")
    sub.add_argument("--seq-len", type=int, help="the extended window L' in tokens (default: factor x L)")
    sub = command("prove", prove, "reload an export in independent readers and compare")
    sub.add_argument("source", metavar="DIR")
    sub.add_argument("--against", metavar="RUN|HF_DIR", help="compare with this model instead of the export itself")
    sub = command("import", import_, "check an HF checkpoint and write it as a base directory", json_too=False)
    sub.add_argument("source", metavar="SRC")
    sub.add_argument("--out", required=True)
    sub.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="bfloat16")
    sub = command("generate", generate, "continue a prompt", json_too=False)
    sub.add_argument("source", metavar="RUN|HF_DIR")
    method_options(sub)
    sub.add_argument("--prompt", required=True)
    sub.add_argument("--max-new-tokens", type=int, default=64)
    sub.add_argument("--temperature", type=float, default=0.0)
    sub.add_argument("--top-p", type=float, default=1.0)
    sub.add_argument("--seed", type=int, default=0)
    sub = command("report", report, "verdict, tables and one HTML page of runs, recomputed from their rows")
    sub.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    sub.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html; ./report.html for several")
    sub.add_argument("--seeds", action="store_true", help="the runs differ in their seed: put their arms together")
    sub.add_argument("--plot", type=Path, metavar="FILE.svg|FILE.html", help="with --seeds: a dot per arm")
    command("methods", methods, "every method: seam, paper, fields")
    sub = command("rope", rope, "frequencies, attention factor and HF keys of methods")
    sub.add_argument(
        "names", metavar="METHOD", nargs="+", help="name or FILE.py:Class; fields go to each that has them"
    )
    sub.add_argument("--head-dim", type=int, default=128)
    sub.add_argument("--theta", type=float, default=10000.0)
    sub.add_argument("--original", type=int, default=4096, help="the window L of pre-training, tokens")
    sub.add_argument("--seq-len", type=int, help="the target length, tokens; default: the largest factor x L")
    sub.add_argument("--plot", type=Path, metavar="FILE.svg|FILE.html", help="draw wavelengths against the window")
    sub.epilog = "Methods first, then their fields: ctxext rope none yarn --factor 2 --beta-fast 16 --plot waves.svg"
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Bad input prints one line and returns 2; Ctrl-C returns 130."""
    args, rest = parser().parse_known_args(argv)
    from ctxext import distributed

    return distributed.leave(_run(args, rest))


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    from ctxext import distributed

    try:
        if hasattr(args, "coordinator"):
            distributed.start(args.coordinator, args.num_processes, args.process_id)
        return args.run(args, rest) or 0
    except BrokenPipeError:  # the reader of our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if os.environ.get("CTXEXT_TRACEBACK"):
            raise
        distributed.speak()
        print(f"ctxext: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:
        if not distributed.joined() or os.environ.get("CTXEXT_TRACEBACK"):
            raise
        distributed.speak()  # in most cases another process has failed, and says why itself
        print(f"ctxext: process {distributed.index()}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ctxext: interrupted", file=sys.stderr)
        return 130

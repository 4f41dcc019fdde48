"""Options that several commands share, each group with what reads it.

Nothing heavy is imported here.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ctxext.cli import numbers
from ctxext.nearest import hint

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""Short names of number types."""


def dtype(name: str) -> str:
    """The full name of a number type: "bf16" is "bfloat16"."""
    return DTYPES.get(name, name)


class LazyNames:
    """Choices that are loaded only to be checked or printed, because loading imports jax."""

    def __init__(self, load: Callable[[], Iterable[str]], *, others: bool = False) -> None:
        """others: accept every other name too, because it is checked later."""
        self._load = load
        self._others = others

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def __contains__(self, name: str) -> bool:
        return self._others or name in self._load()


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="Print data instead of text.")


def add_links(parser: argparse.ArgumentParser) -> None:
    """--follow-links; `main` reads it."""
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="Read checkpoints whose files are links to other places.",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """--trust-run."""
    parser.add_argument(
        "--trust-run",
        action="store_true",
        help="Import the Python files that a run refers to.",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """--coordinator, --num-processes and --process-id; `main` reads them."""
    group = parser.add_argument_group(
        "many processes",
        "Run the same command in each process. Slurm, Open MPI, Kubernetes and Cloud TPU set "
        "these by themselves.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="A free port of process 0.")
    group.add_argument(
        "--num-processes",
        type=numbers.integer,
        metavar="N",
        help="How many processes take part; 1 ignores the environment; default: as it says.",
    )
    group.add_argument(
        "--process-id",
        type=numbers.integer,
        metavar="I",
        help="The number of this process, 0 to N - 1; process 0 writes and prints.",
    )


def add_method(parser: argparse.ArgumentParser) -> None:
    """--method; the fields of the method are left to `method_options`."""
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME|FILE.py:Class",
        help="Frequencies, attention or positions, see ctxext methods; may be given several times. "
        "The fields of a method are options too: --method yarn --factor 4 --beta-fast 16. One that "
        "wraps another takes it as --inner: --method cope --inner yarn --factor 4. Default: those "
        "of the checkpoint or the experiment.",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """--checkpoint."""
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="latest|best|STEP",
        help="Which checkpoint of a run; best: by the measure of train.keep_best, or else "
        "of the lowest training loss.",
    )


def add_bos(parser: argparse.ArgumentParser) -> None:
    """--bos and --no-bos."""
    parser.add_argument(
        "--bos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="Begin every text with BOS, or never; default: as the checkpoint's tokenizer does.",
    )


def add_semantics(parser: argparse.ArgumentParser) -> None:
    """--semantics."""
    parser.add_argument(
        "--semantics",
        default="incremental",
        choices=["incremental", "frozen", "transformers"],
        help="Where frequencies or attention follow the length, as under dynamic-ntk and jet-long: "
        "each new token sees all keys by the method at the length so far (incremental) or at the "
        "prompt's length (frozen), or each key keeps the frequencies of the length at which it was "
        "cached (transformers).",
    )


def add_allow_shorter(parser: argparse.ArgumentParser) -> None:
    """--allow-shorter."""
    parser.add_argument(
        "--allow-shorter",
        action="store_true",
        help="Accept a factor or a length that gives less context than the checkpoint declares.",
    )


# A model: a source, and the method to run it with


def add_model(parser: argparse.ArgumentParser) -> None:
    """SOURCE and the options that `open_model` reads."""
    parser.add_argument(
        "source",
        metavar="RUN|HF_DIR",
        help="A run, a checkpoint, a hub name, tiny-llama or smollm2.",
    )
    add_method(parser)
    add_allow_shorter(parser)
    parser.add_argument(
        "--adapter", type=Path, metavar="PEFT_DIR", help="Merge this adapter into the parameters."
    )
    add_checkpoint(parser)
    add_links(parser)
    add_trust(parser)
    add_bos(parser)
    parser.add_argument(
        "--compute-dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="The number type of the forward pass.",
    )
    parser.add_argument(
        "--mesh",
        nargs="+",
        default=[],
        metavar="AXIS=N",
        help="Devices along each axis, as data=2 fsdp=4 seq=2; default: one device.",
    )
    add_processes(parser)


def read_methods(args: argparse.Namespace, rest: list[str]) -> tuple[Any, ...]:
    """The methods of --method, with their fields from the other options."""
    from ctxext.cli.method_options import make_methods

    return make_methods(args.method, rest, known=option_names(args))


def read_mesh(args: argparse.Namespace) -> Any:
    """The mesh of --mesh."""
    return parse_mesh(args.mesh)


def parse_mesh(arguments: Sequence[str]) -> Any:
    """The mesh of `["fsdp=8", "tensor=2"]`. Raises ValueError for an unknown axis or no number."""
    from ctxext.parallel.mesh import Mesh

    axes = list(Mesh().sizes)
    sizes = {}
    for argument in arguments:
        axis, _, size = argument.partition("=")
        if axis not in axes or not re.fullmatch(r"-?\d+", size):
            raise ValueError(
                f"--mesh {argument}: give AXIS=DEVICES with AXIS one of {', '.join(axes)}"
            )
        sizes[axis] = int(size)
    return Mesh(**sizes)


def say_context(context: Any, scaling: Any) -> None:
    """Print, on stderr, what a factor counts from and what the checkpoint declares as it is."""
    if not context.is_plain(scaling):
        print(f"context: {context.text(scaling)}", file=sys.stderr)


def open_model(args: argparse.Namespace, methods: tuple[Any, ...]) -> Any:
    """The model of SOURCE under the methods and the --semantics of generation.

    Says on stderr what context it has, and how it follows the length.
    """
    from ctxext import loading
    from ctxext.model.generation import SEMANTICS

    lm = loading.load(
        args.source,
        method=methods,
        adapter=args.adapter,
        checkpoint=args.checkpoint,
        dtype=args.compute_dtype,
        mesh=read_mesh(args),
        trust=args.trust_run,
        bos=args.bos,
        allow_shorter=args.allow_shorter,
        semantics=args.semantics,
    )
    say_context(lm.context, lm.scaling)
    if lm.depends_on_length:
        print(f"{lm.semantics}: {SEMANTICS[lm.semantics]} (--semantics)", file=sys.stderr)
    return lm


def open_named_model(
    args: argparse.Namespace, methods: tuple[Any, ...] = (), *, semantics: Any = "incremental"
) -> Any:
    """The model of SOURCE with what its weights are, as the `evaluate.NamedModel` of records.

    `semantics`: how it writes new tokens.
    """
    from ctxext.evaluate import NamedModel

    return NamedModel.load(
        args.source,
        methods=methods,
        adapter=args.adapter,
        checkpoint=args.checkpoint,
        dtype=args.compute_dtype,
        mesh=read_mesh(args),
        trust=args.trust_run,
        bos=args.bos,
        semantics=semantics,
        allow_shorter=args.allow_shorter,
    )


# An experiment: a file, and what the command line changes in it


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT and the options that `read_experiment` reads."""
    parser.add_argument(
        "experiment",
        metavar="EXPERIMENT",
        help="A Python file with an experiment, the config.json of a run, or a TOML file of "
        "overrides.",
    )
    parser.add_argument(
        "--init",
        metavar="DIR",
        help="The base: an HF or run directory, a GGUF file, a hub name, tiny-llama or smollm2; "
        "default: that of the file.",
    )
    add_method(parser)
    add_links(parser)
    add_trust(parser)
    parser.epilog = "Every leaf is an option: --train.steps 400 --rope.factor 8 --data.path DIR"


def add_trial(parser: argparse.ArgumentParser) -> None:
    """--trial, of run and train."""
    parser.add_argument(
        "--trial",
        metavar="NAME",
        help="One experiment of the file's sweep(); default: its `experiment`.",
    )


def add_budget(parser: argparse.ArgumentParser) -> None:
    """--budget, of demo, run and sweep."""
    parser.add_argument(
        "--budget",
        metavar="small|medium|full|MINUTES",
        help="How much of the file's evaluations is asked: all (full, the default), no more than "
        "ctxext eval asks with the same budget, or what this device answers in so many minutes. "
        "The run and its report say what was left out.",
    )


def base_config(args: argparse.Namespace, init: str | None = None) -> Callable[[], Any]:
    """Reads what an experiment file may ask of the base that --init names, or else `init`."""

    def read() -> Any:
        from ctxext import loading
        from ctxext.experiment import BUNDLED

        source = args.init or init or BUNDLED
        return loading.read_config(source)[0], loading.read_context(source).declared

    return read


def read_experiment(args: argparse.Namespace, rest: list[str], *, trial: str | None = None) -> Any:
    """The experiment of the file, or one of its sweep, with all options applied.

    Raises ValueError for an unknown trial or option.
    """
    trials = read_trials(args, in_file=trial is not None)
    if trial is None and len(trials) > 1:
        raise ValueError(
            f"{args.experiment} has {len(trials)} trials: choose one with --trial NAME, or run all "
            f"with ctxext sweep; it has {', '.join(trials)}"
        )
    name = next(iter(trials)) if trial is None else trial
    if name not in trials:
        raise ValueError(f"{args.experiment} has no trial {name!r}; {hint(name, trials)}")
    return change_experiment(trials[name], args, rest)


def read_trials(args: argparse.Namespace, *, in_file: bool) -> dict[str, Any]:
    """The experiments of a file by their names, as the file has them.

    in_file: those of sweep() of a Python file, which has a single `experiment` otherwise.
    """
    from ctxext.cli.sweep_file import SweepFile
    from ctxext.experiment import load_experiment, load_sweep

    suffix = Path(args.experiment).suffix
    if suffix == ".toml":
        return SweepFile.read(args.experiment).experiments(
            lambda file, init: load_experiment(file, base_config(args, init), trust=args.trust_run)
        )
    if in_file and suffix != ".json":
        return load_sweep(args.experiment, base_config(args))
    experiment = load_experiment(args.experiment, base_config(args), trust=args.trust_run)
    return {experiment.name: experiment}


def change_experiment(experiment: Any, args: argparse.Namespace, rest: list[str]) -> Any:
    """An experiment with --init, --method and every leaf option applied.

    Raises ValueError for an unknown option.
    """
    from ctxext.cli.overrides import override

    init = ["--init", args.init] if args.init else []
    budget = getattr(args, "budget", None)
    scaled = ["--budget", budget] if budget else []
    words = [*init, *scaled, *rest]
    return override(experiment, words, methods=args.method, known=option_names(args))


# A run of an experiment


def add_resume(parser: argparse.ArgumentParser) -> None:
    """--resume, which nothing reads."""
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on where the same command stopped, which it does without this option too.",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """The options of demo, run and train."""
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="Where the run is kept; default: runs/<name>-<hash of the configuration>.",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Print shapes, steps and the estimated time of every stage, and stop before any "
        "weights are loaded.",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="Print the resolved experiment as JSON."
    )
    add_resume(parser)
    add_track(parser)
    parser.add_argument("--no-wandb", action="store_true", help="Leave wandb out of --track.")
    add_processes(parser)
    add_json(parser)


def add_track(parser: argparse.ArgumentParser) -> None:
    """--track."""
    parser.add_argument(
        "--track",
        default="wandb",
        choices=LazyNames(_trackers, others=True),  # pyright: ignore[reportArgumentType]
        metavar="NAME,...",
        help="Trackers to log to: %(choices)s. wandb is online if it is configured, else offline; "
        "metrics.jsonl is always written.",
    )


def _trackers() -> Iterable[str]:
    from ctxext.tracking import TRACKERS

    return TRACKERS


def read_trackers(args: argparse.Namespace) -> tuple[str, ...]:
    """The names of --track, without wandb under --no-wandb."""
    from ctxext.tracking import parse_names

    return tuple(
        name for name in parse_names(args.track) if not (args.no_wandb and name == "wandb")
    )


def inspect(args: argparse.Namespace, experiment: Any, *, training_only: bool = False) -> bool:
    """Serve --print-config and --dry-run, with the stages of a run or those of training only.

    Returns True if one of them was given, so that nothing should be run.
    """
    import json

    from ctxext.serialization import to_json

    if args.print_config:
        print(json.dumps(to_json(experiment), indent=2))
    if args.dry_run:
        from ctxext import loading, requirements
        from ctxext.cli.dry_run import dry_run
        from ctxext.rundir import RunDir, default_run_dir
        from ctxext.stages.planned import estimate

        RunDir(args.run_dir or default_run_dir(experiment)).check(experiment)
        config, scaling = loading.base_config(experiment)
        unreadable = requirements.unreadable(experiment)
        text = dry_run(experiment, config, scaling, unreadable=unreadable)  # which checks it
        if unreadable:
            data: dict[str, Any] = {"unreadable": unreadable}
            lines = ["time: not estimated, as there are texts that cannot be read, see below"]
        else:
            print("counting what each stage does ...", file=sys.stderr, flush=True)
            estimated = estimate(experiment, args.run_dir, training_only=training_only)
            data = estimated.data()
            lines = estimated.lines()
        if args.json:
            print(json.dumps(data, indent=2))
        else:
            print("\n".join([*lines, "", text]))
    return args.print_config or args.dry_run


# Options that a command does not declare


def option_names(args: argparse.Namespace) -> Sequence[str]:
    """The options that the command declares, for suggestions."""
    return getattr(args, "option_names", ())


def refuse_rest(args: argparse.Namespace, rest: list[str]) -> None:
    """Raises ValueError, with the nearest option of the command, if one is left over."""
    if rest:
        from ctxext.cli.flags import parse_flags, unknown_option

        raise unknown_option(parse_flags(rest)[0], option_names(args), "see --help")


def say_bos(source: str, bos: bool | None) -> None:
    """Print how the texts of an exported checkpoint begin, where readers of `source` disagree."""
    from ctxext import loading

    tokenizer = loading.open_tokenizer(source)
    if bos is None and tokenizer.adds_bos_by_its_class:
        print(tokenizer.bos_note, file=sys.stderr)

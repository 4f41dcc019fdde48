"""Evaluate a run or a checkpoint, with any method.

ctxext eval runs/mine
ctxext eval HF_DIR --method yarn --factor 4 --evals passkey ppl --seq-len 4096 16384
ctxext eval HF_DIR --method yarn --factor 4 --budget 60 --dry-run
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from ctxext.cli import numbers, options

GROUP = "Measure"
KEPT = "every finished record is kept"


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_semantics(parser)
    parser.add_argument(
        "--evals",
        nargs="+",
        metavar="NAME",
        choices=options.LazyNames(_names, others=True),  # pyright: ignore[reportArgumentType]
        help="%(choices)s; longppl:DIR takes the key tokens that the model in DIR finds; controls "
        "repeats every named retrieval without its needle and without its haystack. Default: "
        "passkey kv lines vt mqar ppl growing-window recovery controls.",
    )
    parser.add_argument(
        "--seq-len",
        type=numbers.count,
        nargs="+",
        metavar="N",
        help="Lengths in tokens; default: the window of pre-training, and a quarter, half and all "
        "of the longer context that the method makes or the checkpoint declares; without one, 1, "
        "2, 4 and 8 windows. A budget in minutes adds halves of the window, down to 1,024 tokens.",
    )
    parser.add_argument(
        "--budget",
        default="small",
        metavar="small|medium|full|MINUTES",
        help="How many questions per length; which differences they can show is printed first. "
        "MINUTES: as many as this device can answer in that time, several about each text where "
        "a task can ask several.",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Only say what would be read, at which lengths, how long that takes on this device, "
        "and how much memory.",
    )
    parser.add_argument(
        "--no-base",
        action="store_true",
        help="Ask only the method. By default the base without it is the control: it is asked "
        "every evaluation in the same texts at the same lengths, under a budget in minutes as far "
        "as there is time.",
    )
    parser.add_argument(
        "--haystack",
        default="stdlib",
        metavar="PATH",
        help="The text for needles and perplexity: stdlib, the sources of Python's standard "
        "library, or files of text, JSON, CSV or tables.",
    )
    parser.add_argument(
        "--haystack-field",
        metavar="NAME",
        help="The key or column of the text in --haystack and --books; default: text.",
    )
    parser.add_argument(
        "--held-out",
        type=numbers.number,
        nargs="?",
        const=0.01,
        metavar="SHARE",
        help="Of files of text in --haystack and --books, only the documents that training did not "
        "see: the share of them that train.held_out holds out, 0.01 for --held-out alone; default: "
        "all documents.",
    )
    parser.add_argument(
        "--parse-special",
        action="store_true",
        help="Special tokens written out in --haystack, such as </s>, are those tokens, not text.",
    )
    parser.add_argument(
        "--books",
        metavar="PATH",
        help="The books of growing-window, a file each, or prepared tokens; default: --haystack.",
    )
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="The questions of qa: SQuAD, HotpotQA, JSONL. Or a file, or a directory of files, of "
        "longbench, longbench-v2, infinitebench, helmet (or helmet:icl, :recall, :summ) or "
        "mrcr:openai, as published.",
    )
    parser.add_argument(
        "--ruler",
        type=Path,
        metavar="DIR",
        help="The samples of ruler:reference, which `ctxext ruler` or RULER's own scripts wrote.",
    )
    parser.add_argument(
        "--wording",
        nargs="+",
        default=[],
        metavar="prose|code|FILE",
        help="How passkey and kv ask: prose, the default, for models of language; code for a base "
        "that was trained on it, such as tiny-llama. FILE: the authors' own text for "
        "passkey:<protocol>, in JSON.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="Where records.jsonl is; default: the run, or runs/eval-<name>.",
    )
    parser.add_argument(
        "--shard",
        default="1/1",
        metavar="I/N",
        help="The part of the work that this process does; all processes share --out.",
    )
    options.add_resume(parser)
    options.add_json(parser)


def _names() -> Iterable[str]:
    from ctxext.evals.suite import EVALUATIONS
    from ctxext.tasks import by_suite_name

    return [*by_suite_name(), *EVALUATIONS]


def read_wordings(values: Sequence[str]) -> dict[str, Any]:
    """The settings that --wording stands for. Raises ValueError if one is given twice."""
    from ctxext.tasks import ProseOrCode

    settings: dict[str, Any] = {}
    for value in values:
        is_name = value in get_args(ProseOrCode)
        field = "wording" if is_name else "passkey_text"
        if field in settings:
            raise ValueError(
                f"--wording takes prose or code once, and one file: {' '.join(values)}"
            )
        if not is_name and not Path(value).is_file():
            raise ValueError(f"--wording {value} is neither prose nor code nor a file")
        settings[field] = value if is_name else Path(value)
    return settings


def check_used(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Raise ValueError for an option that none of the evaluations called `names` reads."""
    from ctxext.evals.published_passkeys import PROTOCOLS
    from ctxext.evals.published_samples import BENCHMARKS
    from ctxext.tasks import by_suite_name

    wordings = read_wordings(args.wording)
    with_wording = [name for name, task in by_suite_name().items() if hasattr(task, "wording")]
    with_wording.append("recovery")
    published = [f"passkey:{name}" for name in PROTOCOLS]
    for option, is_given, readers in (
        (f"--wording {wordings.get('wording')}", "wording" in wordings, with_wording),
        (f"--wording {wordings.get('passkey_text')}", "passkey_text" in wordings, published),
        ("--books", args.books is not None, ["growing-window"]),
        ("--questions", args.questions is not None, ["qa", *BENCHMARKS]),
        ("--ruler", args.ruler is not None, ["ruler:reference"]),
    ):
        if is_given and not set(readers) & set(names):
            raise ValueError(
                f"{option} would change nothing: only {', '.join(readers)} read it. Add one of "
                "them to --evals, or leave it out"
            )


def run(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext import evaluate, report, requirements
    from ctxext.data import haystack
    from ctxext.evals.budget import Budget, read_budget
    from ctxext.evals.suite import STANDARD, SuiteConfig, check_names
    from ctxext.files import check_parent

    if args.evals:
        check_names(args.evals)
    methods = options.read_methods(args, rest)
    names = args.evals or STANDARD
    check_used(args, names)
    options_of_text: dict[str, Any] = {
        "field": args.haystack_field,
        "parse_special": args.parse_special,
        "held_out": args.held_out,
    }
    texts = []
    books = None
    if args.books is not None:
        books = haystack(args.books, **options_of_text, what="text for --books")
        texts.append(books)
        if args.haystack == "stdlib":
            options_of_text = {}
    source = haystack(args.haystack, **options_of_text)
    texts.append(source)
    for text in dict.fromkeys(texts):
        requirements.check_text(text, option="--haystack-field")
        requirements.check_held_out(text, model=args.source)
    if args.out is not None:
        check_parent(args.out / "records.jsonl")
    shard = evaluate.Shard.parse(args.shard)
    budget = read_budget(args.budget)
    config = SuiteConfig(
        seq_lens=tuple(args.seq_len or ()),
        source=source,
        books=books,
        questions=args.questions,
        ruler=args.ruler,
        **read_wordings(args.wording),
    )
    model = options.open_named_model(args, semantics=args.semantics)
    if args.haystack == "stdlib":
        print(
            "haystack: the sources of Python's standard library (--haystack takes other text)",
            file=sys.stderr,
        )

    def ask(budget: Budget, names: Sequence[str], *, base: Sequence[str]) -> evaluate.Questions:
        return evaluate.Questions.of(
            model,
            methods=[methods or None],
            evals=names,
            config=dataclasses.replace(config, budget=budget),
            base=base,
            out=args.out,
            shard=shard,
            allow_shorter=args.allow_shorter,
        )

    lines = []
    if isinstance(budget, Budget):
        questions = ask(budget, names, base=() if args.no_base else names)
    else:
        questions, line = evaluate.questions_within(
            budget,
            ask,
            window=model.lm.config.max_position_embeddings,
            names=args.evals or (),
            shortest=min(args.seq_len) if args.seq_len else None,
            base=bool(methods) and not args.no_base,
        )
        lines.append(line)
    if args.dry_run:
        print("counting what is to be read: building the prompts ...", file=sys.stderr, flush=True)
        lines += questions.notes()
        price = questions.price(measured=True)
        if args.json:
            print(json.dumps({**price.data(), "notes": lines}))
        else:
            print("\n".join([*lines, price.text()]))
        return
    lines += questions.introduction()
    print("\n".join(lines), file=sys.stderr, flush=True)
    records = questions.records()
    if args.json:
        print(json.dumps(report.summary(records)))
    else:
        lines = [*report.verdict(records), "", report.tables(records), ""]
        print("\n".join([*lines, f"records: {questions.sink}"]))

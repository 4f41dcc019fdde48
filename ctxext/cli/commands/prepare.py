"""Turn text, JSON, CSV, Parquet or datasets into token files that training maps into memory.

ctxext prepare my-texts --out my-tokens --tokenizer HF_DIR --workers 8

ctxext prepare chats.jsonl --out my-chats --tokenizer HF_DIR --chat-template own

The same command resumes an interrupted one. Train on the result with --data.path my-tokens.
"""

import argparse
import json
from pathlib import Path

from ctxext.cli import numbers, options

GROUP = "Checkpoints and texts"
KEPT = "every finished chunk is kept"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="Files or directories of text, or datasets of the hub (owner/name); each is counted "
        "separately.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="Where the token files are written."
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="HF_DIR|tokenizer.model",
        help="The model that will be trained, or its tokenizer.",
    )
    parser.add_argument(
        "--workers",
        type=numbers.integer,
        default=1,
        metavar="N",
        help="How many processes work; the result is the same for any number.",
    )
    parser.add_argument(
        "--field",
        default="text",
        metavar="NAME",
        help="The key or column that holds the text, in files that have keys or columns.",
    )
    parser.add_argument(
        "--min-tokens",
        type=numbers.integer,
        default=0,
        metavar="N",
        help="Leave out documents of fewer tokens, counted with BOS and EOS.",
    )
    parser.add_argument(
        "--max-tokens",
        type=numbers.integer,
        metavar="N",
        help="Leave out documents of more tokens; default: no limit.",
    )
    parser.add_argument(
        "--held-out",
        type=numbers.number,
        default=0.01,
        metavar="SHARE",
        help="The share of documents that are held out of training, for evaluations; the hash of a "
        "document decides; 0 for none.",
    )
    options.add_bos(parser)
    parser.add_argument(
        "--eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="End each document with EOS.",
    )
    parser.add_argument(
        "--max-rejects",
        type=numbers.number,
        default=0.0,
        metavar="SHARE",
        help="The share of documents that may be broken; they are left out, and listed in "
        "rejects.jsonl.",
    )
    parser.add_argument(
        "--parse-special",
        action="store_true",
        help="Special tokens written out in a document, such as </s>, are those tokens, not text.",
    )
    parser.add_argument(
        "--chat-template",
        metavar="NAME|FILE",
        help="Read chat and instruction records, and mark their answers, which alone are trained: "
        "the checkpoint's own template (own), alpaca, vicuna, llama2, longalpaca, or a file in "
        "Jinja; default: texts are read.",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Print files, sizes, and tokens estimated from a sample; write nothing.",
    )
    options.add_links(parser)
    options.add_resume(parser)
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    options.refuse_rest(args, rest)
    from ctxext import prepare
    from ctxext.interop import hub
    from ctxext.loading import open_tokenizer
    from ctxext.prepare import estimate
    from ctxext.tokenization.answers import training_chat

    tokenizer = open_tokenizer(args.tokenizer)
    template = None
    if args.chat_template is not None:
        if args.bos is not None or not args.eos:
            raise ValueError(
                "--bos and --eos do not go with --chat-template, which decides how a conversation "
                "begins and ends"
            )
        template = training_chat(tokenizer, args.chat_template, "--chat-template").template
    recipe = prepare.Recipe(
        args.field,
        args.bos,
        args.eos and template is None,
        args.min_tokens,
        args.max_tokens,
        args.held_out,
        args.parse_special,
        template,
    )
    sources = [hub.resolve(source, dataset=True) for source in args.sources]
    if args.dry_run:
        prepare.check(recipe, tokenizer, args.workers, args.max_rejects)
        plan = estimate.estimate(sources, tokenizer, recipe, max_rejects=args.max_rejects)
        print(json.dumps(plan) if args.json else estimate.describe(plan))
        return
    index = prepare.prepare(
        sources,
        args.out,
        tokenizer,
        recipe=recipe,
        workers=args.workers,
        max_rejects=args.max_rejects,
    )
    print(json.dumps(index) if args.json else prepare.describe(index, args.out))

"""Continue a prompt, or answer in a chat; text appears while it is generated.

ctxext generate RUN --prompt "Once upon a time"
ctxext generate HF_DIR --method ntk --factor 2 --prompt-file book.txt --temperature 0.7 --top-p 0.9
ctxext generate RUN --chat
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ctxext.cli import numbers, options

GROUP = "Checkpoints and texts"


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_semantics(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="The text to continue or to answer.")
    prompt.add_argument(
        "--prompt-file", metavar="FILE|-", help="A file with the text, in UTF-8; - reads a pipe."
    )
    parser.add_argument(
        "--parse-special",
        action="store_true",
        help="Special tokens written out in the prompt, such as </s>, are those tokens, not text; "
        "in a chat they always are.",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=numbers.integer,
        default=256,
        metavar="N",
        help="How many tokens are generated, unless EOS comes first.",
    )
    parser.add_argument(
        "--temperature",
        type=numbers.number,
        default=0.0,
        metavar="T",
        help="The temperature of sampling; 0 takes the most likely token, whatever "
        "generation_config.json says.",
    )
    parser.add_argument(
        "--top-p",
        type=numbers.number,
        default=1.0,
        metavar="P",
        help="Sample from the most likely tokens whose probabilities add up to this.",
    )
    parser.add_argument(
        "--seed", type=numbers.seed, default=0, metavar="N", help="The seed of sampling."
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="Use the model's chat template; without a prompt, chat turn by turn.",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE|NAME",
        help="A template in Jinja, or a model's prompts by its name: llama2 (the [INST] markers of "
        "its own code), vicuna, alpaca, longalpaca; default: what the run was trained with, or the "
        "checkpoint's.",
    )
    parser.add_argument("--system", metavar="TEXT", help="The system message of the chat.")
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    from ctxext.cli import text_generation
    from ctxext.model.generation import Sampling
    from ctxext.tokenization.chat import TEMPLATES

    methods = options.read_methods(args, rest)  # refuses an unknown option
    if not args.chat and (args.chat_template or args.system):
        raise ValueError("--chat-template and --system belong to --chat")
    if args.chat_template is not None and args.chat_template not in TEMPLATES:
        text_generation.read_text(Path(args.chat_template), "--chat-template")
    if args.system is not None:
        text_generation.check_unicode(args.system, "--system")
    if args.top_p < 1 and not args.temperature:
        raise ValueError("--top-p chooses what is sampled: give --temperature above 0 too")
    Sampling(args.temperature, args.top_p)  # refuses what is out of range
    no_prompt = args.prompt is None and args.prompt_file is None
    if args.chat and no_prompt and not args.json and sys.stdin.isatty():
        prompts = text_generation.typed_lines()
    else:
        prompts = iter([text_generation.read_prompt(args.prompt, args.prompt_file)])
    lm = options.open_model(args, methods)
    stops = text_generation.stop_note(lm)
    if stops:
        print(stops, file=sys.stderr)
    generator = text_generation.TextGenerator(
        lm,
        lm.stop_ids,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        parse_special=args.parse_special,
        quiet=args.json,
    )
    if args.chat:
        chat = _chat(args.source, args.chat_template, lm.tokenizer)
        completion = generator.chat(prompts, args.system, chat)
    else:
        completion = generator.complete(next(prompts))
    print(lm.tokenizer.bos_note, file=sys.stderr)
    if args.json:
        print(json.dumps(completion.data))


def _chat(source: str, template: str | None, tokenizer: Any) -> Any:
    """By the template that is named, that a run was trained with, or that the checkpoint has."""
    from ctxext.cli.trained_chat import trained_chat
    from ctxext.tokenization.chat import OWN, chat_of

    if template is not None:
        return chat_of(tokenizer, template)
    trained = trained_chat(source, tokenizer)
    if trained is None:
        return chat_of(tokenizer)
    chat, name = trained
    if name != OWN:
        print(
            f"chat template: {name}, which the run was trained with (--chat-template)",
            file=sys.stderr,
        )
    return chat

"""What is done with text: prepare it for training."""

import argparse
import json

from ctxext.cli.commands.shared import refuse_rest


def prepare(args: argparse.Namespace, rest: list[str]) -> None:
    refuse_rest(rest)
    from ctxext import prepare as module
    from ctxext.interop import hub
    from ctxext.loading import open_tokenizer
    from ctxext.prepare import estimate

    recipe = module.Recipe(
        args.field, args.bos, args.eos, args.min_tokens, args.max_tokens, args.held_out
    )
    tokenizer = open_tokenizer(args.tokenizer)
    sources = [hub.resolve(source, dataset=True) for source in args.sources]
    if args.dry_run:
        module.check(recipe, tokenizer, args.workers, args.max_rejects)
        plan = estimate.estimate(sources, tokenizer, recipe)
        print(json.dumps(plan) if args.json else estimate.describe(plan))
        return
    index = module.prepare(
        sources,
        args.out,
        tokenizer,
        recipe=recipe,
        workers=args.workers,
        max_rejects=args.max_rejects,
    )
    print(json.dumps(index) if args.json else module.describe(index, args.out))

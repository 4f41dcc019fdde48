"""What is done with text: prepare it for training."""

import argparse
import json
from pathlib import Path
from typing import Any

from ctxext.cli.commands.shared import refuse_rest


def prepare(args: argparse.Namespace, rest: list[str]) -> None:
    refuse_rest(rest)
    from ctxext import prepare as module
    from ctxext.interop import hub
    from ctxext.prepare import estimate

    recipe = module.Recipe(
        args.field, args.bos, args.eos, args.min_tokens, args.max_tokens, args.held_out
    )
    tokenizer = _tokenizer(args.tokenizer)
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


def _tokenizer(source: str) -> Any:
    """That of a directory, of a hub name, or the file itself."""
    from ctxext.tokenization.tokenizer import MODEL, Tokenizer, load_tokenizer

    path = Path(source)
    if path.is_file():
        return (
            Tokenizer({MODEL: path.read_bytes()})
            if path.suffix == ".model"
            else load_tokenizer(path.parent)
        )
    if path.is_dir():
        return load_tokenizer(path / "base" if (path / "base" / "model.json").is_file() else path)
    from ctxext import loading  # brings jax, which nothing else here needs

    return load_tokenizer(loading.locate(source))

"""Upload a proven export to the Hugging Face hub, or to another endpoint. Needs the extra hub.

ctxext publish runs/mine/export OWNER/NAME --dry-run
ctxext publish runs/mine/export OWNER/NAME
ctxext publish llama2-8k.gguf OWNER/NAME --card README.md --public

An export that was not proven, or that has changed since, is refused. The token is the one of
hf auth login, or HF_TOKEN.
"""

import argparse
import json
import sys
from typing import Any

from ctxext.cli import options

GROUP = "Checkpoints and texts"
KEPT = "the export is as it was, and weights that have arrived are not sent again"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="EXPORT", help="An export with its proof: a directory or a GGUF file."
    )
    parser.add_argument("repo", metavar="OWNER/NAME", help="The repository; created if missing.")
    parser.add_argument(
        "--card",
        metavar="FILE",
        help="The model card to upload; default: README.md of the export. A GGUF file has none.",
    )
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private",
        action="store_true",
        help="Only you, or your organization, see the repository; this is the default.",
    )
    visibility.add_argument("--public", action="store_true", help="Everybody sees the repository.")
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="Another server with the interface of the hub; default: HF_ENDPOINT, or the hub.",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Check everything here, list what would be uploaded, and send nothing.",
    )
    options.add_json(parser)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    options.refuse_rest(args, rest)
    from ctxext.publish import Publication, upload
    from ctxext.publish.upload import chosen_endpoint

    endpoint = chosen_endpoint(args.endpoint)
    publication = Publication.of(args.source, args.repo, card=args.card)
    facts = {
        "repo": args.repo,
        "endpoint": endpoint,
        "private": not args.public,
        "files": publication.sizes(),
        "left_out": list(publication.hidden),
        "front_matter": publication.card.front_matter,
        "proof": publication.proof.state({}),
        "notes": list(publication.notes),
    }
    if not args.json:
        print("\n".join(_lines(facts)), file=sys.stdout if args.dry_run else sys.stderr)
    if args.dry_run:
        if args.json:
            print(json.dumps(facts))
        return
    uploaded = upload(publication, endpoint=endpoint, private=not args.public)
    if args.json:
        print(json.dumps(facts | {"commit": uploaded.url, "is_new": uploaded.is_new}))
    else:
        said = "published" if uploaded.is_new else "there is nothing new to publish"
        print(f"{said}: {uploaded.url}")


def _lines(facts: dict[str, Any]) -> list[str]:
    """A description of the upload."""
    visibility = "private" if facts["private"] else "public"
    files = facts["files"]
    width = len(f"{max(files.values()):,}")
    return [
        f"{facts['repo']} ({visibility}) at {facts['endpoint']}",
        f"{len(files)} files, {sum(files.values()):,} bytes:",
        *(f"  {size:>{width},}  {name}" for name, size in files.items()),
        *([f"left out, as hidden: {', '.join(facts['left_out'])}"] if facts["left_out"] else []),
        "the card begins with:",
        *(f"  {line}" for line in facts["front_matter"].splitlines()),
        facts["proof"],
        *(f"note: {note}" for note in facts["notes"]),
    ]

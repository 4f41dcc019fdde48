"""What a budget left out of the evaluations of an experiment, in words."""

from typing import Any

from ctxext.terminal import printable_line


def left_out(budget: dict[str, Any]) -> str:
    """A sentence for the contents of budget.json; "" if everything was asked."""
    parts = [
        f"{part['asked']:,} of {part['declared']:,} {part['title']}"
        for part in budget.get("evaluations", [])
        if part["asked"] < part["declared"]
    ]
    if not parts:
        return ""
    return printable_line(
        f"--budget {budget['budget']} asked only a part of what the experiment declares: "
        f"{', '.join(parts)}."
    )

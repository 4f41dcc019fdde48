"""A proof to read."""

from typing import Any

BASE_CHECKED = {
    True: "whose shape, frequencies and parameters are those that it was trained on",
    False: "which it says nothing about: NOT CHECKED to be the one that it was trained on",
}
ROWS = {
    "tables": "cos and sin",
    "rotated": "rotated q and k, layer 0",
    "logits": "logits",
    "logits_exact_angles": "logits, our exact angles",
}


def describe(proof: dict[str, Any]) -> str:
    """Which readers ran, the largest difference of each at each position, and which readers get it wrong."""
    names = " and ".join(f"{r['reader']} {r['version']}" for r in proof["readers"])
    verdict = "EQUAL" if proof["equal"] else "NOT EQUAL"
    lines = [f"proof: {verdict} to {proof['against']}, read by {names} ({proof['dtype']} weights)"]
    if "base" in proof:
        lines.append(f"  on {proof['base']}, {BASE_CHECKED[proof['base_checked']]}")
    lines += [f"  not read by {name}: {why}" for name, why in proof["readers_not_run"].items()]
    lines += [
        f"  weights that differ: {', '.join(names)}"
        for names in [proof["weights_that_differ"]]
        if names
    ]
    lines.append(
        f"  {'largest difference at position':46}" + "".join(f"{p:>10}" for p in proof["positions"])
    )
    for reader in proof["readers"]:
        rows = (
            ROWS if "logits_exact_angles" not in reader else ROWS | {"logits": "logits, its angles"}
        )
        for key, text in rows.items():
            if key in reader:
                values = "".join(f"{value:>10.1e}" for value in reader[key])
                lines.append(f"  {reader['reader'] + ': ' + text:46}{values}")
        lines.append(
            f"  {reader['reader']}: {', '.join(_facts(reader, proof['tokens_continued']))}"
        )
    lines += [f"  wrong in {trap['reader']}: {trap['what']}" for trap in proof["traps"]]
    return "\n".join(lines)


def _facts(reader: dict[str, Any], continued: int) -> list[str]:
    facts = []
    if "inv_freq" in reader:
        facts = [
            f"frequencies differ by {reader['inv_freq']:.1e} (relative)",
            f"attention factor by {reader['attention_factor']:.1e}",
        ]
    facts += {True: ["token ids equal"], False: ["TOKEN IDS DIFFER"], None: []}[
        reader["token_ids_equal"]
    ]
    off = f"off by {reader['greedy']:.1e}" if reader["greedy"] else "equal"
    return [*facts, f"greedy continuation of {continued} tokens {off}"]

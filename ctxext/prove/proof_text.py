"""A proof as text."""

from typing import Any

from ctxext.prove.file_digests import in_words
from ctxext.terminal import printable_line

BASE_CHECKED = {
    True: "whose shape, frequencies and parameters are those that it was trained on",
    False: "NOT CHECKED to be the base that it was trained on, which the adapter does not record",
}
COMPARISONS = {
    "tables": "cos and sin",
    "rotated": "rotated q and k, layer 0",
    "logits": "logits",
    "logits_exact_angles": "logits, our exact angles",
}


def describe(proof: dict[str, Any]) -> str:
    """The verdict, each reader's largest difference per position, and known incompatibilities."""
    names = " and ".join(f"{r['reader']} {r['version']}" for r in proof["readers"])
    verdict = "EQUAL" if proof["equal"] else "NOT EQUAL"
    lines = [f"proof: {verdict} to {proof['against']}, read by {names} ({proof['dtype']} weights)"]
    if "base" in proof:
        lines.append(f"  on {proof['base']}, {BASE_CHECKED[proof['base_checked']]}")
    if "base_quantized" in proof:
        lines.append(
            f"  it was trained on that base in {proof['base_quantized']}: weights are compared on "
            "the dequantized base, readers read it on the base as it is stored"
        )
    lines += _files(proof)
    lines += [f"  not read by {name}: {why}" for name, why in proof["readers_not_run"].items()]
    if proof["weights_that_differ"]:
        lines.append(f"  weights that differ: {', '.join(proof['weights_that_differ'])}")
        if proof["adapter"] is None and "base" not in proof:
            lines.append("  if an adapter was merged before the export, name it with --adapter")
    if proof["weights_that_differ_by_rounding"]:
        count = len(proof["weights_that_differ_by_rounding"])
        lines.append(f"  {count} merged weights differ from our merge by rounding alone")
    lines += [f"  NOT THE MODEL'S: {difference}" for difference in proof["settings_that_differ"]]
    effect = "" if proof["weights_that_differ"] else ", without effect on what is computed here"
    lines += [f"  ANOTHER SETTING{effect}: {noted}" for noted in proof.get("settings_noted", ())]
    if proof["settings_not_known"]:
        unknown = ", ".join(proof["settings_not_known"])
        lines.append(f"  NOT COMPARED, as they are not known here: {unknown}")
    if proof["generation_settings_that_differ"]:
        keys = ", ".join(proof["generation_settings_that_differ"])
        lines.append(f"  generation_config.json differs: {keys}")
    positions = "".join(f"{position:>10}" for position in proof["positions"])
    lines.append(f"  {'largest difference at position':46}{positions}")
    for reader in proof["readers"]:
        comparisons = dict(COMPARISONS)
        if "logits_exact_angles" in reader:
            comparisons["logits"] = "logits, its angles"
        for key, text in comparisons.items():
            if key in reader:
                values = "".join(f"{value:>10.1e}" for value in reader[key])
                lines.append(f"  {reader['reader'] + ': ' + text:46}{values}")
        facts = ", ".join(_facts(reader, proof["tokens_continued"]))
        lines.append(f"  {reader['reader']}: {facts}")
    lines += [
        f"  wrong in {known['reader']}: {known['effect']} ({known['source']})"
        for known in proof["known_incompatibilities"]
    ]
    return "\n".join(map(printable_line, lines))


def _files(proof: dict[str, Any]) -> list[str]:
    """What the comparison is of, and what is known of the files from an earlier proof."""
    lines = []
    if not proof["compared_with_model"]:
        lines.append(
            "  compared are readings of the same files, not the files with the model that was "
            "exported: name it with --against"
        )
    recorded = proof.get("recorded")
    if recorded is None:
        return lines
    verdict = "EQUAL" if recorded["equal"] else "NOT EQUAL"
    lines.append(f"  {recorded['file']} is kept: {verdict} to {recorded['against']}")
    if proof["files_that_differ"]:
        lines += [
            f"  CHANGED SINCE THEN: {in_words(proof['files_that_differ'])}",
            "  if that is meant, compare with --against again, or remove the recorded proof",
        ]
    else:
        lines.append(f"  all {len(proof['files'])} files are those of that proof, by sha256")
    return lines


def _facts(reader: dict[str, Any], continuation_tokens: int) -> list[str]:
    facts = []
    if "inv_freq" in reader:
        relative = f"differ by {reader['inv_freq']:.1e} (relative)"
        facts.append(f"frequencies {relative if reader['inv_freq'] else 'equal'}")
        factor = f"differs by {reader['attention_factor']:.1e}"
        facts.append(f"attention factor {factor if reader['attention_factor'] else 'equal'}")
        wrong = reader["text_lengths_that_differ"]
        if wrong and wrong != reader["text_lengths"]:
            facts.append(f"ONLY IN TEXTS OF {', '.join(map(str, wrong))} TOKENS")
    if reader["token_ids_equal"] is not None:
        facts.append("token ids equal" if reader["token_ids_equal"] else "TOKEN IDS DIFFER")
    if reader["vocabulary_equal"] is not None:
        facts.append("vocabulary equal" if reader["vocabulary_equal"] else "VOCABULARY DIFFERS")
    if reader["special_ids_equal"] is False:
        facts.append("BOS OR EOS IS ANOTHER TOKEN")
    if reader["chat_ids_equal"] is not None:
        facts.append("chat equal" if reader["chat_ids_equal"] else "CHAT DIFFERS")
    greedy = f"off by {reader['greedy']:.1e}" if reader["greedy"] else "equal"
    return [*facts, f"greedy continuation of {continuation_tokens} tokens {greedy}"]

"""The proof of a directory: what readers make of it beside what we do, as data, as text, and in its model card."""

from pathlib import Path
from typing import Any

import numpy as np

from ctxext import distributed, door
from ctxext.files import write_json, write_text
from ctxext.interop import hf, peft
from ctxext.interop.card import with_proof
from ctxext.interop.tensors import find_tensors, numpy_dtype
from ctxext.interop.weights import slots, storage_dtype
from ctxext.lm import LM
from ctxext.prove.compare import compare
from ctxext.prove.readers import Probe, read_numpy, read_torch
from ctxext.prove.subject import Subject
from ctxext.sharding import ONE_DEVICE

EVERY_POSITION = 2e10  # parameters x tokens up to which a proof reads the whole window
CONTINUED = 16  # tokens of a prompt, and of its greedy continuation
BASE_CHECKED = {
    True: "whose shape, frequencies and parameters are those that it was trained on",
    False: "which it says nothing about: NOT CHECKED to be the one that it was trained on",
}


def prove(
    directory: str | Path, *, against: LM | str | Path | None = None, checkpoint: int | str = "latest"
) -> dict[str, Any]:
    """Compare an export, or a PEFT adapter on its base, with `against` in every reader there is.

    against: a model, a run (its `checkpoint`) or an HF directory, by default our own reading of the same files. For an
    adapter an HF directory is the base, in place of the one that it names.
    Writes proof.json and fills the proof section of the model card. "equal" in the result is the verdict. Raises
    ValueError for a directory that cannot be read and for a base that does not fit, OSError if it cannot be written.
    """
    directory, base = Path(directory), None
    if isinstance(against, str | Path) and peft.is_adapter(directory) and not door.is_run(door.locate(against)):
        against, base = None, against
    if isinstance(against, str | Path):
        against = door.load(against, checkpoint=checkpoint)
    elif checkpoint != "latest":
        raise ValueError(f"checkpoint {checkpoint} is one of a run; name that with --against RUN")
    subject = Subject.of(directory, base)
    read = subject.open(ONE_DEVICE if against is None else against.mesh)
    ours = read if against is None else LM(against.config, read.params, against.tokenizer, scaling=against.scaling,
                                           mesh=against.mesh)  # fmt: skip
    # The merged parameters of an adapter are no file.
    stored = "float32" if subject.adapter else storage_dtype(find_tensors(directory).values())
    different = [] if against is None else _different_weights(read.params, against.params, stored)
    config, _ = hf.read_config(subject.base)
    # A scaling is looked at beyond the window of pre-training, also if it declares none.
    original = config.max_position_embeddings
    length = max(hf.window(subject.base), original + 1)
    marks = [0, original - 1, original, length - 1]
    probe = _probe(marks, config.vocab_size, every=config.num_parameters * length <= EVERY_POSITION)
    continued = _continued(ours, probe) if subject.adapter else None
    probes = [probe] if continued is None else [probe, continued]
    readings, missing = [read_numpy(subject, probes)], {}
    try:
        readings.append(read_torch(subject, probes))
    except ModuleNotFoundError as error:
        missing["peft" if subject.adapter else "transformers"] = f"{error.name} is not installed"
    readers = [compare(ours, reading, probe, continued) for reading in readings]
    kind = "adapter" if subject.adapter else "export"
    proof = {
        "equal": not different and all(reader["equal"] for reader in readers),
        "against": f"our own reading of the {kind}" if against is None else "the model that was exported",
        "dtype": stored, "original_max_position_embeddings": original, "max_position_embeddings": length,
        "positions": marks, "tokens_read": len(probe.tokens), "weights_that_differ": different,
        "readers": readers, "readers_not_run": missing,
    }  # fmt: skip
    if subject.adapter:
        proof |= {"base": str(subject.base), "base_checked": subject.recorded}
    distributed.once(lambda: write_json(directory / "proof.json", proof))
    if (card := directory / "README.md").is_file():
        distributed.once(lambda: write_text(card, with_proof(card.read_text(), f"```\n{describe(proof)}\n```")))
    return proof


def describe(proof: dict[str, Any]) -> str:
    """A proof to read: which readers ran, and the largest difference of each at each position."""
    names = " and ".join(f"{r['reader']} {r['version']}" for r in proof["readers"])
    verdict = "EQUAL" if proof["equal"] else "NOT EQUAL"
    lines = [f"proof: {verdict} to {proof['against']}, read by {names} ({proof['dtype']} weights)"]
    if "base" in proof:
        lines.append(f"  on {proof['base']}, {BASE_CHECKED[proof['base_checked']]}")
    lines += [f"  not read by {name}: {why}" for name, why in proof["readers_not_run"].items()]
    lines += [f"  weights that differ: {', '.join(names)}" for names in [proof["weights_that_differ"]] if names]
    lines.append(f"  {'largest difference at position':46}" + "".join(f"{p:>10}" for p in proof["positions"]))
    for reader in proof["readers"]:
        for key, text in (("tables", "cos and sin"), ("logits", "logits, its angles"),
                          ("logits_exact_angles", "logits, our exact angles")):  # fmt: skip
            if key in reader:
                values = "".join(f"{value:>10.1e}" for value in reader[key])
                lines.append(f"  {reader['reader'] + ': ' + text:46}{values}")
        same = {True: ", token ids equal", False: ", TOKEN IDS DIFFER", None: ""}[reader["token_ids_equal"]]
        if "greedy" in reader:
            off = f"off by {reader['greedy']:.1e}" if reader["greedy"] else "equal"
            same += f", greedy continuation {off}"
        lines.append(f"  {reader['reader']}: frequencies differ by {reader['inv_freq']:.1e} (relative), "
                     f"attention factor by {reader['attention_factor']:.1e}{same}")  # fmt: skip
    return "\n".join(lines)


def _different_weights(params: Any, given: Any, stored: str) -> list[str]:
    """Names of tensors that are not the given ones rounded to the stored dtype, bit by bit."""
    kind, read = numpy_dtype(stored), slots(params)
    wanted = slots(given)
    names = [n for n in wanted if n in read and read[n].shape == wanted[n].shape]
    equal = [n for n in names if np.array_equal(wanted[n].get().astype(kind).astype(np.float32), read[n].get())]
    return sorted((wanted.keys() | read.keys()) - set(equal))


def _probe(marks: list[int], vocab_size: int, *, every: bool) -> Probe:
    # Far fewer tokens than positions still meet every distance, because each attends to all before it.
    near = [np.arange(mark - 4, mark + 5) for mark in marks]
    positions = np.arange(marks[-1] + 1) if every else np.unique(np.concatenate([*near, np.linspace(0, marks[-1], 48)]))
    positions = positions[(positions >= 0) & (positions <= marks[-1])].astype(np.int64)
    positions = np.unique(positions)
    tokens = np.random.default_rng(0).integers(0, vocab_size, len(positions))
    return Probe(tokens, positions, np.searchsorted(positions, marks))


def _continued(ours: LM, probe: Probe) -> Probe:
    """A prompt and our greedy continuation of it, compared where the next token is chosen."""
    prompt = probe.tokens[:CONTINUED]
    tokens = np.concatenate([prompt, ours.generate(prompt[None], max_new_tokens=CONTINUED)[0]])
    return Probe(tokens, np.arange(len(tokens)), np.arange(len(prompt) - 1, len(tokens) - 1))

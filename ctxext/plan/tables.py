"""`ctxext plan`: an experiment's memory, operations and verdict, to read and as data."""

import dataclasses
import json
import math
from typing import Any

from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.plan.accelerators import ACCELERATORS, GIB, Accelerator, topology
from ctxext.plan.compile_request import Verdict, ask
from ctxext.plan.flops import Flops, step_flops
from ctxext.plan.job import Job, count
from ctxext.plan.memory import Memory, cache_bytes, memory
from ctxext.plan.search import MARGIN, Candidate, search
from ctxext.rope import RopeScaling

MFU = 0.4
"""Assumed: model FLOP/s over the peak of the data sheet. Llama-sized models are reported between 0.3 and 0.5."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """One experiment on some devices (accelerator None: on any), and what was asked about it."""

    experiment: Experiment
    job: Job
    accelerator: Accelerator | None
    memory: Memory
    flops: Flops
    verdict: Verdict | None = None
    candidates: tuple[Candidate, ...] = ()

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        config: LlamaConfig,
        scaling: RopeScaling,
        *,
        on: str | None = None,
        compiled: bool = False,
        precise: bool = False,
        searched: bool = False,
    ) -> "Plan":
        """Plan the experiment on a topology such as "v5p:2x2x4"; with `searched`, its winner. Allocates nothing.

        Raises ValueError for what does not fit together: mesh, batch, topology, or options that need a topology.
        """
        accelerator, devices = topology(on) if on else (None, 0)
        if accelerator is None:
            if compiled or searched:
                raise ValueError(
                    "--compile and --search need --topology, such as v5p:2x2x4 or h100:8"
                )
            sizes = experiment.mesh.sizes.values()
            if -1 in sizes:
                raise ValueError(
                    f"mesh {experiment.mesh.text} takes all devices there are; say which with --topology"
                )
            devices = math.prod(sizes)
        candidates: tuple[Candidate, ...] = ()
        if searched and accelerator:
            candidates = tuple(search(experiment, config, accelerator, devices))
            experiment = candidates[0].experiment
        job = Job.of(experiment, config, devices)
        verdict = ask(experiment, config, scaling, on, precise=precise) if compiled and on else None
        found = memory(job, accelerator.platform if accelerator else "tpu")
        return cls(experiment, job, accelerator, found, step_flops(job), verdict, candidates)

    @property
    def seconds(self) -> float | None:
        """A step's time at the assumed MFU; None where the accelerator's speed is not known."""
        if self.accelerator is None or self.accelerator.flops is None:
            return None
        return self.flops.model / (self.job.devices * self.accelerator.flops * MFU)

    @property
    def tokens(self) -> int:
        """Tokens of an optimiser step."""
        return self.job.batch_size * self.job.accumulate * self.job.seq_len

    def verdicts(self) -> list[dict[str, Any]]:
        """Per accelerator: does it fit, bytes needed and usable, who says so."""
        by = [self.accelerator] if self.accelerator else list(ACCELERATORS.values())
        needs = [memory(self.job, x.platform).peak for x in by]
        rows = [
            {
                "accelerator": x.name,
                "by": "arithmetic",
                "needs": peak,
                "has": x.memory,
                "fits": peak <= x.memory,
            }
            for x, peak in zip(by, needs, strict=True)
        ]
        if self.verdict:
            rows.append(
                {
                    "accelerator": by[0].name,
                    "by": "compiler",
                    "needs": self.verdict.needs,
                    "has": self.verdict.has,
                    "fits": self.verdict.fits,
                }
            )
        return rows

    def json(self) -> str:
        """Everything as data; bytes and operations are whole numbers."""
        job = self.job
        return json.dumps(
            {
                "experiment": self.experiment.name,
                "mesh": job.sizes,
                "devices": job.devices,
                "parameters": self._parameters(),
                "trained": count(job.trees.trained),
                "tokens_per_step": self.tokens,
                "bytes_at_peak": self.memory.at_peak,
                "bytes": dataclasses.asdict(self.memory),
                "cache_bytes": self._cache(),
                "flops": dataclasses.asdict(self.flops) | {"model": self.flops.model},
                "seconds_per_step": self.seconds,
                "assumed_mfu": MFU,
                "verdicts": self.verdicts(),
                "candidates": [
                    {"flags": c.flags, "seq_len": c.seq_len, "needs": c.needs}
                    for c in self.candidates
                ],
            },
            indent=2,
        )

    def text(self) -> str:
        """What holds how much, the verdicts, operations and assumptions."""
        job, found = self.job, self.memory.at_peak
        where = f"{self.accelerator.name}, " if self.accelerator else ""
        mesh = " x ".join(f"{axis} {size}" for axis, size in job.sizes.items())
        lines = [
            *self._search_lines(),
            f"{self.experiment.name} on {where}{job.devices} devices: {mesh}",
            f"{self._parameters():,} parameters, {count(job.trees.trained):,} of them trained",
            f"{self.tokens:,} tokens a step: {job.batch_size} x {job.accumulate} rows of {job.seq_len:,}",
            "",
            f"a {self.accelerator.name if self.accelerator else 'TPU'} holds at the peak of a step, GiB (arithmetic)",
            *[f"  {name:<28}{size / GIB:>8.2f}" for name, size in found.items() if size],
            f"  {'together':<28}{self.memory.peak / GIB:>8.2f}",
            "",
            *[_verdict_line(row) for row in self.verdicts()],
            *self._advice(),
            "",
            f"generating at {job.seq_len:,} tokens, keys and values take {self._cache() / GIB:.2f} GiB a device",
            *self._operations(),
        ]
        if self.accelerator:
            lines.append(f"usable memory: {self.accelerator.source}")
        if self.verdict and not self.verdict.precise:
            lines.append(
                "the compiler was asked at its quickest, so 12 % are kept free; --precise asks as a run does"
            )
        return "\n".join(lines)

    def _operations(self) -> list[str]:
        flops, steps, device = self.flops, self.experiment.train.steps, self.accelerator
        lines = [
            f"a step is {flops.model:.3g} FLOPs, {flops.model / self.tokens:.3g} a token, and "
            f"{flops.recomputed:.2g} again; attention is {flops.attention / flops.total:.0%}"
        ]
        if self.seconds is not None and device and device.flops:
            lines.append(
                f"{self.seconds:.3g} s a step, {steps * self.seconds / 3600:.2g} h for {steps} steps, if "
                f"{MFU:.0%} of {device.flops / 1e12:.0f} TFLOP/s is reached (assumed)"
            )
        return lines

    def _parameters(self) -> int:
        return count(self.job.trees.trained) + count(self.job.trees.frozen)

    def _cache(self) -> int:
        return cache_bytes(self.job, self.job.seq_len)

    def _advice(self) -> list[str]:
        """What to change where it does not fit: the candidate on the same devices that needs least."""
        if (
            self.accelerator is None
            or all(row["fits"] for row in self.verdicts())
            or self.candidates
        ):
            return []
        found = [
            x
            for x in search(self.experiment, self.job.config, self.accelerator, self.job.devices)
            if x.seq_len >= self.job.seq_len
        ]
        if not found:
            return [
                "no mesh of these devices holds it; take more devices, or a shorter train.seq-len (see --search)"
            ]
        best = min(
            found, key=lambda c: not c.own
        ).experiment  # what was asked to be trained, if any way fits
        train = dataclasses.replace(best.train, seq_len=self.job.seq_len)
        own = best.trainable == self.experiment.trainable
        return [
            f"try {Candidate(dataclasses.replace(best, train=train), train.seq_len, 0, own).flags}"
        ]

    def _search_lines(self) -> list[str]:
        if not self.candidates:
            return []
        lines = [
            f"longest context that fits with {MARGIN:.0%} to spare (arithmetic)",
            f"  {'mesh':<40}{'remat':<8}{'trained':<14}{'tokens':>10}",
        ]
        for c in self.candidates:
            mesh, remat = c.experiment.mesh.text, c.experiment.train.remat
            lines.append(f"  {mesh:<40}{remat:<8}{c.trains:<14}{c.seq_len:>10,}")
        return [*lines, f"the longest: {self.candidates[0].flags}", ""]


def _verdict_line(row: dict[str, Any]) -> str:
    needs, has = row["needs"] / GIB, row["has"] / GIB
    name = f"{row['accelerator']} ({row['by']})"
    if row["fits"]:
        return f"{name}: fits, {needs:.1f} of {has:.2f} GiB"
    return f"{name}: does not fit, needs {needs:.1f} GiB, has {has:.2f}"

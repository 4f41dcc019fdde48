"""The plan of an experiment: memory, operations, and whether it fits, as text and as data."""

import dataclasses
import json
import math
import typing
from typing import Any

from ctxext.experiment import Experiment
from ctxext.methods import label
from ctxext.model.config import LlamaConfig
from ctxext.model.quantized import Quantize
from ctxext.plan.accelerators import ACCELERATORS, GIB, Accelerator, topology
from ctxext.plan.compile_request import Verdict, compile_step
from ctxext.plan.flops import Flops, step_flops
from ctxext.plan.job import Job, count
from ctxext.plan.memory import Memory, cache_bytes, memory
from ctxext.plan.search import MARGIN, Candidate, longest_float, search
from ctxext.report.table import table_of_texts
from ctxext.rope import RopeScaling

MFU = 0.4
"""Assumed share of the peak on the data sheet; for Llama-sized models, 0.3 to 0.5 are reported."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """One experiment on some devices; accelerator None: on the devices of any accelerator."""

    experiment: Experiment
    job: Job
    accelerator: Accelerator | None
    memory: Memory
    flops: Flops
    verdict: Verdict | None = None
    """The compiler's, if it was asked."""
    candidates: tuple[Candidate, ...] = ()
    """The result of a search, if there was one."""
    asked: int = 0
    """Tokens per row of the experiment before the search."""

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
        """Plan the experiment on the topology `on`, such as "v5p:2x2x4". Allocates nothing.

        compiled: ask the compiler too, precise: with the effort of a real run. searched: plan the
        candidate with the longest context instead. Raises ValueError if mesh, batch and topology do
        not fit together, and for options that need a topology.
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
                    f"mesh {experiment.mesh.text} takes all devices there are; "
                    "say which with --topology"
                )
            devices = math.prod(sizes)
        asked = experiment.train.seq_len
        candidates: tuple[Candidate, ...] = ()
        if searched and accelerator:
            candidates = tuple(search(experiment, config, accelerator, devices))
            experiment = candidates[0].experiment
        job = Job.of(experiment, config, devices)
        verdict = None
        if compiled and on:
            verdict = compile_step(experiment, config, scaling, on, precise=precise)
        return cls(
            experiment=experiment,
            job=job,
            accelerator=accelerator,
            memory=memory(job, accelerator.platform if accelerator else "tpu"),
            flops=step_flops(job),
            verdict=verdict,
            candidates=candidates,
            asked=asked,
        )

    @property
    def seconds(self) -> float | None:
        """Time of a step at the assumed MFU; None if the accelerator's speed is not known."""
        if self.accelerator is None or self.accelerator.flops is None:
            return None
        return self.flops.model / (self.job.devices * self.accelerator.flops * MFU)

    @property
    def transfer_seconds(self) -> float | None:
        """Time of a step on the link to the host, there and back.

        It is hidden where it is shorter than computing. None if nothing waits on the host, or if
        the speed of the link is not known.
        """
        device = self.accelerator
        if device is None or device.host_link is None or not self.memory.host:
            return None
        return 2 * self.memory.host * self.job.accumulate / device.host_link

    @property
    def tokens(self) -> int:
        """Tokens per optimiser step."""
        return self.job.batch_size * self.job.accumulate * self.job.seq_len

    def verdicts(self) -> list[dict[str, Any]]:
        """Rows that say for each accelerator whether the step fits, and by what.

        "by" is "arithmetic" or "compiler"; "needs" and "has" are bytes per device.
        """
        accelerators = [self.accelerator] if self.accelerator else list(ACCELERATORS.values())
        rows: list[dict[str, Any]] = []
        for accelerator in accelerators:
            peak = memory(self.job, accelerator.platform).peak
            rows.append(
                {
                    "accelerator": accelerator.name,
                    "by": "arithmetic",
                    "needs": peak,
                    "has": accelerator.memory,
                    "fits": peak <= accelerator.memory,
                }
            )
        if self.verdict:
            rows.append(
                {
                    "accelerator": accelerators[0].name,
                    "by": "compiler",
                    "needs": self.verdict.needs,
                    "has": self.verdict.has,
                    "fits": self.verdict.fits,
                }
            )
        return rows

    def json(self) -> str:
        """The plan as JSON; bytes and operations are whole numbers."""
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
                "host_bytes": self.memory.host,
                "transfer_seconds_per_step": self.transfer_seconds,
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
        """The plan to read: memory by use, verdicts, operations and assumptions."""
        job = self.job
        name = self.accelerator.name if self.accelerator else "device"
        on = f"{self.accelerator.name}, " if self.accelerator else ""
        mesh = " x ".join(f"{axis} {size}" for axis, size in job.sizes.items())
        lines = [
            *self._search_lines(),
            f"{self.experiment.name} on {on}{job.devices} device{'s' * (job.devices != 1)}: {mesh}",
            f"{self._parameters():,} parameters, {count(job.trees.trained):,} of them trained",
            f"{self.tokens:,} tokens per step: "
            f"{job.batch_size} x {job.accumulate} rows of {job.seq_len:,}",
            "",
            f"memory of one {name} at the peak of a step, GiB (arithmetic)",
            *[
                f"  {use:<28}{size / GIB:>8.2f}"
                for use, size in self.memory.at_peak.items()
                if size
            ],
            f"  {'total':<28}{self.memory.peak / GIB:>8.2f}",
            *self._host_lines(),
            "",
            *[_verdict_line(row) for row in self.verdicts()],
            *self._advice(),
            "",
            f"generating at {job.seq_len:,} tokens, keys and values take "
            f"{self._cache() / GIB:.2f} GiB per device",
            *self._operations(),
        ]
        if self.accelerator:
            lines.append(f"usable memory: {self.accelerator.source}")
        if self.verdict and not self.verdict.precise:
            lines.append(
                "the compiler optimised as little as it can, so 12 % are kept free; "
                "--precise compiles as a run does"
            )
        return "\n".join(lines)

    def _operations(self) -> list[str]:
        flops = self.flops
        device = self.accelerator
        lines = [
            f"a step takes {flops.model:.3g} FLOPs, {flops.model / self.tokens:.3g} per token, and "
            f"recomputes {flops.recomputed:.2g}; attention is {flops.attention / flops.total:.0%}"
        ]
        if flops.loss:
            lines.append(
                f"{flops.loss / flops.model:.0%} of them are for further passes of "
                f"{label([self.job.loss])}"
            )
        if self.seconds is not None and device and device.flops:
            steps = self.experiment.train.steps
            lines.append(
                f"{self.seconds:.3g} s per step, {steps * self.seconds / 3600:.2g} h for {steps} "
                f"steps, assuming {MFU:.0%} of {device.flops / 1e12:.0f} TFLOP/s"
            )
        return lines

    def _host_lines(self) -> list[str]:
        """What waits in the memory of the host, and what copying it takes."""
        if not self.memory.host:
            return []
        by = f"{self.memory.host / GIB:.2f} by arithmetic"
        if self.verdict:
            by += f", {self.verdict.host / GIB:.2f} by the compiler"
        lines = [f"memory of the host for each device, GiB: {by} (inputs of layers)"]
        if self.transfer_seconds is not None and self.accelerator and self.accelerator.host_link:
            lines.append(
                f"  copying them there and back takes {self.transfer_seconds:.3g} s per step at "
                f"{self.accelerator.host_link / 1e9:.0f} GB/s, while the device computes"
            )
        return lines

    def _parameters(self) -> int:
        return count(self.job.trees.trained) + count(self.job.trees.frozen)

    def _cache(self) -> int:
        return cache_bytes(self.job, self.job.seq_len)

    def _advice(self) -> list[str]:
        """If it does not fit, how it would on the same devices: the best candidate of a search."""
        if self.accelerator is None or self.candidates:
            return []
        # Where the compiler was asked, its verdict is the one that counts.
        if self.verdicts()[-1]["fits"]:
            return []
        long_enough = [
            candidate
            for candidate in search(
                self.experiment, self.job.config, self.accelerator, self.job.devices
            )
            if candidate.seq_len >= self.job.seq_len
        ]
        if not long_enough:
            return [
                "no mesh of these devices holds it; take more devices, or a shorter train.seq-len "
                "(see --search)"
            ]
        # One that trains what the experiment does comes first, if there is any, then one whose base
        # is not quantized, or in the most bits, and one that needs no memory of the host.
        forms = typing.get_args(Quantize)

        def rank(candidate: Candidate) -> tuple[bool, int, bool]:
            return not candidate.own, forms.index(candidate.quantize), candidate.offloads

        best = min(long_enough, key=rank)
        lines = [f"try {self._flags(best)}"]
        if best.quantizes:
            lines.insert(0, "it fits on a quantized base only (QLoRA)")
        on_device = [c for c in long_enough if c.quantizes and c.own == best.own and not c.offloads]
        if best.offloads and on_device:
            flags = self._flags(min(on_device, key=rank))
            lines.append(f"or, on a quantized base without the memory of the host: {flags}")
        return lines

    def _flags(self, candidate: Candidate) -> str:
        """The options of a candidate at the length of this plan."""
        train = dataclasses.replace(candidate.experiment.train, seq_len=self.job.seq_len)
        experiment = dataclasses.replace(candidate.experiment, train=train)
        return dataclasses.replace(candidate, experiment=experiment, seq_len=train.seq_len).flags

    def _search_lines(self) -> list[str]:
        if not self.candidates:
            return []
        rows = [
            [
                candidate.experiment.mesh.text,
                candidate.experiment.train.remat,
                candidate.text,
                f"{candidate.seq_len:,}",
            ]
            for candidate in self.candidates
        ]
        title = f"longest context that fits with {MARGIN:.0%} to spare (arithmetic)"
        lines = [table_of_texts(title, ["mesh", "remat", "trained", "tokens"], rows).to_text()]
        if any(candidate.quantizes for candidate in self.candidates):
            lines.append(
                f"a base in {self.experiment.train.dtype} reaches "
                f"{longest_float(self.candidates):,} of the experiment's {self.asked:,} tokens "
                "without the memory of the host, hence quantized bases (QLoRA)"
            )
        return [*lines, f"the longest: {self.candidates[0].flags}", ""]


def _verdict_line(row: dict[str, Any]) -> str:
    needs = row["needs"] / GIB
    has = row["has"] / GIB
    name = f"{row['accelerator']} ({row['by']})"
    if row["fits"]:
        return f"{name}: fits, {needs:.1f} of {has:.2f} GiB"
    return f"{name}: does not fit, needs {needs:.1f} GiB, has {has:.2f}"

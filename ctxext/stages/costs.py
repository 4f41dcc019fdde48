"""What a run has cost: the speed of its training, and the most memory that it has used."""

import dataclasses
import statistics
from typing import Any

from ctxext.files import read_jsonl
from ctxext.peak_memory import peaks
from ctxext.rundir import RunDir

DEVICE, HOST = "device_peak_gib", "host_peak_gib"


@dataclasses.dataclass(frozen=True)
class Costs:
    """What is not known is None, such as the MFU on a device whose peak is not known."""

    tokens_per_second: float | None
    """The median of the logged speeds."""
    mfu: float | None
    """The same of the share of the devices' peak."""
    host_peak_gib: float | None
    """Of this process, from its start on, evaluations included."""
    device_peak_gib: float | None
    """The same on the device that used most."""

    @classmethod
    def of(cls, run: RunDir) -> "Costs":
        """By the metrics of a run that this process has just done."""
        rows = read_jsonl(run.metrics_file)
        memory = peaks()
        return cls(
            _median(rows, "tokens_per_second"),
            _median(rows, "mfu"),
            memory.get(HOST),
            memory.get(DEVICE),
        )

    def data(self) -> dict[str, float | None]:
        """As JSON values."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """A line on the training, if there was one, and one on the memory."""
        lines = []
        if self.tokens_per_second is not None:
            mfu = "" if self.mfu is None else f", MFU {self.mfu:.0%}"
            lines.append(f"training       {self.tokens_per_second:,.0f} tokens/s{mfu}")
        sizes = {"host": self.host_peak_gib, "device": self.device_peak_gib}
        known = [f"{name} {size:.2f} GiB" for name, size in sizes.items() if size is not None]
        if known:
            lines.append(f"memory         at most {', '.join(known)}")
        return lines


def _median(rows: list[Any], name: str) -> float | None:
    values = [row[name] for row in rows if isinstance(row, dict) and name in row]
    return statistics.median(values) if values else None

"""What a run has cost, from its metrics and from the memory of this process."""

import json

from ctxext.rundir import RunDir
from ctxext.stages import costs
from ctxext.stages.costs import Costs


def test_the_costs_of_a_run_are_the_median_speed_and_the_peak_memory(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    rows = [
        {"step": 1, "loss": 5.0},
        {"step": 2, "loss": 4.0, "tokens_per_second": 90.0, "mfu": 0.3},
        {"step": 2, "short_loss": 4.0},
        {"step": 3, "loss": 3.0, "tokens_per_second": 12345.6, "mfu": 0.41},
        {"step": 4, "loss": 3.0, "tokens_per_second": 20000.0, "mfu": 0.5},
    ]
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    memory = {"host_peak_gib": 1.5, "device_peak_gib": 45.678}
    monkeypatch.setattr(costs, "peaks", lambda: memory)
    of_gpu = Costs.of(run)
    assert of_gpu.data() == {"tokens_per_second": 12345.6, "mfu": 0.41, **memory}
    assert of_gpu.lines() == [
        "training       12,346 tokens/s, MFU 41%",
        "memory         at most host 1.50 GiB, device 45.68 GiB",
    ]
    monkeypatch.setattr(costs, "peaks", lambda: {"host_peak_gib": 1.5})
    # As of a run without training on CPUs, whose peak is not known.
    run.metrics_file.unlink()
    assert Costs.of(run).lines() == ["memory         at most host 1.50 GiB"]

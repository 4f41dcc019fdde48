"""A process that runs one case in one backend, once for every line it reads, and prints the cost.

The line "trace" asks for the device's own time instead of the clock's.

python -m ctxext.bench.worker ctxext|transformers CASE WEIGHTS
"""

import importlib
import json
import os
import resource
import sys
from pathlib import Path

from ctxext.bench.cases import BenchmarkCase


def main(backend: str, case_json: str, weights: str) -> None:
    """Print lines of JSON: version and device, then a result for every line of standard input.

    A result has the seconds, the values, and the peak memory so far in bytes; after "trace" only
    device_seconds, null where the device does not keep its own time.
    """
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not a result

    def send(**result: object) -> None:
        print(json.dumps(result), file=results, flush=True)

    module = importlib.import_module(f"ctxext.bench.{backend}_backend")
    case = BenchmarkCase.parse(case_json)
    run_once = module.PARTS[case.part](case, Path(weights))
    send(version=module.version(), device=module.device())
    for line in sys.stdin:
        if line.strip() == "trace":
            send(device_seconds=module.device_seconds(run_once))
            continue
        seconds, value = run_once()
        send(seconds=seconds, value=value, peak=module.device_peak() or _peak_memory())


def _peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])

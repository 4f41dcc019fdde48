"""A process that does one work on one side, once for every line it reads, and says what it took.

The line "trace" asks for the device's own time instead of the clock's.

python -m ctxext.bench.worker ours|theirs WORK WEIGHTS
"""

import importlib
import json
import os
import resource
import sys
from pathlib import Path

from ctxext.bench.cases import Work


def main(side: str, work: str, weights: str) -> None:
    """Lines of JSON out: version and device, then for every line in the seconds, the values, and the peak so far.

    After "trace" it is device_seconds alone, null where the device keeps no time of its own.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(**answer: object) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    module = importlib.import_module(f"ctxext.bench.{side}")
    asked = Work.parse(work)
    once = module.PARTS[asked.part](asked, Path(weights))
    say(version=module.version(), device=module.device())
    for line in sys.stdin:
        if line.strip() == "trace":
            say(device_seconds=module.device_seconds(once))
            continue
        seconds, value = once()
        say(seconds=seconds, value=value, peak=module.device_peak() or _resident())


def _resident() -> int:
    """Peak bytes of this process in memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])

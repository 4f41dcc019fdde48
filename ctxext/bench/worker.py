"""A process that does one work on one side, once for every line it reads, and says what it took.

python -m ctxext.bench.worker ours|theirs WORK WEIGHTS
"""

import importlib
import json
import os
import resource
import sys
from pathlib import Path

from ctxext.bench.work import Work


def main(side: str, work: str, weights: str) -> None:
    """Lines of JSON out: version and device, then for every line in the seconds, the values, and the peak so far."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(**answer: object) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    module = importlib.import_module(f"ctxext.bench.{side}")
    once = module.start(Work.parse(work), Path(weights))
    say(version=module.version(), device=module.device())
    for _ in sys.stdin:
        seconds, value = once()
        say(seconds=seconds, value=value, peak=module.device_peak() or _resident())


def _resident() -> int:
    """Peak bytes of this process in memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])

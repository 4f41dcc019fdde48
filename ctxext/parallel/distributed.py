"""One program in several processes: they join at the start and agree on their decisions.

Process 0 is the primary, which alone writes files and prints.
"""

import contextlib
import functools
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import numpy as np

from ctxext import jax_internals
from ctxext.terminal import PrintableStream

FLAGS = "--coordinator HOST:PORT --num-processes N --process-id I"

HEARTBEAT_SECONDS = 60
"""Without a sign of life for so long, a process counts as lost and the others stop."""
PRIMARY_SECONDS = 24 * 3600
"""How long the others wait for what the primary does alone. If it dies, they notice earlier."""
SHUTDOWN_SECONDS = 10
"""How long a failing process waits for the others to fail as well."""

_broadcasts = itertools.count()
"""Numbers the broadcasts: all processes make them in the same order."""


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes, before anything else uses jax; all but the primary fall silent.

    Without arguments the environment decides (Slurm, Open MPI, Kubernetes, Cloud TPU);
    `num_processes=1` alone means that there are no others. Raises ValueError for an incomplete
    address, or if the others cannot be found.
    """
    arguments = (coordinator, num_processes, process_id)
    is_unspecified = arguments == (None, None, None)
    if arguments == (None, 1, None) or (is_unspecified and not _launched_with_others()):
        return
    if None in arguments and not is_unspecified:
        raise ValueError(
            f"give all of {FLAGS}, or none where the launcher sets them; "
            "--num-processes 1 runs a single process"
        )
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise ValueError(f"--process-id {process_id} must be in 0..{num_processes - 1}")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"--coordinator {coordinator} must be HOST:PORT, the address of process 0")
    _join(coordinator, num_processes, process_id)
    _redirect_output()


def _launched_with_others() -> bool:
    """Whether the environment names more than one process; which and where, jax finds out."""
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    for name in counts:
        count = os.environ.get(name, "")
        if count.isdigit() and int(count) > 1:
            return True
    host_lists = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    if any("," in os.environ.get(name, "") for name in host_lists):
        return True
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        return True
    return find_spec("libtpu") is not None and jax_internals.on_tpu()


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # SIGTERM is ours, see training/stopping.py.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"this process cannot join the others ({reason}); give their addresses with {FLAGS}, "
            "or run a single process with --num-processes 1"
        ) from None


def _redirect_output() -> None:
    """Send what C libraries print to stderr, and all that other processes print nowhere."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = PrintableStream(os.fdopen(stdout, "w"))
    if not is_primary():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # until a failure, see `unmute`


def process_count() -> int:
    """How many processes there are."""
    import jax

    return jax.process_count()


def process_index() -> int:
    """The number of this process, from 0."""
    import jax

    return jax.process_index()


def is_primary() -> bool:
    """True in the process that writes and prints."""
    return process_index() == 0


def is_initialized() -> bool:
    """True if `initialize` joined other processes."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def unmute() -> None:
    """Let a process that is not the primary print again, because it fails."""
    if is_initialized() and not is_primary():
        sys.stderr = PrintableStream(sys.__stderr__)


def exit_if_failed(code: int) -> int:
    """Return the exit code of a command, or end the process here if it failed among others.

    The ordinary end of a process would wait forever for others that hang.
    """
    if code and is_initialized():
        import jax

        shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(SHUTDOWN_SECONDS)
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                stream.flush()
        os._exit(code)
    return code


def broadcast_from_primary(action: Callable[[], Any]) -> Any:
    """Run `action` in the primary alone and return its result, plain JSON, in every process.

    If it fails, all processes end: the primary with the error, the others with SystemExit.
    """
    if process_count() == 1:
        return action()
    result: Any = None
    failure: Exception | None = None
    if is_primary():
        try:
            result = action()
        except Exception as error:
            failure = error
    failed, result = json.loads(_broadcast_text(json.dumps([failure is not None, result])))
    if failure is not None:
        raise failure
    if failed:
        raise SystemExit(2)  # the primary prints why
    return result


def primary_only(method: Callable[..., None]) -> Callable[..., None]:
    """Decorate a function that the primary alone runs, while the others wait until it is done."""

    @functools.wraps(method)
    def run_in_primary(*args: Any, **options: Any) -> None:
        broadcast_from_primary(lambda: method(*args, **options))

    return run_in_primary


@contextlib.contextmanager
def held_by_primary(context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter `context()`, such as a lock, in the primary alone; if that fails, all processes end."""
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(context())

        broadcast_from_primary(enter)
        yield


def barrier() -> None:
    """Wait until the primary has come this far."""
    broadcast_from_primary(lambda: None)


def _broadcast_text(text: str) -> str:
    """The primary's text, in every process."""
    client = jax_internals.client()
    key = f"ctxext/{next(_broadcasts)}"
    if is_primary():
        client.key_value_set(key, text)
        return text
    return client.blocking_key_value_get(key, 1000 * PRIMARY_SECONDS)


def all_reduce_max(value: int) -> Any:
    """The largest of the processes' numbers, computed in the background: `int` of it waits."""
    if process_count() == 1:
        return value
    import jax

    sharding, reduce = _max_reducer()
    own_values = np.full((1, jax.local_device_count()), value, np.int32)
    return reduce(jax.make_array_from_process_local_data(sharding, own_values))


@functools.cache
def _max_reducer() -> Any:
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()).reshape(process_count(), -1), ("process", "device"))
    one_per_device = NamedSharding(mesh, PartitionSpec("process", "device"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return one_per_device, jax.jit(jax.numpy.max, out_shardings=everywhere)


def gather(array: Any) -> np.ndarray:
    """A whole array in the memory of every host, even if its shards are in several processes."""
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(array, tiled=True))

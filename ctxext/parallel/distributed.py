"""One program in several processes: joined at the start, agreed in what it decides, written down by the first alone."""

import functools
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from ctxext.parallel import jax_internals

FLAGS = "--coordinator HOST:PORT --num-processes N --process-id I"
HEARTBEAT = (
    60  # seconds without a sign of life, after which a process counts as lost and the others stop
)
PATIENCE = (
    24 * 3600
)  # seconds that the others wait for what process 0 does alone; should it die, they hear of it
GOODBYE = 10  # seconds that a failing process waits for the others to fail as well

_rounds = itertools.count()  # every process asks in the same order


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes, before anything else uses jax; all but the first fall silent.

    Without arguments the environment is asked (Slurm, Open MPI, Kubernetes, Cloud TPU) and `num_processes=1` says that
    there are no others. Raises ValueError for half an address, or if the others cannot be found.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, 1, None) or (given == (None, None, None) and not _surrounded()):
        return
    if None in given and given != (None, None, None):
        raise ValueError(
            f"give all of {FLAGS}, or none where the launcher says it; --num-processes 1 runs alone"
        )
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise ValueError(f"--process-id {process_id} must lie in 0..{num_processes - 1}")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"--coordinator {coordinator} must be HOST:PORT, the address of process 0")
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours, see stopping.py
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"this process cannot join the others ({reason}); say where they are with {FLAGS}, or run "
            "alone with --num-processes 1"
        ) from None
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print from C is no output of ours
    sys.stdout = os.fdopen(out, "w")
    if not is_primary():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # a failure is told, see `unmute`


def _surrounded() -> bool:
    """Whether the environment speaks of more than one process; which and where, jax finds out."""
    counts = (
        os.environ.get(name, "")
        for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    )
    hosts = (os.environ.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    indexed_job = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    if (
        any(count.isdigit() and int(count) > 1 for count in counts)
        or any("," in x for x in hosts)
        or indexed_job
    ):
        return True
    return find_spec("libtpu") is not None and jax_internals.on_tpu()


def process_count() -> int:
    """How many processes there are."""
    import jax

    return jax.process_count()


def process_index() -> int:
    """The number of this process, from 0."""
    import jax

    return jax.process_index()


def is_primary() -> bool:
    """True in the process that writes and speaks."""
    return process_index() == 0


def is_initialized() -> bool:
    """True if `initialize` found other processes."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def unmute() -> None:
    """Let a process that fell silent be heard, because it fails."""
    if is_initialized() and not is_primary():
        sys.stderr = sys.__stderr__


def exit_with(code: int) -> int:
    """The exit code of a command; a failing process ends here, without waiting for ever for others that hang."""
    if code and is_initialized():
        import jax

        goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        goodbye.start()
        goodbye.join(GOODBYE)
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                stream.flush()
        os._exit(code)
    return code


def broadcast_from_primary(action: Callable[[], Any]) -> Any:
    """The result of `action` (plain JSON), which process 0 alone performs; where it fails, all of them end."""
    if process_count() == 1:
        return action()
    answer, failure = None, None
    if is_primary():
        try:
            answer = action()
        except Exception as error:
            failure = error
    failed, answer = json.loads(_from_primary(json.dumps([failure is not None, answer])))
    if failure is not None:
        raise failure
    if failed:
        raise SystemExit(2)  # process 0 says why
    return answer


def primary_only(method: Callable[..., None]) -> Callable[..., None]:
    """A function that process 0 alone performs, while the others wait for its end."""

    @functools.wraps(method)
    def waited(*args: Any, **options: Any) -> None:
        broadcast_from_primary(lambda: method(*args, **options))

    return waited


def barrier() -> None:
    """Return when process 0 has come this far."""
    broadcast_from_primary(lambda: None)


def _from_primary(text: str) -> str:
    client, key = jax_internals.client(), f"ctxext/{next(_rounds)}"
    if is_primary():
        client.key_value_set(key, text)
        return text
    return client.blocking_key_value_get(key, 1000 * PATIENCE)


def all_reduce_max(value: int) -> Any:
    """The largest of the processes' numbers; asked here, known when it is read with `int`."""
    if process_count() == 1:
        return value
    import jax

    sharding, reduce = _max_reducer()
    mine = np.full((1, jax.local_device_count()), value, np.int32)
    return reduce(jax.make_array_from_process_local_data(sharding, mine))


@functools.cache
def _max_reducer() -> Any:
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()).reshape(process_count(), -1), ("process", "device"))
    whole = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("process", "device")), jax.jit(
        jax.numpy.max, out_shardings=whole
    )


def gather(array: Any) -> np.ndarray:
    """All of an array in the memory of every host, also where its parts lie with several processes."""
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(array, tiled=True))

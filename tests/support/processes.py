"""Run the command line in several processes on this machine; as a script, a worker's checks."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The longest wait for a process, in seconds.
WAIT = 400
# The range from which jax chooses the coordinator's port by the number of the job.
PORTS = (65535 - 2**12 + 1, 65535)


def free_port(low: int, high: int) -> int:
    """A port in low..high that no process on this machine listens on."""
    for port in random.sample(range(low, high + 1), high + 1 - low):
        with contextlib.suppress(OSError), socket.socket() as candidate:
            candidate.bind(("127.0.0.1", port))
            return candidate.getsockname()[1]
    raise OSError(f"no free port in {low}..{high}")


def slurm(port: int, index: int, count: int) -> dict[str, str]:
    """The variables that `srun --ntasks COUNT` sets for a task on one node (manual of srun)."""
    node = {
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURMD_NODENAME": "localhost",
        "SLURM_NODEID": "0",
    }
    step = {
        "SLURM_JOB_ID": str(4096 * 300 + port - PORTS[0]),
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": str(count),
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_TASKS_PER_NODE": str(count),
    }
    return {**node, **step, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}


def open_mpi(port: int, index: int, count: int) -> dict[str, str]:
    """The variables that `mpirun -n COUNT` of Open MPI 4 sets; Open MPI 5 names no coordinator."""
    return {
        "OMPI_MCA_orte_hnp_uri": f"{4096 * (port - PORTS[0])}.0;tcp://127.0.0.1:{port}",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }


def start(
    arguments: list,
    cache: Path,
    *,
    processes: int = 2,
    devices: int = 4,
    script: str = "",
    launcher: Callable[[int, int, int], dict[str, str]] | None = None,
) -> list:
    """Start `ctxext ARGUMENTS` (or a script) in `processes` that share simulated `devices`.

    launcher: (port, index, count) -> the environment of a process, as Slurm sets it, which
    replaces the flags.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # All of them alike: compiling is most of their time.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "WANDB_MODE": "disabled",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
    }
    command = [sys.executable, *([script] if script else ["-m", "ctxext"]), *map(str, arguments)]
    port = free_port(*PORTS)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = []
    for index in range(processes):
        flags = _flags(port, index, processes)
        variables = {}
        if launcher is not None:
            variables = launcher(port, index, processes)
        if processes == 1 or launcher is not None:
            flags = []
        started.append(subprocess.Popen([*command, *flags], env=environment | variables, **pipes))
    return started


def _flags(port: int, index: int, count: int) -> list[str]:
    coordinator = ["--coordinator", f"127.0.0.1:{port}"]
    return [*coordinator, "--num-processes", str(count), "--process-id", str(index)]


def finish(started: list) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    try:
        texts = [process.communicate(timeout=WAIT) for process in started]
        return [(process.returncode, *text) for process, text in zip(started, texts, strict=True)]
    finally:
        for process in started:
            process.kill()


def until(condition: Callable[[], bool], started: list) -> None:
    """Wait until the condition holds; fail if a process ends before that."""
    end = time.monotonic() + WAIT
    while not condition():
        is_running = all(process.poll() is None for process in started)
        assert is_running, finish(started)
        assert time.monotonic() < end, finish(started)
        time.sleep(0.01)


def _worker(base: Path, flags: list[str]) -> dict:
    """The parts of a checkpoint that this process reads, its rows, and the model's results."""
    from ctxext.parallel import distributed

    distributed.initialize(flags[1], int(flags[3]), int(flags[5]))
    import jax
    import numpy as np

    from ctxext import loading
    from ctxext.interop import hf_weights, stored_weights
    from ctxext.interop.lazy_tensor import LazyTensor
    from ctxext.model.config import SHAPES
    from ctxext.model.decoder import param_shapes
    from ctxext.parallel.mesh import Mesh

    mesh = Mesh(fsdp=2, tensor=2)
    counts: dict[str, int] = {}

    def counted(name: str, entry: LazyTensor) -> LazyTensor:
        def read(*index):
            part = entry.read(*index)
            counts[name] = counts.get(name, 0) + part.size
            return part

        return entry._replace(read=read, chunks=())

    open_set = stored_weights.open_set
    stored_weights.open_set = lambda directory, file: {
        name: counted(name, entry) for name, entry in open_set(directory, file).items()
    }
    lm = loading.load(base, mesh=mesh)
    tiny = {
        name: counts[name] / np.prod(slot.shape)
        for name, slot in hf_weights.slots(param_shapes(lm.config)).items()
    }

    # 70B in its real shapes: a stand-in returns zeros of the requested size, and one layer of every
    # stack is read.
    counts.clear()
    config = SHAPES["llama2-70b"]
    slots = hf_weights.slots(param_shapes(config))

    def zeros(index):
        return np.broadcast_to(np.float16(0), [part.stop - part.start for part in index])

    def stand_in(directory, file):
        return {
            name: counted(name, LazyTensor(slot.shape, "float16", zeros))
            for name, slot in slots.items()
        }

    def one_layer(leaf, read):
        parts = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
        for index in {str(part): part for part in parts}.values():
            read((slice(0, 1), *index[1:]) if leaf.shape[0] == config.num_hidden_layers else index)

    stored_weights.open_set = stand_in
    hf_weights.cast = lambda array, *_: array
    shapes = mesh.shard(param_shapes(config, "float16"))
    tensors = stored_weights.find_weights(base, config)
    hf_weights.assemble(shapes, hf_weights.slots(shapes), tensors, one_layer)
    large = {name: count / np.prod(slots[name].shape) for name, count in counts.items()}
    tokens = np.arange(3 * 20).reshape(3, 20)
    return {
        "rows": mesh.own_rows(8),
        "tiny": tiny,
        "large": large,
        "devices": jax.device_count(),
        "largest": int(distributed.all_reduce_max(distributed.process_index() + 5)),
        "broadcast": distributed.broadcast_from_primary(
            lambda: {"from": distributed.process_index(), "text": "ä" * 300}
        ),
        "logits": np.asarray(lm.logits(tokens), np.float64).sum(-1).tolist(),
        "loss": lm.loss(tokens).tolist(),
        "generate": lm.generate(list(tokens), max_new_tokens=5).tolist(),
        "sampled": lm.generate(list(tokens), max_new_tokens=5, temperature=1.0, seed=3).tolist(),
    }


if __name__ == "__main__":
    result = _worker(Path(sys.argv[1]), sys.argv[3:])
    Path(f"{sys.argv[2]}.{sys.argv[-1]}").write_text(json.dumps(result))

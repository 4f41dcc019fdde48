"""The command line in several processes on this machine, and what a worker process checks when run as a script."""

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
WAIT = 400
PORTS = (65535 - 2**12 + 1, 65535)
"""Where jax puts the coordinator of a job whose number it knows."""


def free_port(low: int, high: int) -> int:
    """A port in low..high that nobody on this machine listens on."""
    for port in random.sample(range(low, high + 1), high + 1 - low):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    raise OSError(f"no free port in {low}..{high}")


def slurm(port: int, index: int, count: int) -> dict[str, str]:
    """What `srun --ntasks COUNT` on one node sets for a task (srun's manual, OUTPUT ENVIRONMENT VARIABLES)."""
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
    """What `mpirun -n COUNT` of Open MPI 4 on one node sets (Open MPI 5 names no coordinator)."""
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
    """`ctxext ARGUMENTS` (or a script) in `processes` processes that share `devices` simulated devices.

    launcher: gives each its environment, as Slurm does, instead of flags.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "WANDB_MODE": "disabled",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
    }
    command = [sys.executable, *([script] if script else ["-m", "ctxext"]), *map(str, arguments)]
    port = free_port(*PORTS)
    where = [
        [
            "--coordinator",
            f"127.0.0.1:{port}",
            "--num-processes",
            str(processes),
            "--process-id",
            str(i),
        ]
        for i in range(processes)
    ]
    if processes == 1 or launcher is not None:
        where = [[] for _ in where]
    told = [launcher(port, i, processes) if launcher else {} for i in range(processes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([*command, *flags], env=environment | more, **pipes)
        for flags, more in zip(where, told, strict=True)
    ]


def finish(started: list) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    try:
        texts = [process.communicate(timeout=WAIT) for process in started]
        return [(process.returncode, *text) for process, text in zip(started, texts, strict=True)]
    finally:
        for process in started:
            process.kill()


def until(condition: Callable[[], bool], started: list) -> None:
    """Return when the condition holds; fails if a process ends before."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end and all(process.poll() is None for process in started), (
            finish(started)
        )
        time.sleep(0.01)


def _worker(base: Path, flags: list[str]) -> dict:
    """What this process reads of a checkpoint, which rows it holds, and what a model over all processes answers."""
    from ctxext.parallel import distributed

    distributed.initialize(flags[1], int(flags[3]), int(flags[5]))
    import jax
    import numpy as np

    from ctxext import loading
    from ctxext.interop import hf_weights
    from ctxext.interop.tensor_blocks import Entry
    from ctxext.model.config import SHAPES
    from ctxext.model.decoder import param_shapes
    from ctxext.parallel.mesh import Mesh

    mesh = Mesh(fsdp=2, tensor=2)
    counts: dict[str, int] = {}

    def counted(name: str, entry: Entry) -> Entry:
        def read(*index):
            part = entry.read(*index)
            counts[name] = counts.get(name, 0) + part.size
            return part

        return entry._replace(read=read, pieces=())

    found = hf_weights.find_tensors
    hf_weights.find_tensors = lambda directory: {
        n: counted(n, entry) for n, entry in found(directory).items()
    }
    lm = loading.load(base, mesh=mesh)
    tiny = {
        name: count / np.prod(slot.shape)
        for name, slot in hf_weights.slots(param_shapes(lm.config)).items()
        for count in [counts[name]]
    }

    # 70B by its real shapes: a stand-in gives zeros of the size it is asked for; one layer of every stack is read.
    counts.clear()
    config = SHAPES["llama2-70b"]
    slots = hf_weights.slots(param_shapes(config))

    def zeros(index):
        return np.broadcast_to(np.float16(0), [part.stop - part.start for part in index])

    def stand_in(directory):
        return {
            name: counted(name, Entry(slot.shape, "float16", zeros)) for name, slot in slots.items()
        }

    def one_layer(leaf, read):
        parts = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
        for index in {str(part): part for part in parts}.values():
            read((slice(0, 1), *index[1:]) if leaf.shape[0] == config.num_hidden_layers else index)

    hf_weights.find_tensors = stand_in
    hf_weights.cast = lambda array, *_: array
    hf_weights.load_params(
        base, config, "float16", shapes=mesh.shard(param_shapes(config)), make=one_layer
    )
    large = {name: count / np.prod(slots[name].shape) for name, count in counts.items()}
    tokens = np.arange(3 * 20).reshape(3, 20)
    return {
        "rows": mesh.own_rows(8),
        "tiny": tiny,
        "large": large,
        "devices": jax.device_count(),
        "largest": int(distributed.all_reduce_max(distributed.process_index() + 5)),
        "once": distributed.broadcast_from_primary(
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

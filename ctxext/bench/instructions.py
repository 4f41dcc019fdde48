"""Narrower vector instructions than a CPU has: how programs fare on another kind of CPU.

Elementwise code and matrix products come from different compilers and libraries, each with its
switch. In jaxlib 0.10, matrix products are YNNPACK's, which has no switch and takes AVX-512 where
it can: without it they are Eigen's, with kernels of oneDNN. In torch 2.13, MKL multiplies float32
matrices; on CPUs that are not Intel's it takes a kernel of 256 bits whatever its switch says.
"""

import os
from collections.abc import Mapping

ENVIRONMENTS = {
    "avx2": {
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_cpu_experimental_ynn_fusion_type=",
        "ATEN_CPU_CAPABILITY": "avx2",  # torch's vectors: softmax, exponentials, its attention
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # products of torch in bfloat16, and those of XLA
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",  # products of torch in float32
    },
}
"""By the name of the widest instructions: the environment of a process that uses no wider ones."""


def environment(cpu_isa: str | None, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a backend's process; None: all instructions of this CPU.

    Flags of XLA that are inherited stay, before those that are added.
    """
    added = dict(ENVIRONMENTS[cpu_isa]) if cpu_isa else {}
    flags = [inherited.get("XLA_FLAGS", ""), added.get("XLA_FLAGS", "")]
    if any(flags):
        added["XLA_FLAGS"] = " ".join(flags).strip()
    return {**inherited, **added}

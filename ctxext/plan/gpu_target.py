"""Target configurations of GPUs, with which XLA compiles for a GPU that is not there.

The numbers are those of XLA's own descriptions of these devices (openxla/xla,
xla/backends/gpu/target_config/specs).
"""

import dataclasses

# The versions in those descriptions, which the extra plan-gpu installs.
CUDA = "major: 12 minor: 8"
CUDNN = "major: 9 minor: 8"
RESERVED = 1024
"""Bytes of the shared memory of every block that CUDA keeps for itself."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A GPU, by the name that jax gives it."""

    name: str
    capability: int
    """Major compute capability."""
    cores: int
    """Multiprocessors."""
    units: int
    """Float32 units per multiprocessor."""
    shared: int
    """Bytes of shared memory per multiprocessor."""
    bandwidth: float
    """Bytes per second from memory."""
    memory: int
    """Bytes."""
    l2: int
    """Bytes of L2 cache."""
    clock: float
    """GHz."""
    minor: int = 0
    """Minor compute capability."""
    threads: int = 2048
    """Threads per multiprocessor."""

    @property
    def target(self) -> str:
        """A `GpuTargetConfigProto` as text."""
        return f"""
            gpu_device_info {{
              threads_per_warp: 32 threads_per_block_limit: 1024
              threads_per_core_limit: {self.threads}
              registers_per_block_limit: 65536 registers_per_core_limit: 65536
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              core_count: {self.cores} fpus_per_core: {self.units} clock_rate_ghz: {self.clock}
              shared_memory_per_block: 49152
              shared_memory_per_block_optin: {self.shared - RESERVED}
              shared_memory_per_core: {self.shared}
              l2_cache_size: {self.l2} memory_bandwidth: {self.bandwidth:.0f}
              device_memory_size: {self.memory}
              cuda_compute_capability {{ major: {self.capability} minor: {self.minor} }}
            }}
            platform_name: "CUDA" runtime_version {{ {CUDA} }} dnn_version_info {{ {CUDNN} }}
            device_description_str: "{self.name}"
        """


MIB = 2**20
CHIPS: dict[str, Chip] = {
    "rtx4090": Chip(
        "NVIDIA GeForce RTX 4090",
        8,
        128,
        128,
        100 * 1024,
        1.008e12,
        24564 * MIB,
        72 * MIB,
        2.52,
        minor=9,
        threads=1536,
    ),
    "a6000": Chip(
        "NVIDIA RTX A6000",
        8,
        84,
        128,
        100 * 1024,
        7.68e11,
        49140 * MIB,
        6 * MIB,
        1.8,
        minor=6,
        threads=1536,
    ),
    "a100-40": Chip(
        "NVIDIA A100-SXM4-40GB", 8, 108, 64, 164 * 1024, 1.555e12, 40370 * MIB, 40 * MIB, 1.41
    ),
    "a100-80": Chip(
        "NVIDIA A100-SXM4-80GB", 8, 108, 64, 164 * 1024, 2.039e12, 81157 * MIB, 40 * MIB, 1.41
    ),
    "h100-80": Chip(
        "NVIDIA H100 80GB HBM3", 9, 132, 128, 228 * 1024, 3.352e12, 81007 * MIB, 50 * MIB, 1.98
    ),
    "h200-141": Chip("NVIDIA H200", 9, 132, 128, 228 * 1024, 4.8e12, 144384 * MIB, 50 * MIB, 1.98),
    "b200": Chip("NVIDIA B200", 10, 148, 128, 228 * 1024, 7.672e12, 182642 * MIB, 126 * MIB, 1.965),
}
"""By the names of `accelerators.ACCELERATORS`."""

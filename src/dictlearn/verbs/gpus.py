"""The GPUs that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2.0**30
RESERVE = 2 * GIB  # the driver's context, libraries' workspaces, what the allocator cannot reuse


@dataclass(frozen=True)
class Gpu:
    """Rates that large kernels reach, below the data sheet's: 80% in matmuls, 90% in memory."""

    name: str
    memory: float  # bytes that a process can have
    bfloat16: float  # FLOP/s of dense matmuls
    float32: float  # FLOP/s, without TF32, which torch leaves off
    bandwidth: float  # bytes/s of its memory
    link: float  # bytes/s to other devices, one way

    @property
    def room(self) -> float:
        """For what a plan counts."""
        return self.memory - RESERVE


GPUS = (
    # Data sheets (SXM): 989 TFLOP/s, 67 TFLOP/s, 4.8 TB/s, NVLink 450 GB/s each way, 141 GB
    Gpu("H200", 139 * GIB, 790e12, 54e12, 4.3e12, 360e9),
    # 989 TFLOP/s, 67 TFLOP/s, 3.35 TB/s, NVLink 450 GB/s each way
    Gpu("H100 80GB", 79 * GIB, 790e12, 54e12, 3.0e12, 360e9),
    # 312 TFLOP/s, 19.5 TFLOP/s, 2.04 TB/s, NVLink 300 GB/s each way
    Gpu("A100 80GB", 79 * GIB, 250e12, 15.6e12, 1.83e12, 240e9),
)

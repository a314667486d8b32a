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
        """Bytes for the memory that a plan counts."""
        return self.memory - RESERVE


# Data sheets: dense bfloat16 and float32 TFLOP/s, memory bandwidth, NVLink (else PCIe) each way. The
# memory is what a process finds, a little less than the name says.
GPUS = {
    "A10": Gpu("A10", 22 * GIB, 100e12, 25e12, 0.54e12, 25e9),  # 125, 31.2, 0.6 TB/s
    "L4": Gpu("L4", 22 * GIB, 97e12, 24e12, 0.27e12, 25e9),  # 121, 30.3, 0.3 TB/s
    "4090": Gpu("RTX 4090", 23.5 * GIB, 132e12, 66e12, 0.91e12, 25e9),  # 165, 82.6, 1.01 TB/s
    "A100_40GB": Gpu("A100 40GB", 39 * GIB, 250e12, 15.6e12, 1.4e12, 240e9),  # 312, 19.5, 1.56 TB/s
    "A100": Gpu(
        "A100 80GB", 79 * GIB, 250e12, 15.6e12, 1.83e12, 240e9
    ),  # 312, 19.5, 2.04, 300 GB/s
    "H100": Gpu("H100 80GB", 79 * GIB, 790e12, 54e12, 3.0e12, 360e9),  # 989, 67, 3.35, 450 GB/s
    "H200": Gpu("H200", 139 * GIB, 790e12, 54e12, 4.3e12, 360e9),  # 989, 67, 4.8 TB/s, 450 GB/s
    "B200": Gpu("B200", 178 * GIB, 1800e12, 60e12, 7.2e12, 720e9),  # 2250, 75, 8 TB/s, 900 GB/s
}
SHOWN = (GPUS["H200"], GPUS["H100"], GPUS["A100"])  # shown if no GPU is named

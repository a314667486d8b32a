"""The machine that a plan is made on: its memory, its GPUs, its speed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from dictlearn.verbs.gpus import GPUS, RESERVE, Gpu
from dictlearn.verbs.units import as_bytes

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Machine:
    """CPU cores, bytes of usable memory, free bytes on the disk, and each GPU's name and bytes."""

    cores: int
    memory: float
    free: float
    gpus: tuple[tuple[str, float], ...] = ()
    flops: float = 0.0  # FLOP/s of the idle CPU in float32; 0 if a GPU would train
    bandwidth: float = 0.0  # bytes/s of the CPU's memory
    load: float = 0.0  # processes that ran or waited for a core, on average over the last minute

    def __str__(self) -> str:
        names = ", ".join(f"{name} of {as_bytes(size)}" for name, size in self.gpus) or "no GPU"
        return f"{self.cores} cores, {as_bytes(self.memory)} of memory, {names}"


def this_machine(folder: Path) -> Machine:
    """This machine, with the free space on the disk of `folder`, which need not exist yet."""
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in LIMITS:  # a container's
        with suppress(OSError, ValueError):  # absent, or the word max
            memory = min(memory, float(int(Path(path).read_text())))
    folders = (folder.absolute(), *folder.absolute().parents)
    free = float(shutil.disk_usage(next(path for path in folders if path.is_dir())).free)
    gpus = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        gpus.append((properties.name, float(properties.total_memory)))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    flops, bandwidth = (0.0, 0.0) if gpus else measured()
    return Machine(os.cpu_count() or 1, memory, free, tuple(gpus), flops, bandwidth, load)


def as_device(machine: Machine, on_gpu: bool) -> Gpu:
    """The device that trains: the first GPU, with the rates of a similar preset, or the CPU."""
    if on_gpu:
        name, memory = machine.gpus[0]
        words = name.replace("-", " ").split()
        like = next((gpu for key, gpu in GPUS.items() if key in words), GPUS["A100"])
        return Gpu(name, memory, like.bfloat16, like.float32, like.bandwidth, like.link)
    # Python and torch take half of what a GPU's driver and libraries do.
    memory = machine.memory + RESERVE / 2
    flops, bandwidth = machine.flops, machine.bandwidth
    busy = machine.load > machine.cores / 2
    now = f" (the load on these {machine.cores} is {machine.load:.1f} now)" if busy else ""
    return Gpu(f"CPU, on idle cores{now}", memory, flops, flops, bandwidth, bandwidth)


def measured() -> tuple[float, float]:
    """FLOP/s of a float32 matmul and bytes/s of a copy by torch's threads, the best of three each.

    The time that counts is the threads' own, so other processes on the same cores change little.
    """
    n = 1024
    a, b = torch.ones(n, n), torch.ones(n, n)
    data = torch.ones(8 << 20)
    product = min(_seconds(lambda: a @ b) for _ in range(3))
    copy = min(_seconds(data.clone) for _ in range(3))
    return 2 * n**3 / product, 2 * data.nbytes / copy


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return max(time.process_time() - start, 1e-6) / torch.get_num_threads()

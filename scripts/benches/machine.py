"""How busy the machine is, what it can do at best, and what memory a process had."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from dictlearn_kernels import fixed_point, tiles
from dictlearn_kernels.threads import over
from peers.speed import busy_elsewhere, synchronise

QUIET = 0.1  # of all cores: what others may use while figures are taken
PACKAGES = ("torch", "triton", "lightning", "sae-lens", "eai-sparsify", "dictlearn-lm")


class Watch:
    """The share of all cores that other processes use from the moment it is made."""

    def __init__(self) -> None:
        self._others, self._started = busy_elsewhere(), time.perf_counter()

    def share(self) -> float:
        seconds = time.perf_counter() - self._started
        return max(0.0, (busy_elsewhere() - self._others) / (seconds * _cores()))


def _cores() -> int:
    stat = Path("/proc/stat")
    if not stat.exists():
        return 1
    return sum(line[:3] == "cpu" and line[3].isdigit() for line in stat.read_text().splitlines())


def refuse_busy(seconds: float = 3.0) -> None:
    """Raises ValueError where others use more than QUIET of the cores; watches for some seconds."""
    watch = Watch()
    time.sleep(seconds)
    share = watch.share()
    if share > QUIET:
        raise ValueError(
            f"other processes use {share:.0%} of the cores: figures would be theirs too; want "
            f"{QUIET:.0%} at most, or --anyway to record them with that share beside them"
        )


def versions() -> dict[str, str]:
    """Of what is installed here, of the packages that matter."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Rates:
    """What the machine does at best, with everything in torch's favour."""

    flops: dict[str, float]  # FLOP/s of a large matmul, by the dtype's name
    copy: float  # bytes/s read and written by a large copy

    @property
    def record(self) -> dict[str, float]:
        matmul = {f"matmul_{name}_gflops": rate / 1e9 for name, rate in self.flops.items()}
        return {**matmul, "copy_gbytes_per_second": self.copy / 1e9}


def measure_rates(device: str, quick: bool = False) -> Rates:
    """The best of several samples each: a floor is for a machine that nothing disturbs."""
    rows, inner, columns = (8192, 4096, 32768) if device == "cuda" else (2048, 768, 8192)
    mebibytes = 2048 if device == "cuda" else 256
    if quick:
        rows, inner, columns, mebibytes = 128, 64, 512, 8
    flops = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(columns, inner, device=device, dtype=dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)

        def matmul(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
            torch.mm(a, b.T, out=out)

        flops[str(dtype).removeprefix("torch.")] = 2 * rows * inner * columns / best(matmul)
    if device == "cpu":  # our own, where selection goes by it
        operands = torch.randn(rows, inner), torch.randn(columns, inner), torch.zeros(columns)
        if tiles.pays(rows, columns):
            rate = 2 * rows * inner * columns / best(in_tiles(tiles.exact(*operands)))
            flops["float32"] = max(flops["float32"], rate)
        if fixed_point.available():
            of = fixed_point.bounded(*operands)
            assert of is not None
            flops["int16"] = 2 * rows * inner * columns / best(in_tiles(of))
    source = torch.zeros(mebibytes << 18, device=device)
    target = torch.zeros_like(source)
    return Rates(flops, 2 * 4 * len(source) / best(lambda: target.copy_(source)))


def in_tiles(of: tiles.Tiled) -> Callable[[], object]:
    """The product of operands that are in the order of tiles already."""

    def part(low: int, high: int) -> None:
        for _ in tiles.strips(of, low, high):
            pass

    return lambda: over(of.n_tiles, part)


def best(run: Callable[[], object], samples: int = 7) -> float:
    """The shortest of several calls, in seconds, after one that warms up."""
    run()
    taken = []
    for _ in range(samples):
        synchronise()
        start = time.perf_counter()
        run()
        synchronise()
        taken.append(time.perf_counter() - start)
    return min(taken)


def resident() -> float:
    """Bytes of memory that this process has in use; on Linux, else its peak."""
    return _status("VmRSS") or _peak()


def peak_resident() -> float:
    """The most bytes of memory that this process has had in use at once.

    On Linux of this program alone: getrusage also counts what the process was before exec, which
    for a child is a copy of its parent.
    """
    return _status("VmHWM") or _peak()


def _status(key: str) -> float | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(row for row in status.read_text().splitlines() if row.startswith(key))
    return 1024.0 * int(line.split()[1])


def _peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

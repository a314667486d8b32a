"""Where computing every transform on every token beats grouping tokens by transform.

    python scripts/bench_transforms.py

A step's forward and backward pass of `dictlearn_kernels.transforms` on both routes, interleaved, at
several densities and widths; DENSE_ABOVE_LOOPS of dictlearn_kernels.transforms, and DENSE_ABOVE where
no loops serve, is where they cross.
"""

from __future__ import annotations

import argparse
import statistics
import time

import dictlearn_kernels.transforms as op
import torch
from dictlearn_kernels.pattern import Pattern


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 768])
    parser.add_argument(
        "--units", type=int, default=2, help="N: N transforms of rank width / 2, ..."
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for width in options.widths:
        for density in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0):
            seconds = measure(options.tokens, width, options.units, density, options.repeats)
            grouped, dense = (1e3 * statistics.median(s) for s in seconds)
            print(
                f"width {width}  density {density:.2f}  grouped {grouped:7.1f} ms  dense {dense:7.1f} ms"
            )


def measure(n: int, d: int, units: int, density: float, repeats: int) -> tuple[list[float], ...]:
    groups = [(units << i, max(1, d >> (i + 1))) for i in range(5)]
    count = sum(c for c, _ in groups)
    mask = torch.rand(n, count) < density
    starts = torch.zeros(n + 1, dtype=torch.int64)
    starts[1:] = mask.sum(1).cumsum(0)
    columns = mask.nonzero()[:, 1].contiguous()
    values = torch.rand(len(columns), requires_grad=True)
    x = torch.randn(n, d)
    U, V = ([torch.randn(c, r, d, requires_grad=True) for c, r in groups] for _ in range(2))
    seconds: tuple[list[float], ...] = ([], [])
    for _ in range(repeats + 1):
        for route, taken in zip((1.0, -1.0), seconds, strict=True):
            op.DENSE_ABOVE = op.DENSE_ABOVE_LOOPS = route
            start = time.perf_counter()
            y = op.transform(Pattern(starts, columns, count), values, x, U, V)
            torch.autograd.grad(y.sum(), [values, *U, *V])
            taken.append(time.perf_counter() - start)
    return tuple(taken[1:] for taken in seconds)


if __name__ == "__main__":
    main()

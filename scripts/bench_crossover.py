"""From which density on a dense matmul beats the sparse products of a Pattern.

    python scripts/bench_crossover.py

Prints, for each density, how many times the sparse route's time the dense one takes, for decoding,
weight gradients and value gradients, and the density up to which sparse wins in all: it is DENSE_ABOVE
of kernels/dictlearn_kernels/pattern.py. The routes take turns on the same random code.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from dictlearn_kernels import pattern
from dictlearn_kernels.pattern import Pattern

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

DENSITIES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
PRODUCTS = ("decode", "weight gradient", "value gradient")


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def products(code: Pattern, width: int) -> dict[str, Callable[[], object]]:
    values = torch.rand(len(code.columns))
    W_CD, g_RD = torch.randn(code.n_columns, width), torch.randn(code.n_rows, width)
    return {
        "decode": lambda: code.matmul(values, W_CD),
        "weight gradient": lambda: code.transposed_matmul(values, g_RD),
        "value gradient": lambda: code.sampled(g_RD, W_CD),
    }


def measured(rows: int, features: int, width: int, density: float, rounds: int) -> dict[str, float]:
    """Median seconds of each product by each route: "decode, dense" and so on."""
    active = torch.rand(rows, features) < density
    starts = torch.nn.functional.pad(active.sum(1).cumsum(0), (1, 0))
    code = Pattern(starts, active.nonzero()[:, 1], features)
    _ = code.rows, code.by_column  # made once a step, whatever the route
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        for route, above in (("dense", 0.0), ("sparse", 1.0)):
            with patch.object(pattern, "DENSE_ABOVE", above):
                for name, run in products(code, width).items():
                    taken.setdefault(f"{name}, {route}", []).append(seconds(run))
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = []
    for density in DENSITIES:
        found = measured(options.rows, options.features, options.width, density, options.rounds)
        ratio = {n: found[f"{n}, dense"] / found[f"{n}, sparse"] for n in PRODUCTS}
        total = [sum(found[f"{n}, {route}"] for n in PRODUCTS) for route in ("dense", "sparse")]
        ratio["all"] = total[0] / total[1]
        table.append({"density": density, **ratio})
        cells = "  ".join(f"{name} {value:5.2f}" for name, value in ratio.items())
        sys.stdout.write(f"density {density:4.2f}  {cells}\n")
    sparse_wins = max((row["density"] for row in table if row["all"] > 1), default=0.0)
    sys.stdout.write(f"sparse wins up to {sparse_wins}; DENSE_ABOVE is {pattern.DENSE_ABOVE}\n")
    size = {"rows": options.rows, "features": options.features, "width": options.width}
    record = {"versions": results.versions(("torch",)), **size, "dense_over_sparse": table}
    sys.stdout.write(f"appended to {results.append('crossover', record, options.results)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""From how many rows, and of what width, 16-bit fixed point beats float32, and up to how many contenders.

    python scripts/bench_fixed_point.py

Prints float32's time over fixed point's for top-k selections of all sizes, and for thresholds that more
and more entries are above: FEWEST_ROWS and NARROWEST of kernels/dictlearn_kernels/fixed_point.py and
CROWDED of threshold_encode/compiled.py. The ways take turns; processor seconds, on one thread.
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
from dictlearn_kernels import fixed_point
from dictlearn_kernels.linear import passing
from dictlearn_kernels.threshold_encode import compiled as threshold
from dictlearn_kernels.topk_encode import compiled as topk

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

ROWS, WIDTHS, COLUMNS = (16, 32, 64, 128, 512, 2048), (16, 32, 64, 128, 512, 2048), (2048, 8192)
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1)
K = 32


def operands(
    rows: int, columns: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    W_CD = torch.nn.functional.normalize(torch.randn(columns, width), dim=1)
    return torch.randn(rows, width), W_CD, torch.zeros(columns)


def ratio(rounds: int, plain: Callable[[], object], fixed: Callable[[], object]) -> float:
    """The first one's median time over the second's."""
    taken: dict[Callable[[], object], list[float]] = {plain: [], fixed: []}
    for _ in range(rounds + 1):  # the first round compiles and is left out
        for way, times in taken.items():
            start = time.process_time()
            way()
            times.append(time.process_time() - start)
    return statistics.median(taken[plain][1:]) / statistics.median(taken[fixed][1:])


def sizes(rounds: int) -> list[dict[str, float]]:
    table = []
    for columns in COLUMNS:
        print(f"{columns} columns; a line a number of rows, by width {WIDTHS}")
        for rows in ROWS:
            found = []
            for width in WIDTHS:
                given = operands(rows, columns, width)
                times = ratio(
                    rounds,
                    lambda given=given: topk.topk_encode(*given, K),
                    lambda given=given: topk.topk_encode_fixed(*given, K),
                )
                found.append(times)
                table.append({"rows": rows, "columns": columns, "width": width, "times": times})
            print(f"{rows:5d}  " + "  ".join(f"{times:4.2f}" for times in found), flush=True)
    return table


def densities(rounds: int) -> list[dict[str, float]]:
    table = []
    x, W, b = operands(1024, 8192, 512)
    pre = (x @ W.T).flatten()
    for share in SHARES:
        at = float(pre[::7][: 2**20].quantile(1 - share))
        with patch.object(threshold, "CROWDED", 1.0):
            times = ratio(
                rounds,
                lambda at=at: threshold.above(passing(x[:, None], W[None], b[None]), at),
                lambda at=at: threshold.above_fixed(x, W, b, at),
            )
        table.append({"share": share, "times": times})
        print(f"above a threshold: {share:6.2%}  {times:4.2f}", flush=True)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    options = parser.parse_args()
    if not fixed_point.available():
        print("this CPU has no AVX2: there is nothing to measure", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    record = {
        "versions": results.versions(("torch", "numba")),
        "sizes": sizes(options.rounds),
        "thresholds": densities(options.rounds),
    }
    print(f"appended to {results.append('fixed_point', record, options.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

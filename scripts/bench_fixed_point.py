"""From what size tiles beat torch's matmul, fixed point float32, and up to how many contenders.

    python scripts/bench_fixed_point.py

Prints, for top-k selections of all sizes, the time by torch's matmul over that by tiles of float32, and
by these over fixed point's; and float32's over fixed point's for thresholds that more and more entries
are above: what FEWEST_ROWS, FEWEST_ENTRIES and NARROWEST in kernels/dictlearn_kernels/tiles.py and
fixed_point.py, and CROWDED in threshold_encode/compiled.py, come from. The ways take turns; processor
seconds, on one thread.
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
from dictlearn_kernels import fixed_point, tiles
from dictlearn_kernels.linear import passing
from dictlearn_kernels.threshold_encode import compiled as threshold
from dictlearn_kernels.topk_encode import compiled as topk
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

ROWS, WIDTHS, COLUMNS = (16, 32, 64, 128, 512, 2048), (16, 32, 64, 128, 512, 2048), (2048, 8192)
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1)
K = 32


def operands(rows: int, columns: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    W_CD = torch.nn.functional.normalize(torch.randn(columns, width), dim=1)
    return torch.randn(rows, width), W_CD, torch.zeros(columns)


def medians(rounds: int, *ways: Callable[[], object]) -> list[float]:
    """Of the processor's seconds that each takes."""
    taken: dict[Callable[[], object], list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):  # the first round compiles and is left out
        for way, times in taken.items():
            start = time.process_time()
            way()
            times.append(time.process_time() - start)
    return [statistics.median(times[1:]) for times in taken.values()]


def by_torch(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return passing(x[:, None], W[None], b[None])


def sizes(rounds: int) -> list[dict[str, float]]:
    table = []
    for columns in COLUMNS:
        print(
            f"{columns} columns; a line a number of rows, by width {WIDTHS}: torch / tiles / fixed"
        )
        for rows in ROWS:
            found = []
            for width in WIDTHS:
                given = operands(rows, columns, width)
                torchs, in_tiles, fixed = medians(
                    rounds,
                    lambda given=given: topk.largest(by_torch(*given), K),
                    lambda given=given: topk.largest_in_tiles(tiles.exact(*given), K),
                    lambda given=given: topk.topk_encode_fixed(*given, K),
                )
                times = {
                    "torch_over_tiles": torchs / in_tiles,
                    "tiles_over_fixed": in_tiles / fixed,
                }
                found.append("/".join(f"{one:4.2f}" for one in times.values()))
                table.append({"rows": rows, "columns": columns, "width": width, **times})
            print(f"{rows:5d}  " + "  ".join(found), flush=True)
    return table


def densities(rounds: int) -> list[dict[str, float]]:
    table = []
    x, W, b = operands(1024, 8192, 512)
    pre = (x @ W.T).flatten()
    for share in SHARES:
        at = float(pre[::7][: 2**20].quantile(1 - share))
        with patch.object(threshold, "CROWDED", 1.0):
            float32, fixed = medians(
                rounds,
                lambda at=at: threshold.threshold_encode(x, W, b, at),
                lambda at=at: threshold.above_fixed(x, W, b, at),
            )
        table.append({"share": share, "times": float32 / fixed})
        print(f"above a threshold: {share:6.2%}  {float32 / fixed:4.2f}", flush=True)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    options = parser.parse_args()
    if not (fixed_point.available() and tiles.available()):
        print("torch multiplies as fast on this CPU: there is nothing to measure", file=sys.stderr)
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

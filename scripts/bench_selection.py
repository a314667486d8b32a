"""How wide a row must be for a search by groups to beat torch.topk, and in groups of how many columns.

    python scripts/bench_selection.py

Both find the same values. Prints, for each width and k, torch.topk's time over the grouped search's, and
the share of either in an encoder's matmul and search together: GROUP, GROUPED_FROM and GROUPS_PER_PICK of
kernels/dictlearn_kernels/topk_encode/cpu.py. The ways take turns.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
from dictlearn_kernels.topk_encode import cpu

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

SIZES = ((1024, 1152), (1024, 2304), (2048, 2304), (1024, 8192), (2048, 8192), (1024, 24576))
KS = (16, 32, 64, 128)
GROUPS = (4, 8, 16)


def measured(rows: int, columns: int, k: int, width: int, rounds: int) -> dict[str, float]:
    """Median processor seconds: `topk`, `g4` and so on, and the `matmul` before them."""
    pre_RC = torch.randn(rows, columns)
    x_RD, W_CD, b_C = torch.randn(rows, width), torch.randn(columns, width), torch.randn(columns)
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        start = time.process_time()
        torch.addmm(b_C, x_RD, W_CD.T)
        taken.setdefault("matmul", []).append(time.process_time() - start)
        for group in (0, *(g for g in GROUPS if columns // g >= k)):
            with (
                patch.object(cpu, "GROUP", group or 1),
                patch.object(cpu, "GROUPED_FROM", 0 if group else math.inf),
                patch.object(cpu, "GROUPS_PER_PICK", 1),
            ):
                start = time.process_time()
                cpu.largest(pre_RC, k)
                spent = time.process_time() - start
            taken.setdefault(f"g{group}" if group else "topk", []).append(spent)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = []
    for rows, columns in SIZES:
        for k in KS:
            found = measured(rows, columns, k, options.width, options.rounds)
            table.append({"rows": rows, "columns": columns, "k": k, "seconds": found})
            ratio = {n: found["topk"] / s for n, s in found.items() if n[0] == "g"}
            cells = "  ".join(f"{name} {value:4.2f}" for name, value in ratio.items())
            share = found["topk"] / (found["topk"] + found["matmul"])
            print(f"{rows} x {columns}, k {k}: {cells}  topk's share {share:.0%}", flush=True)
    record = {"versions": results.versions(("torch",)), "width": options.width, "table": table}
    print(f"appended to {results.append('selection_search', record, options.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

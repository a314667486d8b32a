"""Does cross-entropy pay a dictionary for packing meaning into features that co-occur?

    python scripts/cooccurrence_study.py            # pico, 3 seeds
    python scripts/cooccurrence_study.py --quick    # a rehearsal; its figures mean nothing

Trains the same dictionary on the same windows of text, in the same order, on squared error alone, on
that with KL to the model itself beside it, and on that with cross-entropy of the next token beside it
in the KL's place, a nat of either weighing the same. Then, on held-out text, what `dictlearn train`
evaluates at its end and the co-occurrence eval: `cooccurrence/share` is the part of what pairs of
features that fire together say of the next token that neither feature says by itself (third-order
connected information; its source is in dictlearn/evals/cooccurrence.py). Medians over seeds are
appended to benchmarks/results/cooccurrence.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mse_then_kl import trained
from peers import results

OBJECTIVES = ("mse", "kl", "ce")
FIGURES = (
    "ce_increase",
    "kl",
    "fvu",
    "l0",
    "dead",
    "cooccurrence/share",
    "cooccurrence/nats",
    "cooccurrence/mutual_information",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--coefficient", type=float, default=1.0, help="of the KL or CE")
    parser.add_argument("--quick", action="store_true", help="short: a rehearsal")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    parser.add_argument("--results", type=Path, help="folder for the figures")
    parser.add_argument("overrides", nargs="*", help="of all runs, as for dictlearn train")
    options = parser.parse_args()
    seeds = [0] if options.quick else options.seeds
    steps = 5 if options.quick else options.steps
    folder = options.results or (Path(tempfile.mkdtemp()) if options.quick else results.RESULTS)
    common = ["eval=[default,cooccurrence]", f"steps={steps}", "source.window_tokens=64"]
    if options.quick:
        common.append("eval_tokens=4096")
    own: dict[str, list[str]] = {name: [] for name in OBJECTIVES}
    for name in ("kl", "ce"):
        own[name].append(f"objective.terms.kl.coefficient={options.coefficient}")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in OBJECTIVES}
    with ProcessPoolExecutor(
        options.workers, get_context("spawn"), torch.set_num_threads, (options.threads,)
    ) as pool:
        jobs = [
            (name, pool.submit(figures, name, seed, [*own[name], *common, *options.overrides]))
            for seed in seeds
            for name in OBJECTIVES
        ]
        for name, job in jobs:
            runs[name].append(job.result())
            print(name, runs[name][-1], flush=True)
    medians = {
        objective: {key: statistics.median(run[key] for run in made) for key in FIGURES}
        for objective, made in runs.items()
    }
    record = {
        "versions": results.versions(("torch", "lightning", "dictlearn-lm")),
        "model": "pico",
        "seeds": seeds,
        "steps": steps,
        "coefficient": options.coefficient,
        "overrides": options.overrides,
        "medians": medians,
        "runs": runs,
    }
    print(f"appended to {results.append('cooccurrence', record, folder)}")
    return 0


def figures(objective: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One run's, from its evaluation."""
    found = trained([f"objective={objective}", "source=windows", f"seed={seed}", *overrides])
    return {"seed": seed, **{key: found[key] for key in FIGURES}}


if __name__ == "__main__":
    sys.exit(main())

"""Which optimiser reconstructs best, and what does a step of it take? Ours beside Muon and signum.

    python scripts/compare_optimisers.py              # an SAE of pico, several rates each
    python scripts/compare_optimisers.py --quick      # a rehearsal; its figures mean nothing

Each is a `dictlearn train` with its defaults but for the optimiser and its rate: the same text, the same
TopK, so the same L0, as many steps. Figures are those of the run's final evaluation; tokens/s is the
median of what the run logged, the model's forward pass included, at one thread. All are appended to
benchmarks/results/optimisers.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from dictlearn.config import compose
from dictlearn.verbs import costs, train

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

RATES = {  # Muon's updates are as large as Adam's; a sign step moves every number by its rate
    "adam": (1e-3, 2e-3, 4e-3, 8e-3),
    "adam optim.moments=bfloat16": (4e-3,),
    "adam optim.moments=8bit": (4e-3,),
    "muon": (2e-3, 4e-3, 8e-3),
    "signum": (1e-3, 4e-3, 8e-3, 1.6e-2),
}
FIGURES = ("fvu", "ce_increase", "l0", "dead")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(RATES), help="one of the optimisers")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--quick", action="store_true", help="short: a rehearsal")
    parser.add_argument(
        "--workers", type=int, default=1, help="runs at the same time, a thread each"
    )
    parser.add_argument("--results", type=Path, help="folder for the figures")
    parser.add_argument("overrides", nargs="*", help="of all runs, as for dictlearn train")
    options = parser.parse_args()
    folder = options.results or (Path(tempfile.mkdtemp()) if options.quick else results.RESULTS)
    overrides = [*(["steps=20", "eval_tokens=4096"] if options.quick else []), *options.overrides]
    seeds = [0] if options.quick else options.seeds
    names = [options.only] if options.only else list(RATES)
    settings = [(name, rate) for name in names for rate in RATES[name]]
    with ProcessPoolExecutor(
        options.workers, get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        jobs = {
            (name, rate): [pool.submit(figures, name, rate, seed, overrides) for seed in seeds]
            for name, rate in settings
        }
        runs = []
        for (name, rate), of_seeds in jobs.items():
            found = [job.result() for job in of_seeds]
            medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
            runs.append({"optim": name, "lr": rate, **medians})
            print(runs[-1], flush=True)
    record = {
        "versions": results.versions(("torch", "lightning", "pytorch-optimizer", "dictlearn-lm")),
        "model": "pico",
        "seeds": seeds,
        "overrides": overrides,
        "workers": options.workers,
        "runs": runs,
    }
    print(f"appended to {results.append('optimisers', record, folder)}")
    return 0


def figures(name: str, rate: float, seed: int, overrides: list[str]) -> dict[str, float]:
    """What one run came to, its speed and the bytes that the optimiser keeps of a number."""
    optim = [f"optim={name.split()[0]}", *name.split()[1:], f"optim.lr={rate}"]
    with tempfile.TemporaryDirectory() as folder:
        own = [f"run_dir={folder}", "name=study", "~eval.baselines", "trainer=cpu", "logger=csv"]
        cfg = compose("train", [*own, f"seed={seed}", *optim, *overrides])
        assert train.main(cfg) == 0
        found: dict[str, Any] = json.loads((Path(folder) / "figures.json").read_text())["figures"]
        with next(Path(folder).rglob("metrics.csv")).open() as lines:
            rates = [row.get("tokens_per_second") for row in csv.DictReader(lines)]
    speed = statistics.median(float(rate) for rate in rates if rate)
    own_figures = {key: found[key] for key in FIGURES}
    return {**own_figures, "tokens_per_second": speed, "state_bytes": costs.state_bytes(cfg)}


if __name__ == "__main__":
    sys.exit(main())

"""Does a last stretch of KL lower what the model loses? Squared error alone against mse_then_kl.

    python scripts/mse_then_kl.py --steps 5000 --coefficient 0.5    # pico, 3 seeds: the bar of 20%
    python scripts/mse_then_kl.py --quick      # a rehearsal; its figures mean nothing

Both run `dictlearn train` as it stands with its defaults but for the length and the weight of the KL:
the same seed, the same TopK, so the same L0, as many steps on the same shuffled tokens, of the same
text. In its last stretch mse_then_kl reads windows of that text beside them, for the KL alone. The
figure is the increase of the cross-entropy, in nats per token on held-out text, with the dictionary in
place. Medians over seeds are appended to benchmarks/results/mse_then_kl.json.
"""

from __future__ import annotations

import argparse
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
from dictlearn.verbs import train

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

BAR = 0.2
OBJECTIVES = ("mse", "mse_then_kl")
FIGURES = ("ce_increase", "kl", "fvu", "l0", "top1_agreement", "dead")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--coefficient", type=float, help="of the KL; without it the default")
    parser.add_argument("--quick", action="store_true", help="short: a rehearsal")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    parser.add_argument("--results", type=Path, help="folder for the figures")
    parser.add_argument("overrides", nargs="*", help="of both runs, as for dictlearn train")
    options = parser.parse_args()
    seeds = [0] if options.quick else options.seeds
    steps = 20 if options.quick else options.steps
    folder = options.results or (Path(tempfile.mkdtemp()) if options.quick else results.RESULTS)
    overrides = [f"steps={steps}", *options.overrides]
    own: dict[str, list[str]] = {name: [] for name in OBJECTIVES}
    if options.coefficient is not None:
        own["mse_then_kl"].append(f"objective.terms.kl.coefficient={options.coefficient}")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in OBJECTIVES}
    with ProcessPoolExecutor(
        options.workers, get_context("spawn"), torch.set_num_threads, (options.threads,)
    ) as pool:
        jobs = [
            (name, pool.submit(figures, name, seed, [*overrides, *own[name]]))
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
    lower = 1 - medians["mse_then_kl"]["ce_increase"] / medians["mse"]["ce_increase"]
    record = {
        "versions": results.versions(("torch", "lightning", "dictlearn-lm")),
        "model": "pico",
        "seeds": seeds,
        "steps": steps,
        "coefficient": options.coefficient,
        "overrides": options.overrides,
        "bar": BAR,
        "ce_increase_lower_by": lower,
        "met": lower >= BAR,
        "medians": medians,
        "runs": runs,
    }
    print(f"the increase of CE is {lower:.1%} lower, want {BAR:.0%}")
    print(f"appended to {results.append('mse_then_kl', record, folder)}")
    return 0


def figures(objective: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Trains and evaluates one dictionary."""
    found = trained([f"objective={objective}", f"seed={seed}", "eval_tokens=32768", *overrides])
    return {"seed": seed, **{key: found[key] for key in FIGURES}}


def trained(settings: list[str]) -> dict[str, float]:
    """All figures of the final evaluation of one `dictlearn train`, of which nothing else is kept."""
    with tempfile.TemporaryDirectory() as folder:
        own = [f"run_dir={folder}", "name=study", "~eval.baselines", "trainer=cpu"]
        assert train.main(compose("train", [*own, *settings])) == 0
        return json.loads((Path(folder) / "figures.json").read_text())["figures"]


if __name__ == "__main__":
    sys.exit(main())

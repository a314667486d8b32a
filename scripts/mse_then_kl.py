"""Does a last stretch of KL lower what the model loses? Squared error alone against mse_then_kl.

    python scripts/mse_then_kl.py              # pico, 3 seeds: the bar of 20%
    python scripts/mse_then_kl.py --quick      # a rehearsal; its figures mean nothing

Both run `dictlearn train` as it stands with every default but its length: the same seed, the same
TopK, so the same L0, as many steps on the same shuffled tokens, of the same text. In its last stretch
mse_then_kl reads windows of that text beside them, for the KL alone. The figure is the increase of the
cross-entropy, in nats per token on held-out text, with the dictionary in place. Medians over seeds are
appended to benchmarks/results/mse_then_kl.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
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
    parser.add_argument("--quick", action="store_true", help="short: a rehearsal")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, help="folder for the figures")
    parser.add_argument("overrides", nargs="*", help="of both runs, as for dictlearn train")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seeds = [0] if options.quick else options.seeds
    steps = 20 if options.quick else options.steps
    folder = options.results or (Path(tempfile.mkdtemp()) if options.quick else results.RESULTS)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in OBJECTIVES}
    for seed in seeds:
        for objective in OBJECTIVES:
            runs[objective].append(figures(objective, seed, steps, options.overrides))
            print(objective, runs[objective][-1], flush=True)
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


def figures(objective: str, seed: int, steps: int, overrides: list[str]) -> dict[str, Any]:
    """Trains and evaluates one dictionary."""
    settings = [f"objective={objective}", f"seed={seed}", f"steps={steps}", "eval_tokens=16384"]
    found = trained([*settings, *overrides])
    return {"seed": seed, **{key: found[key] for key in FIGURES}}


def trained(settings: list[str]) -> dict[str, float]:
    """All figures of the final evaluation of one `dictlearn train`, of which nothing else is kept."""
    with tempfile.TemporaryDirectory() as folder:
        own = [f"run_dir={folder}", "name=study", "~eval.baselines", "trainer=cpu"]
        assert train.main(compose("train", [*own, *settings])) == 0
        return json.loads((Path(folder) / "figures.json").read_text())["figures"]


if __name__ == "__main__":
    sys.exit(main())

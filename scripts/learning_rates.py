"""Which learning rate for which width? The table of docs/choose.md.

    python scripts/learning_rates.py            # 12 SAEs of pico, some minutes of a core
    python scripts/learning_rates.py --quick    # a rehearsal; its figures mean nothing

Every run is `dictlearn.train` with its defaults but for width, rate and length, on one seed. The
figures are appended to benchmarks/results/learning_rates.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch

import dictlearn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

WIDTHS = (512, 2048, 8192)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
FIGURES = ("fvu", "ce_increase", "l0", "dead")
LEFT_OUT = [f"~eval.{name}" for name in ("decoder_norms", "replacement", "jacobian", "baselines")]
COMMON = ["steps=400", "eval_tokens=16384", "callbacks.checkpoint=null", *LEFT_OUT]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short: a rehearsal")
    parser.add_argument("--results", type=Path, help="folder for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.results or (Path(tempfile.mkdtemp()) if options.quick else results.RESULTS)
    common = [*COMMON, *(["steps=10", "eval_tokens=2048"] if options.quick else [])]
    rows = []
    with tempfile.TemporaryDirectory() as runs:
        for features, rate in product(WIDTHS, RATES):
            name = f"{features}-{rate}"
            keys = {"dict": {"n_features": features}, "optim": {"lr": rate}}
            run = dictlearn.train(common, name=name, run_dir=f"{runs}/{name}", **keys)
            figures = {key: run.figures[key] for key in FIGURES}
            rows.append({"features": features, "lr": rate, **figures})
            print(rows[-1], flush=True)
    record = {
        "versions": results.versions(("torch", "lightning", "dictlearn-lm")),
        "model": "pico",
        "seeds": [0],
        "overrides": common,
        "runs": rows,
    }
    print(f"appended to {results.append('learning_rates', record, folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

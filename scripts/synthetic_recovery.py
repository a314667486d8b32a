"""Does training find the true features? On activations made of known ones, with every default.

    python scripts/synthetic_recovery.py                  # 3 kinds, 3 seeds: the bar of 0.95
    python scripts/synthetic_recovery.py --quick          # a rehearsal; its figures mean nothing

64 features in 32 dimensions, Zipf firing, correlated (conf/source/synthetic.yaml says how). The
figure is the mean over true features of the largest cosine to a decoder row. Each seed makes
another truth, other activations and another initialisation. Figures are appended to
benchmarks/results/synthetic_recovery.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch

from dictlearn.config import compose
from dictlearn.evals.ground_truth import mcc, mean_max_cosine
from dictlearn.sources.synthetic import SyntheticSource
from dictlearn.verbs import build
from dictlearn.verbs.train import SAMPLE_TOKENS, fit, split

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

BAR = 0.95
N_FEATURES = 64  # of the truth and of the dictionary
KINDS = {
    "batchtopk": ["dict=sae", "sparsity=batchtopk"],
    "matryoshka": ["dict=matryoshka"],
    "jumprelu": ["dict=sae", "sparsity=jumprelu"],
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--quick", action="store_true", help="short: a rehearsal")
    parser.add_argument("--threads", type=int, default=1, help="the matrices are small")
    parser.add_argument("--results", type=Path, help="folder for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    steps = 30 if options.quick else options.steps
    folder = options.results or (Path(tempfile.mkdtemp()) if options.quick else results.RESULTS)
    kinds = {kind: [recover(kind, seed, steps) for seed in seeds] for kind in options.kinds}
    record = {
        "versions": results.versions(("torch", "lightning", "dictlearn-lm")),
        "seeds": seeds,
        "steps": steps,
        "bar": BAR,
        "kinds": {
            kind: {
                "mean_max_cosine": statistics.median(run["mean_max_cosine"] for run in runs),
                "met": statistics.median(run["mean_max_cosine"] for run in runs) >= BAR,
                "runs": runs,
            }
            for kind, runs in kinds.items()
        },
    }
    print(f"appended to {results.append('synthetic_recovery', record, folder)}")
    return 0


def recover(kind: str, seed: int, steps: int) -> dict[str, Any]:
    """Trains one dictionary through Lightning's Trainer and holds it against the truth."""
    with tempfile.TemporaryDirectory() as run_dir:
        cfg = compose("train", [*KINDS[kind], *settings(seed, steps, run_dir)])
        lightning.seed_everything(seed, workers=True, verbose=False)
        dictionary = build.build_dictionary(cfg, build.build_info(cfg))
        training = build.build_training(cfg, dictionary)
        source = build.build_source(cfg, None, dictionary, "train")
        assert isinstance(source, SyntheticSource)
        sample = source.sample(SAMPLE_TOKENS)
        trainee = training.trainee()
        trainee.begin(sample)  # type: ignore[operator]
        fit(cfg, training, source, None)
        trained = trainee.inference_form(partial(split, sample, cfg.batch_tokens))  # type: ignore
    W_dec = trained.decoder.W_dec[0]
    l0 = float(trained.encode(sample.x_NSD).l0_NS.double().mean())
    figures = {
        "seed": seed,
        "mean_max_cosine": mean_max_cosine(W_dec, source.truth),
        "mcc": mcc(W_dec, source.truth),
        "l0": l0,
        "true_l0": float(source.probability_F.sum()),
    }
    print(kind, *(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
    return figures


def settings(seed: int, steps: int, run_dir: str) -> list[str]:
    """What a user would write; 2.83 true features fire on a token."""
    return [
        "source=synthetic",
        f"source.n_features={N_FEATURES}",
        "source.width=32",
        f"dict.n_features={N_FEATURES}",
        "optim.lr=1.0e-2",  # small dictionaries take large steps
        "dict.k=3",
        f"steps={steps}",
        "batch_tokens=512",
        f"seed={seed}",
        "trainer=cpu",
        "logger=null",
        "callbacks=null",
        f"run_dir={run_dir}",
    ]


if __name__ == "__main__":
    sys.exit(main())

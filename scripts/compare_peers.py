"""dictlearn beside SAELens and sparsify: same activations, same recipe, everybody's own code.

    pip install -c constraints.txt '.[peers]'
    python scripts/compare_peers.py              # reconstruction, 3 seeds, then the race
    python scripts/compare_peers.py fvu          # reconstruction alone
    python scripts/compare_peers.py speed        # the race alone
    python scripts/compare_peers.py --quick      # a minute's rehearsal; its figures mean nothing

Figures are appended to benchmarks/results/{peers,peers_speed}.json. Activations and the peers'
finished figures are kept in --scratch, so that a second comparison trains only ours again.
docs/peers.md says what was equalised and what was not.
"""

from __future__ import annotations

import os

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import measure, report, results
from peers.activations import Activations, load_or_make
from peers.ours import Ours, race_inside_lightning
from peers.recipe import Recipe, Trainer
from peers.saelens import SAELens
from peers.sparsify import Sparsify
from peers.speed import Race

FULL = Recipe(
    width=256,
    n_features=1536,
    k=32,
    steps=800,
    batch_tokens=1024,
    lr=3e-3,
    warmup=40,
    decay=160,
    dead_after_tokens=80 * 1024,
    prefixes=(96, 384, 1536),
)
QUICK = Recipe(
    width=256,
    n_features=256,
    k=8,
    steps=12,
    batch_tokens=256,
    lr=3e-3,
    warmup=3,
    decay=3,
    dead_after_tokens=1024,
    prefixes=(64, 256),
)

Build = Callable[[Recipe, int], Trainer]

# Each peer's dictionary: our kind beside it, its package, how to build it, whether settings are
# everybody's (else they are the peer's own).
PEERS: dict[str, tuple[str, str, Build, bool]] = {
    "SAELens topk": ("topk", "sae-lens", partial(SAELens, "topk"), True),
    "SAELens batchtopk": ("batchtopk", "sae-lens", partial(SAELens, "batchtopk"), True),
    "SAELens matryoshka": ("matryoshka", "sae-lens", partial(SAELens, "matryoshka"), True),
    "SAELens jumprelu": ("jumprelu", "sae-lens", partial(SAELens, "jumprelu"), True),
    "sparsify topk": ("topk", "eai-sparsify", Sparsify, True),
    "sparsify topk, signum": (
        "topk",
        "eai-sparsify",
        partial(Sparsify, optimiser="signum"),
        False,
    ),
}


def main() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    folder = options.results or (Path(tempfile.mkdtemp()) if options.quick else results.RESULTS)
    if options.part in ("fvu", "all"):
        compare_fvu(options, folder)
    if options.part in ("speed", "all"):
        compare_speed(options, folder)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=("all", "fvu", "speed"), default="all")
    parser.add_argument("--pairs", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--quick", action="store_true", help="small and short: a rehearsal")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "peers")
    parser.add_argument("--results", type=Path, help="folder for the figures")
    parser.add_argument("--fresh", action="store_true", help="train the peers again too")
    options = parser.parse_args()
    options.seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    return options


def compare_fvu(options: argparse.Namespace, folder: Path) -> None:
    """Trains everybody and puts each pair side by side."""
    recipe = QUICK if options.quick else FULL
    activations = load_or_make(options.scratch, recipe, held_out=4096 if options.quick else 65536)
    recipe = replace(recipe, width=activations.width)
    theirs = {name: peer_runs(options, recipe, activations, name) for name in options.pairs}
    ours = {
        kind: [run(partial(Ours, kind), recipe, s, activations, kind) for s in options.seeds]
        for kind in dict.fromkeys(PEERS[name][0] for name in options.pairs)
    }
    pairs = [
        report.verdict(name, ours[PEERS[name][0]], theirs[name], PEERS[name][3])
        for name in options.pairs
    ]
    print(report.table(pairs))
    record = {
        "versions": results.versions(),
        "activations": activations.description,
        "held_out_tokens": len(activations.held_out()),
        "recipe": asdict(recipe),
        "seeds": options.seeds,
        "fvu_bar": report.BAR,
        "pairs": pairs,
        "runs": {"dictlearn": ours, "peers": theirs},
    }
    print(f"appended to {results.append('peers', record, folder)}")


def peer_runs(
    options: argparse.Namespace, recipe: Recipe, activations: Activations, name: str
) -> list[dict[str, Any]]:
    """One record a seed, from the scratch folder where it is there already."""
    runs = []
    for seed in options.seeds:
        kept = options.scratch / f"{_fingerprint(name, recipe, seed, activations)}.json"
        if options.fresh or not kept.exists():
            kept.write_text(json.dumps(run(PEERS[name][2], recipe, seed, activations, name)))
        runs.append(json.loads(kept.read_text()))
    return runs


def run(
    build: Build, recipe: Recipe, seed: int, activations: Activations, label: str
) -> dict[str, Any]:
    """Trains one dictionary and measures it on held-out tokens, as trained and at L0 = k."""
    start = time.perf_counter()
    trained = build(recipe, seed).train(activations.batches(recipe.batch_tokens))
    seconds = time.perf_counter() - start
    held_out = activations.held_out()
    native = measure.held_out(trained, held_out)
    equal = measure.at_equal_l0(trained, held_out, recipe.k) if trained.thresholded else native
    print(
        f"{label:22s} seed {seed}  {seconds:4.0f} s  FVU {equal.fvu:.4f}  L0 {equal.l0:5.2f}"
        f"  dead {equal.dead:.2%}  (as trained: FVU {native.fvu:.4f}, L0 {native.l0:.2f})",
        flush=True,
    )
    return {"seed": seed, "as_trained": asdict(native), "at_equal_l0": asdict(equal)}


def _fingerprint(name: str, recipe: Recipe, seed: int, activations: Activations) -> str:
    """Changes with anything that a peer's figures depend on, its settings in our file included."""
    _, package, _, _ = PEERS[name]
    code = "saelens.py" if package == "sae-lens" else "sparsify.py"
    settings = (Path(__file__).parent / "peers" / code).read_text()
    versions = results.versions((package, "torch"))
    words = [name, asdict(recipe), seed, activations.description, versions, settings]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def compare_speed(options: argparse.Namespace, folder: Path) -> None:
    """Whole training steps at the size where the bars are stated; no feature is dead yet."""
    recipe = replace(
        FULL,
        width=64 if options.quick else 512,
        n_features=512 if options.quick else 8192,
        batch_tokens=256 if options.quick else 2048,
        steps=100_000,
        dead_after_tokens=10_000_000,
    )
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(recipe.batch_tokens, recipe.width, generator=generator)
    saelens, sparsify = SAELens("topk", recipe, 0), Sparsify(recipe, 0)
    rivals = {"SAELens": lambda: saelens.step(x_ND), "sparsify": lambda: sparsify.step(x_ND)}
    race = Race(rivals, own_steps=6, rival_steps=2)
    race_inside_lightning(race, "topk", recipe, x_ND, rounds=3 if options.quick else 15)
    summary = race.summary()
    print(report.speed_table(summary))
    record = {
        "versions": results.versions(),
        "size": {"B": recipe.batch_tokens, "D": recipe.width, "F": recipe.n_features},
        "k": recipe.k,
        "precision": "float32",
        "a_step": summary,
        "times_ours": {
            name: summary[name]["median_ms"] / summary["dictlearn"]["median_ms"] for name in rivals
        },
        "bars": report.SPEED_BARS,
    }
    print(f"appended to {results.append('peers_speed', record, folder)}")


if __name__ == "__main__":
    sys.exit(main())

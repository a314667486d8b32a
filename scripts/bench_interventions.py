"""What generation under an intervention costs beside plain generation with the same cache.

    python scripts/bench_interventions.py

Prints, for each intervention on pico, how many times plain generation's time it takes. The two take
turns; the ratio is that of the medians. Dictionaries are random, of F features in JumpReLU or TopK form:
what they cost does not depend on what they have learned.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dictlearn.dicts.clt import clt
from dictlearn.dicts.sae import sae
from dictlearn.interventions.edits import Edit, Gate, Push
from dictlearn.interventions.run import generate
from dictlearn.lm.load import load_model
from dictlearn.sparsity.topk import TopK

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

PROMPT = "def add(first, second):\n"


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=int, default=3072)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    lm = load_model("pico")
    assert lm.tokenizer is not None
    prompt = [1, *lm.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
    topk = partial(TopK, k=32)
    one = sae(lm.info, topk, n_features=args.features, layer=1).eval()
    all_layers = clt(lm.info, topk, n_features=args.features).eval()
    direction = torch.randn(lm.info.width)
    cases = {
        "push along a direction": ([], [Push("resid_post.1", direction, 0.1)]),
        "SAE, a feature set": ([one], [Edit(3, 0.5)]),
        "SAE, a push gated by a feature": (
            [one],
            [Push("resid_post.1", direction, 0.1, when=Gate(3))],
        ),
        "CLT of 4 layers, a feature set": ([all_layers], [Edit(3, 0.5)]),
    }
    ends = lm.model.generation_config
    ends.eos_token_id = None  # every run generates the same number of tokens
    plain = partial(generate, lm, [prompt], max_tokens=args.tokens)
    runs = {"plain": plain}
    for name, (dictionaries, edits) in cases.items():
        runs[name] = partial(generate, lm, [prompt], dictionaries, edits, max_tokens=args.tokens)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(args.rounds + 1):
        for name, run in runs.items():
            elapsed = seconds(run)
            if number:  # the first round warms up
                taken[name].append(elapsed)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    ratios = {name: median / medians["plain"] for name, median in medians.items()}
    for name, ratio in ratios.items():
        print(f"{name:<34} {ratio:.2f} times, {medians[name] / args.tokens * 1e3:.2f} ms a token")
    milliseconds = {name: 1e3 * median / args.tokens for name, median in medians.items()}
    record = {"versions": results.versions(("torch", "transformers")), **vars(args)}
    results.append("interventions", record | {"ms_per_token": milliseconds, "ratios": ratios})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

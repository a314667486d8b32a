"""How long a harvest takes and how much memory, by number of features: `dictlearn features` on pico.

    python scripts/bench_features.py                     # a few sizes, and what they come to at 100k
    python scripts/bench_features.py --features 100000 --tokens 1000000

An untrained TopK SAE (32 features a token) reads held-out text of the standard library: what a
harvest costs does not depend on what the features mean, only on how often they fire. Each size runs in
a process of its own, whose peak of memory is the kernel's figure. 20 examples a feature. Seconds of
the CPU stand beside those of the clock: other processes show in the latter.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from peers import results

from dictlearn.dicts.sae import sae
from dictlearn.features.harvest import Harvest
from dictlearn.features.settings import Settings
from dictlearn.features.text import Text
from dictlearn.lm.load import load_model
from dictlearn.sources.tokens import stdlib_windows
from dictlearn.sparsity.topk import TopK
from dictlearn.store.features import FeatureStore

K, READS = 32, 200
TARGET, TARGET_TOKENS = 100_000, 1_000_000


def settings(tokens: int) -> Settings:
    return Settings(
        tokens=tokens,
        batch_windows=8,
        examples=10,
        intervals=5,
        per_interval=2,
        before=32,
        after=15,
        bins=32,
        quantiles=(0.05, 0.25, 0.5, 0.75, 0.95, 0.99),
        promoted=20,
        neighbours=10,
        cofiring=10,
        sample_tokens=65536,
        sample_firings=8_000_000,
        directions=4,
        buffer=8_000_000,
        block=4096,
        checkpoint_minutes=5,
    )


def measured(n_features: int, tokens: int) -> dict[str, float]:
    """One harvest in this process."""
    lm = load_model("pico")
    dictionary = sae(lm.info, partial(TopK, k=K), "resid_post.1", n_features=n_features, k=K)
    dictionary = dictionary.eval().requires_grad_(False)
    text = Text(stdlib_windows(lm, "eval"), settings(tokens))
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        harvest = Harvest(dictionary, lm, text, text.settings, Path(folder), {})
        start, cpu = time.perf_counter(), time.process_time()
        reading = harvest.read(0, 1)
        read, read_cpu = time.perf_counter() - start, time.process_time() - cpu
        harvest.finish([reading])
        finish = time.perf_counter() - start - read
        finish_cpu = time.process_time() - cpu - read_cpu
        store = FeatureStore(folder)
        store.feature(0, 0)
        chosen = random.Random(0).sample(range(n_features), READS)
        start = time.perf_counter()
        for index in chosen:
            store.feature(0, index)
        each = (time.perf_counter() - start) / READS
        size = sum(path.stat().st_size for path in store.path.iterdir())
        seen = store.info.tokens
    return {
        "features": n_features,
        "tokens": seen,
        "read_s": round(read, 1),
        "finish_s": round(finish, 1),
        "read_cpu_s": round(read_cpu, 1),
        "finish_cpu_s": round(finish_cpu, 1),
        "loaded_gb": round(loaded / 1e6, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "store_gb": round(size / 1e9, 3),
        "ms_per_feature_read": round(1e3 * each, 2),
    }


def extrapolated(rows: list[dict[str, float]]) -> dict[str, float]:
    """To TARGET features on TARGET_TOKENS, in seconds of one core, from the two largest sizes.

    Reading grows in a straight line with features, times tokens; writing, because of its neighbours,
    at worst with the square of features; memory in a straight line.
    """
    a, b = rows[-2:]
    more = (TARGET - b["features"]) / (b["features"] - a["features"])
    read = [row["read_cpu_s"] / row["tokens"] for row in (a, b)]
    read_cpu = (read[1] + more * (read[1] - read[0])) * TARGET_TOKENS
    finish_cpu = b["finish_cpu_s"] * (TARGET / b["features"]) ** 2
    return {
        "features": TARGET,
        "tokens": TARGET_TOKENS,
        "cpu_minutes": round((read_cpu + finish_cpu) / 60, 1),
        "peak_gb": round(b["peak_gb"] + more * (b["peak_gb"] - a["peak_gb"]), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    parser.add_argument("--one", action="store_true", help="measure one size here, print it")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.features[0], options.tokens)))
        return
    rows = []
    for n in options.features:
        command = [
            sys.executable,
            __file__,
            "--one",
            f"--features={n}",
            f"--tokens={options.tokens}",
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
    record = {
        "versions": results.versions(("torch", "transformers", "dictlearn-lm")),
        "rows": rows,
    }
    if len(rows) > 1:
        record["extrapolated"] = extrapolated(rows)
        print(record["extrapolated"])
    results.append("features", record, options.results)


if __name__ == "__main__":
    main()

"""Eight SAEs of pico on one forward pass, beside eight runs one after the other: whole processes.

    python scripts/bench_shared.py                    # k = 8 to 64, about half an hour on a quiet CPU
    python scripts/bench_shared.py --quick            # a rehearsal; its figures mean nothing
    python scripts/bench_shared.py dict.n_features=1024 steps=950

On record are both ends of a tenth of the defaults, so that what each step takes can be told from what
the processes take to start:

    python scripts/bench_shared.py steps=2 eval_tokens=512 eval.baselines.fit_tokens=512
    python scripts/bench_shared.py steps=190 eval_tokens=6554 eval.baselines.fit_tokens=3277

Half of the runs, then the multirun with hydra/launcher=shared, then the other half: what disturbs the
machine for a while disturbs both. Each is the command as a user types it, from the start of Python to
the end of the report. Seconds of the clock and of the CPU, also of other processes, are appended to
benchmarks/results/shared.json; so is whether both came to the same dictionaries, to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from peers import results
from peers.speed import busy_elsewhere

KS = (8, 12, 16, 24, 32, 40, 48, 64)
BAR = 0.45  # of the time of the runs one after the other
QUICK = ["steps=20", "eval_tokens=4096", "eval.baselines.fit_tokens=4096", "dict.n_features=512"]


class Taken(NamedTuple):
    clock: float  # seconds
    cpu: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short: a rehearsal")
    parser.add_argument("--results", type=Path, help="folder for the figures")
    parser.add_argument("overrides", nargs="*", help="of all runs, as for dictlearn train")
    options = parser.parse_args()
    folder = options.results or (Path(tempfile.mkdtemp()) if options.quick else results.RESULTS)
    overrides = [*(QUICK if options.quick else []), *options.overrides]
    busy, started = busy_elsewhere(), time.perf_counter()
    with tempfile.TemporaryDirectory() as runs:
        alone = [one(k, overrides, runs) for k in KS[: len(KS) // 2]]
        ks = f"dict.k={','.join(map(str, KS))}"
        shared = train(["-m", "hydra/launcher=shared", "name=shared", ks, *overrides], runs)
        alone += [one(k, overrides, runs) for k in KS[len(KS) // 2 :]]
        equal = all(
            weights(Path(runs, "runs", f"alone-{k}"))
            == weights(Path(runs, "runs/shared", f"dict.k={k}"))
            for k in KS
        )
    own = sum(taken.cpu for taken in (*alone, shared))
    cores = (time.perf_counter() - started) * (os.cpu_count() or 1)
    record = {
        "versions": results.versions(("torch", "lightning", "dictlearn-lm")),
        "model": "pico",
        "k": list(KS),
        "overrides": overrides,
        "alone_seconds": [round(taken.clock, 1) for taken in alone],
        "alone_cpu_seconds": [round(taken.cpu, 1) for taken in alone],
        "shared_seconds": round(shared.clock, 1),
        "shared_cpu_seconds": round(shared.cpu, 1),
        "ratio": round(shared.clock / sum(taken.clock for taken in alone), 3),
        "cpu_ratio": round(shared.cpu / sum(taken.cpu for taken in alone), 3),
        "bar": BAR,
        "equal_to_the_bit": equal,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "others": round(max(0.0, busy_elsewhere() - busy - own) / cores, 3),  # of all cores
    }
    print(record, flush=True)
    print(f"appended to {results.append('shared', record, folder)}")
    return 0 if equal else 1


def one(k: int, overrides: list[str], folder: str) -> Taken:
    taken = train([f"name=alone-{k}", f"dict.k={k}", *overrides], folder)
    print(f"k = {k}: {taken.clock:.0f} s, {taken.cpu:.0f} s of the CPU", flush=True)
    return taken


def train(arguments: list[str], folder: str) -> Taken:
    """What the command takes. Raises CalledProcessError, after what it said, where it fails."""
    command = [sys.executable, "-m", "dictlearn", "train", "trainer=cpu", *arguments]
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    clock, after = time.perf_counter() - started, os.times()
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)
        done.check_returncode()
    user, system = (
        getattr(after, f"children_{part}") - getattr(before, f"children_{part}")
        for part in ("user", "system")
    )
    return Taken(clock, user + system)


def weights(run: Path) -> str:
    """The hash of the dictionary that a run saved."""
    return hashlib.sha256((run / "dictionary" / "dictionary.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())

"""How fast a store of activations is read, and whether training on one comes to what live training does.

    python scripts/bench_cache.py read
    python scripts/bench_cache.py train

`read` compares reading through source=cache with the plain read of the same safetensors files in
order, in float32 batches of 4096 rows, by the CPU time of the process: rounds in turns, medians.
`train` trains pico's SAE live and from a store of as many tokens as a run reads, for a few seeds, once
with a live buffer as large as eight shards too, and compares held-out FVU, and how fast rows are read
with how fast a run's steps take them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

from dictlearn.activations.formats.dictlearn import Store
from dictlearn.activations.layout import About
from dictlearn.activations.place import LocalPlace
from dictlearn.activations.protocol import Origin
from dictlearn.lm.load import read_info
from dictlearn.sources.cached import CachedSource
from dictlearn.sources.caching import ShardWriter, begin
from dictlearn.sources.protocol import NoText
from dictlearn.sources.reader import Reading

WIDTH, CONTEXT, SHARD_WINDOWS, SHARDS, BATCH = 512, 512, 64, 8, 4096
SITE = "resid_post.0"
MIXED = "live, as much text mixed"  # as eight shards hold


class Numbers:
    """Stands in for a model that reads text: random activations."""

    def __init__(self) -> None:
        self._rows = torch.randn(16 * CONTEXT, WIDTH)

    def read(self, number: int, indices_B: torch.Tensor) -> Reading:
        n = len(indices_B) * CONTEXT
        tokens_BP = torch.zeros(len(indices_B), CONTEXT, dtype=torch.int64)
        return Reading(tokens_BP, {SITE: self._rows[:n]}, torch.arange(n))


def store(folder: Path, dtype: str, order: Any) -> Path:
    about = About(
        origin=Origin(),
        sites=(SITE,),
        width=WIDTH,
        dtype=dtype,
        order=order,
        special="leave_out",
        nonfinite="error",
        context=CONTEXT,
        windows=SHARD_WINDOWS * SHARDS,
        shard_windows=SHARD_WINDOWS,
        seed=0,
        vocabulary=1,
    )
    place, numbers = LocalPlace(folder), Numbers()
    begin(place, about)
    own: Any = numbers
    text: Any = NoText(CONTEXT)
    writer = ShardWriter(own, text, about, place, 16)
    for shard in range(SHARDS):
        writer.write(shard)
    return folder


def plain(folder: Path) -> None:
    """The same files, in order."""
    for path in sorted((folder / "shards").glob("??????.safetensors")):
        with safe_open(path, framework="pt") as file:
            whole = file.get_tensor(SITE)
        for batch in whole.split(BATCH):
            batch.float()


def cached(folder: Path, width: int = WIDTH, batch: int = BATCH, site: str = SITE) -> Any:
    lm: Any = SimpleNamespace(info=SimpleNamespace(width=width, name="pico", revision=None))
    sites: Any = {"sources": (site,), "targets": (site,)}
    windows: Any = NoText(CONTEXT)
    return CachedSource(lm, windows, **sites, batch_tokens=batch, seed=0, path=str(folder))


def epoch(source: Any, rows: int) -> None:
    for _ in range(rows // source.batch_tokens):
        source.next_batch()


def rounds(count: int) -> Iterator[tuple[str, float, float]]:
    """(what was read, megabytes of bfloat16 a second of CPU time, of wall time)."""
    rows = SHARDS * SHARD_WINDOWS * CONTEXT
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shuffled = store(folder / "shuffled", "bfloat16", "shuffled")
        others = {
            "in 8 bits": store(folder / "int8", "int8", "shuffled"),
            "in reading order": store(folder / "windows", "bfloat16", "windows"),
        }
        known = {"shuffled": cached(shuffled)} | {n: cached(f) for n, f in others.items()}
        for source in known.values():
            epoch(source, rows)  # hashes are compared once a shard
        for _ in range(count):
            jobs: dict[str, Callable[[], None]] = {"plain": lambda: plain(shuffled)}
            jobs |= {n: lambda s=s: epoch(s, rows) for n, s in known.items()}
            jobs["shuffled, first time"] = lambda: epoch(cached(shuffled), rows)
            for name, job in jobs.items():
                cpu, wall = time.process_time(), time.perf_counter()
                job()
                size = rows * WIDTH * 2 / 1e6
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                yield name, size / cpu, size / wall


def read(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float]]] = {}
    for name, cpu, wall in rounds(options.rounds):
        found.setdefault(name, []).append((cpu, wall))
    medians = {name: statistics.median(cpu for cpu, _ in v) for name, v in found.items()}
    walls = {name: statistics.median(wall for _, wall in v) for name, v in found.items()}
    for name, speed in medians.items():
        print(f"{name:24} {speed:7.0f} MB/s of CPU  {speed / medians['plain']:.2f} of plain")
    return {"mb_per_cpu_second": medians, "mb_per_second": walls}


def trained(folder: Path, name: str, *overrides: str) -> tuple[float, float]:
    """(held-out FVU, tokens a second in the later half of the steps); a run that is done is read."""
    small = ["dict=sae", "dict.layer=1", "eval=reconstruction", "trainer=cpu", f"name={name}"]
    command = [sys.executable, "-m", "dictlearn", "train", *small, *overrides]
    run = folder / "runs" / name
    if not (run / "figures.json").is_file():
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    figures = json.loads((run / "figures.json").read_text())["figures"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    return figures["fvu"], statistics.median(speeds[len(speeds) // 2 :])


def train(options: argparse.Namespace) -> dict[str, Any]:
    tokens = options.steps * 1024
    folder = Path(options.folder or tempfile.mkdtemp())
    acts = folder / "acts"
    made = ["sites=[resid_post.1]", "output=acts", f"tokens={tokens}"]
    command = [sys.executable, "-m", "dictlearn", "cache", *made]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    kinds = {
        "live": [],
        "cached": ["source=cache", "source.path=acts"],
        MIXED: ["source.buffer_tokens=262144"],
    }
    runs: dict[str, list[float]] = {kind: [] for kind in kinds}
    fastest = 0.0
    for seed in options.seeds:
        for kind, keys in kinds.items():
            if kind == MIXED and seed != options.seeds[0]:
                continue
            extra = [f"steps={options.steps}", f"seed={seed}", *keys]
            fvu, speed = trained(folder, f"{kind.split(', ')[-1].replace(' ', '-')}-{seed}", *extra)
            runs[kind].append(fvu)
            fastest = max(fastest, speed)
            print(f"seed {seed}  {kind}  FVU {fvu:.4f}", flush=True)
    source = cached(acts, read_info("pico").width, 1024, "resid_post.1")
    rows = Store.opened(LocalPlace(acts)).info.rows
    epoch(source, rows)
    start = time.process_time()
    epoch(source, rows)
    reads = rows / (time.process_time() - start)
    print(f"rows are read at {reads:,.0f} a second, {reads / fastest:.0f} times the fastest run's")
    return {
        "steps": options.steps,
        "seeds": options.seeds,
        "fvu": runs,
        "tokens_per_second": fastest,
        "rows_read_per_cpu_second": reads,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["read", "train"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", help="for `train`: where to store and train")
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = read(options) if options.what == "read" else train(options)
    record = {"versions": results.versions(("torch", "safetensors")), options.what: figures}
    print(f"appended to {results.append('cache', record, options.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

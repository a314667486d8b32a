"""Whether two checkouts train the same: losses, figures and saved files, compared bit for bit.

    git worktree add ../before <commit>
    python scripts/same_numbers.py ../before .                  # an SAE, a CLT and a MOLT, 50 steps each
    python scripts/same_numbers.py ../before . --only clt

It is for refactors, which must change no number. Each run is a process of its own on one thread, in a
temporary folder. What differs is named, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

SHORT = (
    "steps=50",
    "batch_tokens=256",
    "eval_tokens=2048",
    "data.max_tokens=60000",
    "dead_after=2000",
    "callbacks.checkpoint.every_steps=25",
    "eval.baselines.fit_tokens=2048",
)
BUFFER = "source.buffer_tokens=16384"
RUNS = {
    "sae": ("dict=sae", BUFFER),
    "clt": ("dict=clt", "dict.n_features=512", BUFFER),
    "molt": ("dict=molt", BUFFER),
    "jumprelu": (
        "dict=transcoder",
        "dict.skip=true",
        "sparsity=jumprelu",
        "dict.n_features=512",
        BUFFER,
    ),
    "gated": ("dict=matryoshka", "sparsity=gated", "dict.n_features=512", BUFFER),
    "batchtopk": ("dict=crosscoder", "sparsity=batchtopk", "dict.n_features=512", BUFFER),
    "tied": (
        "dict=clt",
        "dict.tied=true",
        "dict.window=2",
        "dict.n_features=512",
        "beside=false",
        BUFFER,
    ),
    "kl": ("dict=sae", "objective=kl", "source=windows", "data.context=256", "dict.n_features=512"),
}
TIMED = ("seconds", "tokens_per_second", "time", "date")  # keys whose values differ from run to run


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares what two checkouts train.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=["sae", "clt", "molt"])
    chosen = parser.parse_args()
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.only:
            runs = [
                trained(checkout.resolve(), Path(folder) / f"{name}-{i}", RUNS[name])
                for i, checkout in enumerate((chosen.before, chosen.after))
            ]
            found = list(differences(*runs))
            print(f"{name}: " + ("the same" if not found else "; ".join(found[:10])), flush=True)
            different += bool(found)
    return 1 if different else 0


def trained(checkout: Path, folder: Path, overrides: tuple[str, ...]) -> Path:
    """The folder of a run of this checkout."""
    folder.mkdir()
    paths = os.pathsep.join(str(checkout / part) for part in ("src", "kernels"))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    given = {text.partition("=")[0]: text for text in (*SHORT, *overrides)}  # a key stands once
    command = [sys.executable, str(checkout / "train.py"), "name=run", *given.values()]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(overrides)}\n{done.stderr[-2000:]}")
    return folder / "runs" / "run"


def differences(one: Path, other: Path) -> Iterator[str]:
    """What differs between two runs' records, figures, dictionaries and checkpoints."""
    files = {
        str(path.relative_to(run))
        for run in (one, other)
        for pattern in ("metrics.jsonl", "figures.json", "dictionary/*", "checkpoints/step-*/*")
        for path in run.glob(pattern)
    }
    for name in sorted(files):
        if Path(name).name in ("manifest.json", "environment.json"):
            continue  # hashes of the others, and the machine
        if not (one / name).exists() or not (other / name).exists():
            yield f"only one has {name}"
        elif name.endswith(".safetensors"):
            yield from (f"{name}: {tensor}" for tensor in tensors(one / name, other / name))
        elif said(one / name) != said(other / name):
            yield name


def tensors(one: Path, other: Path) -> Iterator[str]:
    """The names of tensors that differ in a bit."""
    ours, theirs = bits(one), bits(other)
    yield from sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )


def bits(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (
            str(tensor.dtype),
            tuple(tensor.shape),
            tensor.flatten().contiguous().view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in load_file(path).items()
    }


def said(path: Path) -> Any:
    """A file's JSON, or lines of it, without what is timed."""
    if path.suffix == ".jsonl":
        return [untimed(json.loads(line)) for line in path.read_text().splitlines()]
    return untimed(json.loads(path.read_text()))


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not any(t in k for t in TIMED)}
    return [untimed(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    raise SystemExit(main())

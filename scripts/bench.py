"""How fast dictlearn is, beside dense autograd and the peers' own code, and beside the floor.

    python scripts/bench.py steps                     # whole training steps on the CPU
    python scripts/bench.py steps --device cuda       # on the GPU
    python scripts/bench.py steps --cases sae-8k clt-12 --rounds 5
    python scripts/bench.py steps --size B=256 D=64 F=1024 k=8 L=3 --anyway
    python scripts/bench.py ops                       # single operations
    python scripts/bench.py curves                    # cost against F, k and layers
    python scripts/bench.py draw                      # the documents' pictures
    python scripts/bench.py all                       # all of them in that order
    python scripts/bench.py all --quick --anyway      # a rehearsal; its figures mean nothing

Everybody has a sample by turns. Figures are appended to benchmarks/results/bench.json with machine,
versions and date, and `make docs` makes tables of them; not where other processes use the cores, unless
--anyway. SAELens and sparsify take part where they are installed (docs/peers.md says how).
docs/performance.md says what it is about.
"""

from __future__ import annotations

import os

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from benches import curves, draw, machine, ops, steps
from benches.cases import LETTERS, QUICK, Case, chosen
from peers import results

PARTS = ("steps", "ops", "curves", "draw")


def main() -> int:
    if sys.argv[1:2] == ["child"]:
        case, who, threads = sys.argv[2:]
        torch.set_num_threads(int(threads))
        print(steps.peak_here(Case(**json.loads(case)), who))
        return 0
    options = parse()
    torch.set_num_threads(options.threads)
    try:
        run(options)
    except ValueError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("all", *PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="+", help="of steps or ops, by name; default: all")
    parser.add_argument("--size", nargs="+", default=[], help="another size, as in F=1024 k=8")
    parser.add_argument(
        "--rounds", type=int, help="samples of everybody; default 7, fewer of long steps"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true", help="leave out peaks on a CPU")
    parser.add_argument("--quick", action="store_true", help="tiny and short: a rehearsal")
    parser.add_argument("--anyway", action="store_true", help="also where others use the cores")
    parser.add_argument("--results", type=Path, help="folder for the figures")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp()) if options.quick else None
    options.results = options.results or scratch or results.RESULTS
    options.pictures = options.pictures or scratch or draw.PICTURES
    options.rounds = options.rounds or (2 if options.quick else None)
    return options


def run(options: argparse.Namespace) -> None:
    parts = PARTS if options.part == "all" else (options.part,)
    if options.rounds is not None and options.rounds < 2:
        raise ValueError(f"--rounds {options.rounds}: want at least 2, to tell the spread")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device here; want cpu")
    if parts != ("draw",) and not options.anyway:
        machine.refuse_busy()
    timed = {"steps": race_steps, "ops": race_ops, "curves": trace_curves}
    for part in parts:
        if part == "draw":
            print(*draw.pictures(options.results, options.pictures), sep="\n")
            continue
        for record in timed[part](options):
            keep(record, options)


def race_steps(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    cases = chosen(options.device, options.cases, size_of(options))
    rates = machine.measure_rates(options.device, options.quick)
    for case in cases:
        memory = not (options.no_memory or options.quick)
        record = steps.race_steps(case, options.rounds or case.rounds, rates, memory, options.quick)
        print(steps.table(record), end="\n\n", flush=True)
        yield record


def race_ops(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for record in ops.race_ops(options.device, options.cases, options.rounds or 7, options.quick):
        print(ops.line(record), flush=True)
        yield record


def trace_curves(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for record in curves.trace(options.device, options.rounds or 5, options.quick):
        print(curves.table(record), end="\n\n", flush=True)
        yield record


def size_of(options: argparse.Namespace) -> dict[str, int]:
    size = dict(QUICK) if options.quick else {}
    for word in options.size:
        letter, _, number = word.partition("=")
        if letter not in LETTERS or not number.isdigit() or int(number) < 1:
            raise ValueError(f"--size {word}: want a positive number for {', '.join(LETTERS)}")
        size[letter] = int(number)
    return size


def keep(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Appends a record, unless others used the machine while it was taken."""
    if record["others"] > machine.QUIET and not options.anyway:
        raise ValueError(
            f"other processes used {record['others']:.0%} of the cores meanwhile: not recorded; "
            f"want {machine.QUIET:.0%} at most, or --anyway"
        )
    results.append("bench", {"versions": machine.versions(), **record}, options.results)


if __name__ == "__main__":
    sys.exit(main())

"""Times attribution graphs beside circuit-tracer, turn by turn, on the same dictionaries and prompts.

    make .attribution/.installed      # circuit-tracer, in an environment of its own
    dictlearn export run=runs/clt format=circuit_tracer
    python scripts/bench_attribution.py clt=runs/clt/export/circuit_tracer

Both sides read the same exported folders. The two work by turns, one thread each, and each measures
the CPU seconds and the wall seconds of its own call, the model loaded and warm. circuit-tracer gets
the batch size of BATCHES that is fastest for it; ours ranks features as often as it does at that
size (rank_every). FLOPs are counted in a run of their own. Appends
to benchmarks/results/attribution.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import torch
from peers import results
from torch.utils.flop_counter import FlopCounterMode

from dictlearn.attribution.attribute import Settings, attribute
from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_model

ROOT = Path(__file__).resolve().parents[1]
PICO = ROOT / "src" / "dictlearn" / "lm" / "pico"
PEER = ROOT / ".attribution" / "bin" / "python"
SIZES = ((32, None), (128, 1024), (400, 512))  # tokens, and feature nodes; None: all
BATCHES = (16, 64)
EVERY = 4  # batches between two rankings, circuit-tracer's default


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    lm = load_model(str(PICO), dtype="float32")
    rows: list[dict[str, Any]] = []
    with subprocess.Popen(
        [str(PEER), str(Path(__file__).with_name("attribution_peer.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as peer:
        for name, folder in args.dictionaries:
            dictionary = load_dictionary(str(folder))
            for tokens, nodes in SIZES:
                row = compared(lm, dictionary, peer, folder, tokens, nodes, args.turns)
                rows.append({"dictionary": name, **row})
                print(json.dumps(rows[-1]), flush=True)
        assert peer.stdin is not None
        peer.stdin.close()
    versions = results.versions(("torch", "dictlearn-lm"))
    path = results.append(
        "attribution", {"versions": versions, "model": "pico, float32", "rows": rows}
    )
    print(f"appended to {path}")


def compared(
    lm: LanguageModel,
    dictionary: Dictionary,
    peer: subprocess.Popen[str],
    folder: Path,
    n: int,
    nodes: int | None,
    turns: int,
) -> dict[str, Any]:
    """Medians of both at circuit-tracer's best batch size, their ratios, and whether they agree."""
    tokens = prompt(lm, n)
    asked = {
        "model": str(PICO),
        "dictionary": str(folder.resolve()),
        "tokens": tokens,
        "nodes": nodes,
    }

    def theirs(batch: int) -> dict[str, Any]:
        assert peer.stdin is not None and peer.stdout is not None
        peer.stdin.write(json.dumps(asked | {"batch_size": batch}) + "\n")
        peer.stdin.flush()
        return json.loads(peer.stdout.readline())

    first = {batch: theirs(batch) for batch in BATCHES}  # the first of all loads and warms up
    first[BATCHES[0]] = theirs(BATCHES[0])
    best = min(BATCHES, key=lambda batch: first[batch]["cpu"])
    settings = Settings(nodes, rank_every=EVERY * best)
    ours(lm, dictionary, tokens, settings)
    pairs = [(ours(lm, dictionary, tokens, settings), theirs(best)) for _ in range(turns)]
    mine, other = ([pair[side] for pair in pairs] for side in (0, 1))
    medians = {
        f"{side}_{clock}": statistics.median(one[clock] for one in runs)
        for side, runs in (("ours", mine), ("theirs", other))
        for clock in ("cpu", "wall")
    }
    with FlopCounterMode(display=False) as counter:
        graph = attribute(lm, [dictionary], torch.tensor(tokens), settings=settings)
    return {
        "tokens": n,
        "active": other[0]["active"],
        "nodes": len(other[0]["selected"]),
        "batch_size": best,
        **{key: round(value, 3) for key, value in medians.items()},
        "ratio_cpu": round(medians["theirs_cpu"] / medians["ours_cpu"], 1),
        "ratio_wall": round(medians["theirs_wall"] / medians["ours_wall"], 1),
        "their_cpu_by_batch_size": {batch: round(one["cpu"], 2) for batch, one in first.items()},
        "our_gflop": round(counter.get_total_flops() / 1e9, 2),
        "same_selection": mine[0]["selected"] == other[0]["selected"],
        "same_largest_edge": abs(mine[0]["largest"] / other[0]["largest"] - 1) < 1e-5,
        "conservation": graph.conservation,
        "versions": other[0]["versions"],
    }


def ours(
    lm: LanguageModel, dictionary: Dictionary, tokens: list[int], settings: Settings
) -> dict[str, Any]:
    cpu, wall = time.process_time(), time.perf_counter()
    graph = attribute(lm, [dictionary], torch.tensor(tokens), settings=settings)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    nodes = graph.nodes
    return {
        "cpu": cpu,
        "wall": wall,
        "selected": torch.stack([nodes.layer, nodes.position, nodes.index], 1).tolist(),
        "largest": float(graph.edges.weights.abs().max()),
    }


def prompt(lm: LanguageModel, n: int) -> list[int]:
    """The first tokens of a module of the standard library, behind BOS."""
    assert lm.tokenizer is not None
    text = Path(textwrap.__file__).read_text(encoding="utf-8")
    ids: list[int] = lm.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
    return [1, *ids[: n - 1]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("dictionaries", nargs="+", type=named, help="name=<exported folder>")
    parser.add_argument("--turns", type=int, default=3, help="calls of each side")
    args = parser.parse_args()
    if not PEER.is_file():
        sys.exit(f"{PEER} is missing: make .attribution/.installed")
    return args


def named(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not (Path(folder) / "config.yaml").is_file():
        raise argparse.ArgumentTypeError(f"{text}: want name=<folder in circuit-tracer's layout>")
    return name, Path(folder)


if __name__ == "__main__":
    main()

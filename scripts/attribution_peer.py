"""circuit-tracer's side of bench_attribution.py, which starts it in its own environment.

Reads a line of JSON from stdin, attributes the prompt and answers with a line of JSON: CPU seconds
and wall seconds of one call, and the selection. Reads nothing of dictlearn.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from importlib.metadata import version
from typing import Any

import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    models: dict[tuple[str, str], Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        key = (asked["model"], asked["dictionary"])
        if key not in models:
            transcoders, _ = load_transcoder_from_hub(
                asked["dictionary"], device=cpu, lazy_decoder=False
            )
            models[key] = ReplacementModel.from_pretrained_and_transcoders(
                asked["model"], transcoders, backend="nnsight", device=cpu, dtype=torch.float32
            )
        print(json.dumps(timed(models[key], asked)), file=answers, flush=True)


def timed(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    tokens = torch.tensor(asked["tokens"])
    options = {"batch_size": asked["batch_size"], "max_feature_nodes": asked["nodes"]}
    cpu, wall = time.process_time(), time.perf_counter()
    with contextlib.redirect_stderr(None):
        graph = attribute(tokens, model, **options)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    selected = graph.active_features[graph.selected_features]
    return {
        "cpu": cpu,
        "wall": wall,
        "active": len(graph.active_features),
        "selected": selected.tolist(),
        "largest": float(graph.adjacency_matrix.abs().max()),
        "versions": {name: version(name) for name in ("circuit-tracer", "nnsight", "transformers")},
    }


if __name__ == "__main__":
    main()

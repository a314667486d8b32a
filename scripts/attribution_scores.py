"""Attribution graphs of exported dictionaries, made and scored by circuit-tracer, for a run's report.

    make .attribution/.installed      # an environment with circuit-tracer, which wants transformers 4
    dictlearn export run=runs/clt format=circuit_tracer
    .attribution/bin/python scripts/attribution_scores.py --run runs/clt \\
        clt=runs/clt/export/circuit_tracer
    dictlearn report run=runs/clt

Writes <run>/attribution.json (scores of every prompt, and their means) and <run>/graphs/<name>/:
a .pt graph and a pruned JSON graph for each prompt. Each name=folder is a dictionary to trace, and so
is each with its decoder rows shuffled: what features that mean nothing would score. The report shows
them side by side. Reads nothing of dictlearn: the folders alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.graph import compute_graph_scores
from circuit_tracer.utils.create_graph_files import create_graph_files
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub

PICO = Path(__file__).resolve().parents[1] / "src" / "dictlearn" / "lm" / "pico"
PROMPTS = (  # for pico, which has read the Python standard library
    "def add(first, second):\n    return first +",
    "for key, value in self._items.",
    "    if not isinstance(name, str):\n        raise",
    "import os\nimport sys\n\nclass Error(",
    "    try:\n        return self._cache[key]\n    except",
)
FORMAT = 1


def main() -> None:
    args = arguments()
    model = args.model.resolve()
    check_config(model)
    prompts = json.loads(args.prompts.read_text()) if args.prompts else list(PROMPTS)
    settings = {
        "max_n_logits": args.max_n_logits,
        "max_feature_nodes": args.max_feature_nodes,
        "batch_size": args.batch_size,
    }
    record = {
        "format": FORMAT,
        "model": str(args.model.name),
        "settings": settings,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("circuit-tracer", "nnsight", "transformers")},
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "dictionaries": {},
    }
    for name, folder in args.dictionaries:
        output = args.run / "graphs" / name
        found = traced(name, folder, model, prompts, settings, output)
        record["dictionaries"][name] = found
        label = f"{name}, decoder shuffled"
        record["dictionaries"][label] = traced(label, folder, model, prompts, settings, None)
    path, partial = args.run / "attribution.json", args.run / "attribution.json.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    print(f"{path}: dictlearn report run={args.run} shows it")


def traced(
    name: str,
    folder: Path,
    model: Path,
    prompts: list[str],
    settings: dict[str, int],
    output: Path | None,
) -> dict[str, Any]:
    """Scores of one dictionary on every prompt, and their means. Without an output it is shuffled."""
    cpu = torch.device("cpu")
    # A whole path is taken as a folder; a relative one would be looked for on the hub.
    lazy = output is not None
    transcoders, _ = load_transcoder_from_hub(str(folder.resolve()), device=cpu, lazy_decoder=lazy)
    if output is None:
        shuffle(transcoders)
    replacement = ReplacementModel.from_pretrained_and_transcoders(
        str(model), transcoders, backend="nnsight", device=cpu
    )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, prompt in enumerate(prompts):
        started = time.perf_counter()
        graph = attribute(prompt, replacement, **settings)
        score, completeness = compute_graph_scores(graph)
        slug = f"{name}-{number}"
        if output is not None:
            graph.to_pt(str(output / f"{slug}.pt"))
            create_graph_files(graph, slug, str(output.resolve()), scan=transcoders.scan)
        rows.append(
            {
                "prompt": prompt,
                "tokens": len(graph.input_tokens),
                "active_features": len(graph.active_features),
                "feature_nodes": len(graph.selected_features),
                "replacement": round(score, 6),
                "completeness": round(completeness, 6),
                "next": [target.token_str for target in graph.logit_targets[:3]],
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
        print(
            f"{slug}: replacement {score:.3f}, completeness {completeness:.3f}, "
            f"{len(graph.active_features)} active features, {rows[-1]['seconds']:.1f} s"
        )
    means = {
        key: sum(row[key] for row in rows) / len(rows) for key in ("replacement", "completeness")
    }
    return {"folder": str(folder), **means, "prompts": rows}


@torch.no_grad()
def shuffle(transcoders: torch.nn.Module) -> None:
    """Every feature writes what another of its layer wrote; when it fires stays as it is."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in transcoders.named_parameters():
        if "W_dec" in name:
            order = torch.randperm(len(parameter), generator=generator)
            parameter.copy_(parameter[order])


def check_config(model: Path) -> None:
    """transformers 4 reads rope_theta, and silently takes a default where only version 5's is there."""
    config = json.loads((model / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in config or rope.get("rope_theta", 10000.0) == 10000.0:
        return
    raise SystemExit(
        f"{model / 'config.json'} was written by transformers 5, and circuit-tracer's version 4 does "
        f'not see its rope_parameters: add "rope_theta": {rope["rope_theta"]} beside them'
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("dictionaries", nargs="+", type=named, help="name=<exported folder>")
    add("--run", type=Path, required=True, help="folder that gets attribution.json and graphs/")
    add("--model", type=Path, default=PICO, help="the model's folder, or a hub id's snapshot")
    add("--prompts", type=Path, help="a JSON list of texts; default: five for pico")
    add("--max-n-logits", type=int, default=10, help="most logits to attribute")
    add("--max-feature-nodes", type=int, default=4096, help="most features with edges of their own")
    add("--batch-size", type=int, default=64, help="backward passes at once")
    return parser.parse_args()


def named(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not (Path(folder) / "config.yaml").is_file():
        raise argparse.ArgumentTypeError(f"{text}: want name=<folder with config.yaml>")
    return name, Path(folder)


if __name__ == "__main__":
    main()

"""`dictlearn label`: writes descriptions of features into the nodes of circuit-tracer's graphs."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from dictlearn import escape
from dictlearn.ckpt import lock
from dictlearn.ckpt.dictionary import saved_sha256
from dictlearn.commands import command
from dictlearn.disk.replace import check_file_replaceable
from dictlearn.disk.whole import write_json
from dictlearn.export.graph_labels import Label, by_tokens, described, label_nodes, read_graph
from dictlearn.ranges import Natural
from dictlearn.store.explanations import read_explanations
from dictlearn.store.features import FeatureStore, has_store, open_store
from dictlearn.verbs.trained_in import tokenizer_for

METADATA = "graph-metadata.json"  # circuit-tracer's list of the graphs in a folder


class Keys:
    """Declares the values that the keys of conf/label.yaml take."""

    run: str | None
    graph: str | None
    output: str | None
    overwrite: bool
    tokens: Natural


def main(cfg: DictConfig) -> int:
    """Reads all graphs before it writes the first."""
    for key, wanted in {"run": "a run's folder", "graph": "a graph's file or folder"}.items():
        if cfg[key] is None:
            raise ValueError(f"nothing to label; want {key}=<{wanted}>")
    paths = graphs(Path(cfg.graph))
    label = labels(Path(cfg.run), cfg.tokens)
    finished = []
    with lock.writing(Path(cfg.output or cfg.graph), "label"):
        for path in paths:
            graph = read_graph(path)
            named, features = label_nodes(graph, path, label)
            output = destination(path, cfg)
            if output != path:
                check_file_replaceable(output, is_graph, cfg.overwrite)
            finished.append((output, graph, f"{named} of {features} features named"))
        for path, graph, summary in finished:
            write_json(path, graph, indent=2)
            escape.say(f"{path}: {summary}")
    return 0


def is_graph(data: bytes) -> bool:
    """Whether the content of an existing file is a graph, as we write them."""
    graph = json.loads(data)
    return isinstance(graph, dict) and isinstance(graph.get("nodes"), list)


def graphs(source: Path) -> list[Path]:
    """The graph files of a folder, or the one file."""
    if source.is_file():
        return [source]
    paths = sorted(path for path in source.glob("*.json") if path.name != METADATA)
    if not paths:
        raise ValueError(f"graph={source}: no such file, and no folder with graphs' JSON files")
    return paths


def labels(run: Path, n_tokens: int) -> Label:
    """A function that labels a layer's feature: its description, else its tokens, else nothing."""
    if not run.is_dir():
        raise ValueError(f"run={run}: no such folder")
    explanations = read_explanations(run / "features", saved_sha256(run))
    store = open_store(run) if has_store(run) else None
    if store is None and not explanations:
        raise ValueError(
            f"run={run}: nothing is known of its features; {command('features', run=run)}, then "
            f"{command('explain', run=run)}, find it out"
        )
    if store is not None:
        check_layers(store, run)
    tokenizer = None
    if store is not None and n_tokens > 0:
        tokenizer = tokenizer_for(store)

    def label(layer: int, index: int) -> str:
        explanation = explanations.get((layer, index))
        if explanation is not None and explanation.text:
            return described(explanation)
        if store is None or tokenizer is None:
            return ""
        return by_tokens(store, tokenizer, layer, index, n_tokens)

    return label


def check_layers(store: FeatureStore, run: Path) -> None:
    """Refuses features unless every layer has its own code, as the graphs assume."""
    names = tuple(f"mlp_in.{layer}" for layer in range(store.info.code_sources))
    if store.info.sources != names:
        raise ValueError(
            f"run={run}: its features are those of {', '.join(store.info.sources)}; graphs have "
            f"those of the MLPs of every layer"
        )


def destination(path: Path, cfg: DictConfig) -> Path:
    if cfg.output is None:
        return path
    output = Path(cfg.output)
    return output if Path(cfg.graph).is_file() and output.suffix == ".json" else output / path.name

"""Graphs on disk: a folder with graph.safetensors, graph.json and a manifest.

graph.safetensors   tokens [P]; layer, position, index, value [features];
                    row_starts [nodes + 1], sources, weights [edges]
graph.json          what its nodes are called, its targets, its scores
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictlearn.attribution.edges import Edges
from dictlearn.attribution.graph import Graph
from dictlearn.attribution.nodes import Nodes
from dictlearn.attribution.targets import Named
from dictlearn.ckpt.commit import commit, verify
from dictlearn.ckpt.files import check_numbers, read_tensors, write_tensors
from dictlearn.disk.strict_json import read_json
from dictlearn.disk.whole import write_json

TENSORS, JSON, FORMAT = "graph.safetensors", "graph.json", 1
SORT = "an attribution graph"
INTEGERS = ("tokens", "layer", "position", "index", "row_starts", "sources")


def save(
    graph: Graph,
    folder: Path,
    details: Mapping[str, Any] | None = None,
    beside: Callable[[Path], None] | None = None,
    overwrite: bool | None = None,
) -> None:
    """Writes the folder whole or not at all. `beside` may write more files into it.

    `details`, JSON, go into the manifest under `made`.

    Raises SaveError where other files would be lost.
    """
    nodes, edges = graph.nodes, graph.edges
    tensors = {
        "tokens": nodes.tokens,
        "layer": nodes.layer,
        "position": nodes.position,
        "index": nodes.index,
        "value": nodes.value,
        "row_starts": edges.row_starts,
        "sources": edges.sources,
        "weights": edges.weights,
    }
    record = {
        "format": FORMAT,
        "pieces": nodes.pieces,
        "text": nodes.text,
        "n_layers": nodes.n_layers,
        "vocab_size": nodes.vocab_size,
        "targets": [target._asdict() for target in nodes.targets],
        "n_active": graph.n_active,
        "left_out": graph.left_out,
        "conservation": graph.conservation,
        "scores": graph.scores._asdict(),
    }

    def write(temporary: Path) -> None:
        write_tensors(temporary / TENSORS, tensors)
        write_json(temporary / JSON, record)
        if beside is not None:
            beside(temporary)

    commit(folder, write, sort=SORT, details={"made": dict(details or {})}, overwrite=overwrite)


def load(folder: Path) -> Graph:
    """A graph that `save` wrote. Raises ValueError if it is damaged."""
    verify(folder)
    tensors, record = read_tensors(folder / TENSORS), read_json(folder / JSON)
    try:
        return _graph(folder, tensors, record)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / JSON}: is not a graph's record: {error!r}") from None


def _graph(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Graph:
    if record["format"] != FORMAT:
        raise ValueError(f"{folder}: has format {record['format']!r}; want {FORMAT}")
    check_numbers(folder / TENSORS, {key: tensors[key] for key in ("value", "weights")})
    wrong = [key for key in INTEGERS if tensors[key].dtype not in (torch.int64, torch.int32)]
    if wrong or any(tensor.ndim != 1 for tensor in tensors.values()):
        raise ValueError(f"{folder / TENSORS}: want vectors, {', '.join(INTEGERS)} of integers")
    nodes = Nodes(
        tensors["tokens"],
        [str(piece) for piece in record["pieces"]],
        str(record["text"]),
        _count(record["n_layers"]),
        _count(record["vocab_size"]),
        *(tensors[key] for key in ("layer", "position", "index", "value")),
        targets=[_named(target) for target in record["targets"]],
    )
    edges = Edges(tensors["row_starts"], tensors["sources"], tensors["weights"])
    _check(folder, nodes, edges)
    figures = (float(record[key]) for key in ("left_out", "conservation"))
    return Graph(nodes, edges, _count(record["n_active"]), *figures)


def _check(folder: Path, nodes: Nodes, edges: Edges) -> None:
    """Raises ValueError unless every number is that of a node, and every row lies below its own."""
    sizes = {len(nodes.layer), len(nodes.position), len(nodes.index), len(nodes.value)}
    steps = edges.row_starts.diff()
    sound = (
        len(sizes) == 1
        and len(nodes.pieces) == len(nodes.tokens)
        and len(edges.row_starts) == len(nodes) + 1
        and int(edges.row_starts[0]) == 0
        and bool((steps >= 0).all())
        and int(edges.row_starts[-1]) == len(edges.sources) == len(edges.weights)
        and _within(edges.sources, nodes.first_target)
        and _within(nodes.layer, nodes.n_layers)
        and _within(nodes.position, len(nodes.tokens))
        and bool((nodes.layer.diff() >= 0).all())
        and int(steps[nodes.n_features : nodes.first_target].sum()) == 0
    )
    if sound:
        to, of = edges.targets, edges.sources.long()
        features = (to < nodes.n_features) & (of < nodes.n_features)
        sound = bool((nodes.layer[of[features]] < nodes.layer[to[features]]).all())
    if not sound:
        raise ValueError(f"{folder / TENSORS}: its numbers don't describe a graph of these nodes")


def _within(numbers: Tensor, end: int) -> bool:
    return not len(numbers) or (int(numbers.min()) >= 0 and int(numbers.max()) < end)


def _named(target: Mapping[str, Any]) -> Named:
    token = target["token"]
    return Named(
        str(target["name"]), float(target["weight"]), None if token is None else _count(token)
    )


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value

"""Label the nodes of circuit-tracer's graphs: their `clerp`, which its page shows.

A node in a graph's JSON has a layer and a feature number, the Cantor number of (layer, index):

    {"node_id": "2_417_9", "feature": 88412, "layer": "2", "ctx_idx": 9, "clerp": "",
     "feature_type": "cross layer transcoder", ...}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dictlearn import marks
from dictlearn.disk.strict_json import read_json
from dictlearn.store.explanations import Explanation
from dictlearn.store.features import FeatureStore
from dictlearn.store.text import token_text

FEATURE = "cross layer transcoder"  # the feature_type for per-layer transcoders too
Label = Callable[[int, int], str]  # (layer, index) -> label, "" if there is none


def read_graph(path: Path) -> dict[str, Any]:
    """The graph in a file. Raises ValueError unless circuit-tracer could have written it."""
    graph = read_json(path)
    nodes = graph.get("nodes") if isinstance(graph, dict) else None
    well_formed = isinstance(nodes, list) and all(
        isinstance(node, dict) and isinstance(node.get("feature_type"), str) for node in nodes
    )
    if not well_formed:
        raise ValueError(f"graph={path}: want a graph that circuit-tracer wrote, with its nodes")
    return graph


def label_nodes(graph: dict[str, Any], path: Path, label: Label) -> tuple[int, int]:
    """Sets `clerp` in place; returns the numbers of labelled nodes and of all nodes of features."""
    labelled = features = 0
    for node in graph["nodes"]:
        if node["feature_type"] != FEATURE:
            continue
        features += 1
        layer, index = feature_of(node, path)
        if text := label(layer, index):
            node["clerp"] = text
            labelled += 1
    return labelled, features


def feature_of(node: dict[str, Any], path: Path) -> tuple[int, int]:
    """The (layer, index) of a feature's node."""
    number, layer = node.get("feature"), node.get("layer")
    if type(number) is int and number >= 0:
        diagonal = (isqrt(8 * number + 1) - 1) // 2
        index = number - diagonal * (diagonal + 1) // 2
        if str(diagonal - index) == str(layer):
            return diagonal - index, index
    raise ValueError(
        f"graph={path}: node {node.get('node_id')!r} has feature {number!r} in layer {layer!r}; "
        f"want the Cantor number of the layer and the feature"
    )


def described(explanation: Explanation) -> str:
    """The label for an explanation, marked if it is unreliable."""
    if not explanation.text or explanation.reliable:
        return marks.plain(explanation.text)
    score = explanation.scores.get("balanced_accuracy")
    return (
        f"{marks.plain(explanation.text)} (unreliable{'' if score is None else f', {score:.2f}'})"
    )


def by_tokens(
    store: FeatureStore, tokenizer: PreTrainedTokenizerBase, source: int, index: int, n: int
) -> str:
    """A label for a feature without an explanation: tokens that it fires on and promotes most."""
    feature = store.feature(source, index)
    fired = Counter(example.tokens[example.peak] for example in feature.top)
    parts = [_listed("fires on", [token for token, _ in fired.most_common(n)], tokenizer)]
    if feature.promoted:
        last = list(feature.promoted)[-1]  # nearest to the output
        parts.append(_listed("promotes", [t for t, _ in feature.promoted[last][:n]], tokenizer))
    return "; ".join(filter(None, parts))


def _listed(words: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    pieces = " ".join(repr(piece) for piece in token_text(tokenizer, ids))
    return f"{words} {pieces}" if pieces else ""

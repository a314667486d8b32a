"""A graph in circuit-tracer's JSON, checked and turned into the columns that the page reads.

    {"metadata": {"slug", "scan", "prompt", "prompt_tokens", "node_threshold", ...},
     "qParams": {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"},
     "nodes": [{"node_id", "feature", "layer", "ctx_idx", "feature_type", "influence", "activation",
                "token_prob", "clerp", ...}],
     "links": [{"source", "target", "weight"}]}

Keys of ours in the metadata, all optional: `scores` and `left_out`, {name: number}; `baselines`,
{name: {score: number}}; `checks`, rows of a table about interventions (see `Checks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import PurePath
from typing import Any, NamedTuple

from dictlearn.pages.record import short

FEATURE, ERROR, TOKEN, LOGIT = range(4)  # as in site/data.js
TYPES = {
    "cross layer transcoder": FEATURE,
    "mlp reconstruction error": ERROR,
    "embedding": TOKEN,
    "logit": LOGIT,
}
MOST = 1 << 24  # nodes, links or layers; a page of more could not be opened
Q_PARAMS = ("pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos")


class Node(NamedTuple):
    """A node that was checked."""

    name: str  # node_id
    row: int  # 0 the tokens, layer + 1, and one more than the last layer's for logits
    position: int
    type: int  # FEATURE, ERROR, TOKEN or LOGIT
    index: int | None  # of a feature in its layer
    influence: float | None  # cumulative share: the nodes up to this one carry so much
    activation: float | None
    probability: float  # of a logit
    label: str  # clerp


def nodes_of(graph: Any) -> list[Node]:
    """The nodes of a graph, each name once: the first of two that share one, as links can't tell.

    Raises ValueError, which names the node and its field, for anything that is not such a graph.
    """
    entries = _list(graph, "nodes")
    n_tokens = len(tokens_of(graph))
    layers = [_layer(e) for e in entries if isinstance(e, dict) and _type(e) in (FEATURE, ERROR)]
    top = 2 + max(layers, default=-1)
    nodes: dict[str, Node] = {}
    for entry in entries:
        node = _node(entry, n_tokens, top)
        nodes.setdefault(node.name, node)
    return list(nodes.values())


def tokens_of(graph: Any) -> list[str]:
    """The prompt's tokens."""
    metadata = graph.get("metadata") if isinstance(graph, dict) else None
    tokens = metadata.get("prompt_tokens") if isinstance(metadata, dict) else None
    if isinstance(tokens, list) and tokens and all(isinstance(token, str) for token in tokens):
        return tokens
    raise ValueError(
        "graph: its metadata have no prompt_tokens; want a list of the prompt's tokens"
    )


def links_of(graph: Any, nodes: Sequence[Node]) -> dict[str, list[Any]]:
    """Columns source, target (numbers of nodes) and weight. Raises ValueError for an odd link."""
    number: dict[Any, int] = {node.name: i for i, node in enumerate(nodes)}

    def end(link: Any, key: str) -> int | None:
        name = link.get(key) if isinstance(link, dict) else None
        return number.get(name) if isinstance(name, str) else None

    rows = []
    for link in _list(graph, "links"):
        row = (end(link, "source"), end(link, "target"))
        weight = None if None in row else _number(link, "weight")
        if weight is None:
            raise ValueError(
                f"graph: link {link!r:.120} is odd; want the node_ids of its source and target, "
                f"and a weight"
            )
        rows.append((*row, short(weight, 4)))
    return {key: [row[i] for row in rows] for i, key in enumerate(("source", "target", "weight"))}


def about(graph: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says above the graph, and the state in which it opens."""
    metadata = graph["metadata"]
    asked = graph.get("qParams")
    asked = asked if isinstance(asked, dict) else {}
    threshold = _number(metadata, "node_threshold")
    return {
        "title": str(metadata.get("slug", "graph")),
        "of": _of(metadata),
        "prompt": str(metadata.get("prompt", "".join(tokens_of(graph)))),
        "tokens": tokens_of(graph),
        "threshold": 1.0 if threshold is None else min(1.0, max(0.0, threshold)),
        "scores": _pairs(metadata.get("scores")),
        "baselines": [[name, _pairs(scores)] for name, scores in _items(metadata.get("baselines"))],
        "left_out": _pairs(metadata.get("left_out")),
        "checks": _checks(metadata.get("checks")),
        "asked": {key: asked[key] for key in Q_PARAMS if key in asked},
    }


def _of(metadata: Mapping[str, Any]) -> str:
    """Whose graph it is: of a folder its name alone, as the way there is nobody else's business."""
    named = str(metadata.get("model", metadata.get("scan", "")))
    return PurePath(named).name if PurePath(named).is_absolute() else named


def _checks(value: Any) -> list[list[Any]]:
    """[what was done, predicted, measured] of each intervention that tested the graph."""
    rows = value if isinstance(value, list) else []
    keys = ("predicted", "measured")
    return [
        [str(row.get("what", "")), *(short(float(row[key])) for key in keys)]
        for row in rows
        if isinstance(row, dict) and all(_number(row, key) is not None for key in keys)
    ]


def _node(entry: Any, n_tokens: int, top: int) -> Node:
    if not isinstance(entry, dict) or not isinstance(entry.get("node_id"), str):
        raise ValueError(f"graph: node {entry!r:.120} has no node_id; want a string")
    kind = _type(entry)
    position = entry.get("ctx_idx")
    if type(position) is not int or not 0 <= position < n_tokens:
        raise _odd(entry, "ctx_idx", f"a position of the prompt, from 0 to {n_tokens - 1}")
    row = {TOKEN: 0, LOGIT: top}.get(kind)
    return Node(
        name=entry["node_id"],
        row=_layer(entry) + 1 if row is None else row,
        position=position,
        type=kind,
        index=_index(entry) if kind == FEATURE else None,
        influence=_number(entry, "influence"),
        activation=_number(entry, "activation"),
        probability=_number(entry, "token_prob") or 0.0,
        label=entry["clerp"] if isinstance(entry.get("clerp"), str) else "",
    )


def _type(entry: Mapping[str, Any]) -> int:
    if (kind := TYPES.get(str(entry.get("feature_type")))) is None:
        raise _odd(entry, "feature_type", f"one of {', '.join(TYPES)}")
    return kind


def _layer(entry: Mapping[str, Any]) -> int:
    layer = str(entry.get("layer"))
    if not (layer.isascii() and layer.isdigit() and int(layer[:9]) < MOST):
        raise _odd(entry, "layer", "the number of a layer")
    return int(layer)


def _index(entry: Mapping[str, Any]) -> int:
    """The feature's index in its layer, out of the Cantor number of the two."""
    number, layer = entry.get("feature"), _layer(entry)
    if type(number) is int and number >= 0:
        diagonal = (isqrt(8 * number + 1) - 1) // 2
        index = number - diagonal * (diagonal + 1) // 2
        if diagonal - index == layer:
            return index
    raise _odd(entry, "feature", "the Cantor number of its layer and its index")


def _list(graph: Any, key: str) -> list[Any]:
    entries = graph.get(key) if isinstance(graph, dict) else None
    if not isinstance(entries, list) or len(entries) > MOST:
        raise ValueError(f"graph: has no {key}; want a list, as circuit-tracer writes it")
    return entries


def _number(entry: Mapping[str, Any], key: str) -> float | None:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _pairs(value: Any) -> list[list[Any]]:
    """[name, number] pairs: names come from a file, and some mean something in a script's object."""
    return [[name, short(float(number), 4)] for name, number in _items(value) if _finite(number)]


def _items(value: Any) -> list[tuple[str, Any]]:
    return [(str(name), one) for name, one in value.items()] if isinstance(value, dict) else []


def _finite(value: Any) -> bool:
    return _number({"value": value}, "value") is not None


def _odd(entry: Mapping[str, Any], key: str, wanted: str) -> ValueError:
    return ValueError(
        f"graph: node {entry.get('node_id')!r} has {key}={entry.get(key)!r}; want {wanted}"
    )

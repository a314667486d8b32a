"""A pruned graph as the JSON of circuit-tracer, which its page and Neuronpedia's open.

    {"metadata": {"slug", "scan", "transcoder_list", "prompt_tokens", "prompt", "node_threshold",
                  "schema_version"},
     "qParams": {...}, "nodes": [...], "links": [{"source", "target", "weight"}]}

Nodes and links are those that circuit-tracer 0.5.0 writes, in its order. Its names are kept too: an
error is 0_<layer>_<position>, which is also the name of a feature of layer 0 with a small index.
Beside its metadata stand keys of ours that both pages pass over: `scores`, `left_out`, `info`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dictlearn.attribution.graph import Graph
from dictlearn.attribution.prune import Pruned

GENERATOR = {"name": "dictlearn", "url": "https://pypi.org/project/dictlearn-lm/"}


def as_json(graph: Graph, pruned: Pruned, slug: str, scan: str) -> dict[str, Any]:
    """`scan` says whose features these are: a folder, a hub id, or a source set of Neuronpedia."""
    names = {number: node["node_id"] for number, node in _nodes(graph, pruned)}
    linked = {*pruned.edges.sources.tolist(), *pruned.edges.targets.tolist()}
    always = graph.nodes.first_token
    edges = zip(
        pruned.edges.sources.tolist(),
        pruned.edges.targets.tolist(),
        pruned.edges.weights.float().tolist(),
        strict=True,
    )
    return {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "transcoder_list": [],
            "prompt_tokens": graph.nodes.pieces,
            "prompt": graph.nodes.text,
            "node_threshold": pruned.node_threshold,
            "schema_version": 1,
            "scores": graph.scores._asdict(),
            "left_out": {"influence on features without edges of their own": graph.left_out},
            "info": {"generator": GENERATOR},
            "pruning_settings": {
                "node_threshold": pruned.node_threshold,
                "edge_threshold": pruned.edge_threshold,
            },
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            node for number, node in _nodes(graph, pruned) if number >= always or number in linked
        ],
        "links": [
            {"source": names[source], "target": names[target], "weight": weight}
            for source, target, weight in edges
        ],
    }


def _nodes(graph: Graph, pruned: Pruned) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, node) of those that stay."""
    P = len(graph.nodes.tokens)
    for number in pruned.kept.nonzero()[:, 0].tolist():
        node = graph.nodes[number]
        own: dict[str, Any]
        if node.kind == "feature":
            assert node.layer is not None and node.feature is not None
            own = {
                "node_id": f"{node.layer}_{node.feature}_{node.position}",
                "feature": cantor(node.layer, node.feature),
                "layer": str(node.layer),
                "feature_type": "cross layer transcoder",  # of per-layer transcoders too
                "jsNodeId": f"{node.layer}_{node.feature}-0",
                "activation": node.value,
            }
        elif node.kind == "error":
            own = {
                "node_id": f"0_{node.layer}_{node.position}",
                "feature": -1,
                "layer": str(node.layer),
                "feature_type": "mlp reconstruction error",
                "jsNodeId": f"{node.layer}_{node.position}-0",
            }
        elif node.kind == "token":
            token = int(graph.nodes.tokens[node.position])
            own = {
                "node_id": f"E_{token}_{node.position}",
                "feature": node.position,
                "layer": "E",
                "feature_type": "embedding",
                "jsNodeId": f"E_{token}-{node.position}",
            }
        else:
            own = _target(graph, number - graph.nodes.first_target, P - 1)
        shared = {
            "ctx_idx": node.position,
            "token_prob": 0.0,
            "is_target_logit": False,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "clerp": "",
            "influence": float(pruned.cumulative[number]),
            "activation": None,
        }
        yield number, shared | own


def _target(graph: Graph, number: int, last: int) -> dict[str, Any]:
    """A target that is no token of the vocabulary has a number after the last token's."""
    target, layer = graph.nodes.targets[number], str(graph.nodes.n_layers + 1)
    token = graph.nodes.vocab_size + number if target.token is None else target.token
    return {
        "node_id": f"{layer}_{token}_{last}",
        "feature": token,
        "layer": layer,
        "feature_type": "logit",
        "token_prob": target.weight,
        "is_target_logit": number == 0,
        "jsNodeId": f"L_{token}-{last}",
        "clerp": f'Output "{target.name}" (p={target.weight:.3f})',  # the page reads p from it
        "influence": None,
    }


def cantor(layer: int, feature: int) -> int:
    """One number for a layer and a feature."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature

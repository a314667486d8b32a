"""Graphs in circuit-tracer's JSON, of any size: random links from lower layers to higher ones."""

from __future__ import annotations

import itertools
import random
from typing import Any

TOKENS = ["<bos>", "def", " area", "(self", "):\n", "    return", " self", "."]


def cantor(layer: int, index: int) -> int:
    return (layer + index) * (layer + index + 1) // 2 + index


def node(
    name: str, kind: str, layer: str, position: int, feature: int, **more: Any
) -> dict[str, Any]:
    given = {"influence": 0.5, "activation": None, "token_prob": 0.0, "clerp": "", **more}
    return {
        "node_id": name, "feature": feature, "layer": layer, "ctx_idx": position,
        "feature_type": kind, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0,
        "jsNodeId": f"{name}-0", **given,
    }  # fmt: skip


def feature_node(layer: int, index: int, position: int, **more: Any) -> dict[str, Any]:
    kind, name = "cross layer transcoder", f"{layer}_{index}_{position}"
    given = {"activation": 1.0, **more}
    return node(name, kind, str(layer), position, cantor(layer, index), **given)


def made_graph(
    layers: int = 2,
    features: int = 12,
    links: int = 100,
    tokens: list[str] | None = None,
    seed: int = 0,
    n_indices: int = 6,
) -> dict[str, Any]:
    """Of `features` nodes of features, each layer's errors, every token, three outputs."""
    draw = random.Random(seed)
    prompt = TOKENS if tokens is None else tokens
    last = len(prompt) - 1
    found = [node(f"E_{p}_{p}", "embedding", "E", p, p) for p in range(len(prompt))]
    places = itertools.product(range(layers), range(n_indices), range(1, last + 1))
    for place in sorted(draw.sample(list(places), features)):
        found.append(feature_node(*place, influence=draw.random(), activation=draw.random()))
    for layer in range(layers):
        name, kind = f"0_{1000 + layer}_{last}", "mlp reconstruction error"
        found.append(node(name, kind, str(layer), last, -1, influence=draw.random()))
    for rank, (word, chance) in enumerate([(" x", 0.5), ("y", 0.25), ("\n", 0.125)]):
        name, layer = f"{layers + 1}_{rank}_{last}", str(layers + 1)
        says = {"token_prob": chance, "clerp": f'Output "{word}" (p={chance:.3f})'}
        found.append(node(name, "logit", layer, last, rank, influence=None, **says))
    return {
        "metadata": {
            "slug": "made", "scan": "pico", "transcoder_list": [], "prompt_tokens": prompt,
            "prompt": "".join(prompt[1:]), "node_threshold": 1.0, "schema_version": 1,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": found,
        "links": _links(found, links, draw),
    }  # fmt: skip


def level(one: dict[str, Any]) -> int:
    """-1 for tokens, the layer, and beyond all layers for outputs."""
    return -1 if one["layer"] == "E" else int(one["layer"])


def _links(found: list[dict[str, Any]], most: int, draw: random.Random) -> list[dict[str, Any]]:
    """At most so many links, each from a lower place to a higher one and to no earlier token."""
    targets = [one for one in found if one["feature_type"] in ("cross layer transcoder", "logit")]
    possible = [
        (source["node_id"], target["node_id"])
        for source, target in itertools.product(found, targets)
        if level(source) < level(target) and source["ctx_idx"] <= target["ctx_idx"]
    ]
    return [
        {"source": source, "target": target, "weight": round(draw.gauss(0, 1), 3)}
        for source, target in draw.sample(possible, min(most, len(possible)))
    ]

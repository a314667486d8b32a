"""What the page of a graph computes, against circuit-tracer's definitions written densely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dictlearn.attribution.page import write_page
from tests.browser.devtools import Browser
from tests.pages.graphs import made_graph


def slide(browser: Browser, slider: str, value: float) -> None:
    browser.value(
        f"(() => {{ const one = byId('{slider}'); one.value = {value};"
        f" one.dispatchEvent(new Event('input', {{ bubbles: true }})); }})()"
    )


def matrix(graph: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """(A [targets, sources], probabilities, cumulative influence given, kinds) of a graph."""
    number = {node["node_id"]: i for i, node in enumerate(graph["nodes"])}
    A = torch.zeros(len(number), len(number), dtype=torch.float64)
    for one in graph["links"]:
        A[number[one["target"]], number[one["source"]]] = one["weight"]
    p = torch.tensor([node["token_prob"] for node in graph["nodes"]], dtype=torch.float64)
    given = torch.tensor([node["influence"] or 0.0 for node in graph["nodes"]])
    return A, p, given, [node["feature_type"] for node in graph["nodes"]]


def flow(A: Tensor, p: Tensor) -> Tensor:
    """Influence by circuit-tracer's power iteration."""
    shares = A.abs() / A.abs().sum(1, keepdim=True).clamp_min(1e-10)
    total = arrived = p @ shares
    while arrived.abs().max() > 0:
        arrived = arrived @ shares
        total = total + arrived
    return total


def kept_by_definition(graph: dict[str, Any], nodes: float, edges: float) -> tuple[set[str], int]:
    """Names of nodes and number of links that stay: circuit-tracer's pruning, written densely."""
    A, p, given, kinds = matrix(graph)
    fixed = torch.tensor([kind in ("embedding", "logit") for kind in kinds])
    feature = torch.tensor([kind == "cross layer transcoder" for kind in kinds])
    keep = fixed | (given <= nodes)
    A = A * keep[:, None] * keep[None, :]
    scores = A.abs() / A.abs().sum(1, keepdim=True).clamp_min(1e-10) * (flow(A, p) + p)[:, None]
    falling = scores.flatten().sort(descending=True).values
    at = min(int(torch.searchsorted(falling.cumsum(0) / falling.sum(), edges)), len(falling) - 1)
    links = (scores >= falling[at]) & (scores > 0)
    while True:
        loose = (~links.any(0) & ~fixed) | (~links.any(1) & feature)
        if not (loose & keep).any():
            break
        keep &= ~loose
        links = links & keep[:, None] & keep[None, :]
    names = {node["node_id"] for node, stays in zip(graph["nodes"], keep, strict=True) if stays}
    return names, int(links.sum())


@pytest.mark.parametrize("nodes, edges", [(0.9, 0.9), (0.5, 0.7), (0.99, 0.3), (0.1, 0.99)])
def test_the_sliders_prune_as_circuit_tracer_does(browser, tmp_path, nodes, edges):
    graph = made_graph(layers=3, features=60, links=700, seed=4)
    browser.open(write_page(tmp_path, graph))
    slide(browser, "node-share", nodes)
    slide(browser, "link-share", edges)
    names, links = kept_by_definition(graph, nodes, edges)
    shown = browser.value("data.graph.name.filter((_, node) => view.shown.nodes[node])")
    assert (set(shown), browser.value("view.count")) == (names, links)
    assert f"pruningThreshold={nodes:.2f}&edgeThreshold={edges:.2f}" in browser.value(
        "location.hash"
    )


def test_at_first_all_of_the_file_is_shown(browser, tmp_path):
    graph = made_graph(features=20, links=300)
    graph["metadata"]["node_threshold"] = 0.5
    browser.open(write_page(tmp_path, graph))
    names, links = kept_by_definition(graph, 1.0, 1.0)
    assert set(browser.value("data.graph.name.filter((_, n) => view.shown.nodes[n])")) == names
    assert browser.value("view.count") == links
    slide(browser, "node-share", 0.4)
    assert browser.value("view.count") < links


def test_influence_and_scores_are_circuit_tracers(browser, tmp_path):
    graph = made_graph(layers=3, features=60, links=700, seed=5)
    A, p, _, kinds = matrix(graph)
    browser.open(write_page(tmp_path, graph))
    arrived = flow(A, p) + p
    assert browser.value("[...influence()]") == pytest.approx(arrived.tolist(), rel=1e-3, abs=1e-9)
    error = torch.tensor([kind == "mlp reconstruction error" for kind in kinds])
    tokens = torch.tensor([kind == "embedding" for kind in kinds])
    shares = A.abs() / A.abs().sum(1, keepdim=True).clamp_min(1e-10)
    replacement = arrived[tokens].sum() / arrived[tokens | error].sum()
    completeness = ((1 - shares[:, error].sum(1)) * arrived).sum() / arrived.sum()
    scores = browser.value("graphScores()")
    assert scores["replacement"] == pytest.approx(float(replacement), rel=1e-3)
    assert scores["completeness"] == pytest.approx(float(completeness), rel=1e-3)

"""What a graph says of itself: pruning, scores, paths, files, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dictlearn
from dictlearn.attribution import files
from dictlearn.attribution.circuit_tracer import as_json
from dictlearn.attribution.graph import Graph
from dictlearn.attribution.targets import Difference, Direction, FeatureTarget
from dictlearn.dicts.clt import clt
from dictlearn.dicts.crosscoder import crosscoder
from dictlearn.dicts.molt import molt
from dictlearn.dicts.plt import plt
from dictlearn.dicts.sae import sae
from dictlearn.dicts.transcoder import transcoder
from dictlearn.disk.whole import SaveError
from dictlearn.sparsity.relu import ReLU
from tests.families import build
from tests.graphs.reference import random

TOKENS = torch.tensor([5, 9, 33, 12, 47, 17])


@pytest.fixture(scope="module")
def graph() -> Graph:
    lm = build("qwen3")
    return dictlearn.attribute(lm, random(clt, lm), TOKENS)


def dense_influence(graph: Graph) -> torch.Tensor:
    """The sum over all paths, by the series of powers of the whole matrix."""
    A = graph.edges.dense().abs().double()
    A /= A.sum(1, keepdim=True).clamp_min(1e-10)
    arrived = total = graph.nodes.weights.double() @ A
    while arrived.any():
        arrived = arrived @ A
        total = total + arrived
    return total


def test_influence_is_the_sum_over_all_paths(graph):
    torch.testing.assert_close(graph.influence.double(), dense_influence(graph), rtol=1e-5, atol=0)


def test_rows_are_the_nodes_with_their_influence(graph):
    rows = graph.rows()
    assert len(rows) == len(graph.nodes)
    most = max(rows[: graph.nodes.first_target], key=lambda row: row["influence"])
    assert most["influence"] == float(graph.influence[: graph.nodes.first_target].max())
    assert graph.to_pandas()["influence"].tolist() == [row["influence"] for row in rows]


def test_scores_are_those_of_the_whole_matrix(graph):
    nodes, influence = graph.nodes, dense_influence(graph)
    errors = slice(nodes.n_features, nodes.first_token)
    tokens = influence[nodes.first_token : nodes.first_target].sum()
    A = graph.edges.dense().abs().double()
    A /= A.sum(1, keepdim=True).clamp_min(1e-10)
    passed = influence + nodes.weights.double()
    complete = ((1 - A[:, errors].sum(1)) * passed).sum() / passed.sum()
    wanted = (float(tokens / (tokens + influence[errors].sum())), float(complete))
    assert graph.scores == pytest.approx(wanted, rel=1e-5)


def test_pruning_keeps_the_shares_that_are_asked_for(graph):
    pruned = graph.prune(0.7, 0.9)
    nodes, influence = graph.nodes, graph.influence
    inner = slice(0, nodes.first_token)
    kept = pruned.kept[inner]
    dropped = influence[inner][~kept].max()
    assert 5 < int(kept.sum()) < nodes.first_token
    assert pruned.kept[nodes.first_token :].all()
    order = influence.sort(descending=True).values
    enough = int(torch.searchsorted(order.cumsum(0) / order.sum(), 0.7))
    assert int(kept.sum()) <= enough + 1 and float(dropped) <= float(order[0])
    # Every node that stays leads somewhere, and every feature comes from somewhere.
    for node in pruned.kept.nonzero()[:, 0].tolist():
        if node < nodes.first_token:
            assert (pruned.edges.sources == node).any()
        if node < nodes.n_features:
            assert (pruned.edges.targets == node).any()
    assert len(graph.prune(0.99, 0.999).edges) > len(pruned.edges)
    with pytest.raises(ValueError, match=r"node_threshold=1.5: want a share"):
        graph.prune(1.5)


def test_paths_are_the_strongest(graph):
    """All paths of a small graph are listed by hand."""
    source, target = graph.nodes.first_token + 2, graph.nodes.first_target
    A = graph.edges.dense().abs()
    A /= A.sum(1, keepdim=True).clamp_min(1e-10)
    shares = []

    def walk(node: int, share: float) -> None:
        if node == source:
            shares.append(share)
        elif share > 1e-4:
            for s in A[node].nonzero()[:, 0].tolist():
                walk(s, share * float(A[node, s]))

    walk(target, 1.0)
    best = sorted((s for s in shares if s > 1e-4), reverse=True)[:5]
    found = graph.paths(source, target, 5)
    assert [path.share for path in found] == pytest.approx(best, rel=1e-4)
    for path in found:
        assert path.nodes[0] == source and path.nodes[-1] == target
        edges = graph.edges.dense()
        steps = zip(path.nodes, path.nodes[1:], strict=False)
        assert path.weights == [float(edges[t, s]) for s, t in steps]
    assert graph.paths(target, source) == []
    with pytest.raises(ValueError, match="node 100000: the graph has nodes 0 to"):
        graph.paths(100_000, target)


def test_ranked_rows_are_rows_of_the_whole_graph(graph):
    lm = build("qwen3")
    some = dictlearn.attribute(lm, random(clt, lm), TOKENS, nodes=15, rank_every=4)
    place = {key(graph, i): i for i in range(len(graph.nodes))}
    at = torch.tensor([place[key(some, i)] for i in range(len(some.nodes))])
    assert some.nodes.n_features == 15 < graph.nodes.n_features == some.n_active
    torch.testing.assert_close(some.edges.dense(), graph.edges.dense()[at][:, at])
    chosen = graph.influence[at[:15]]
    assert 0 < some.left_out < 0.5 and float(chosen.min()) > 0


def key(graph: Graph, number: int) -> tuple:
    node = graph.nodes[number]
    return node.kind, node.layer, node.position, node.feature, node.name


@pytest.mark.parametrize(
    "target",
    [7, Difference(7, 9), FeatureTarget(1, 3), Direction(torch.ones(16), 2, "resid_mid", 3)],
)
def test_targets_of_every_sort_sum_to_their_value(target):
    lm = build("gemma2")
    graph = dictlearn.attribute(lm, random(plt, lm, skip=True), TOKENS, [target])
    assert graph.conservation <= 1e-5
    row = graph.edges.dense()[graph.nodes.first_target]
    assert int((row != 0).sum()) > 5
    if isinstance(target, FeatureTarget) and graph.nodes.n_features:
        same = (graph.nodes.layer == 1) & (graph.nodes.index == 3) & (graph.nodes.position == 5)
        for node in same.nonzero()[:, 0].tolist():
            torch.testing.assert_close(graph.edges.dense()[node], row)


def test_a_graph_comes_back_from_its_folder(graph, tmp_path):
    graph.save(tmp_path / "graph")
    again = dictlearn.load_graph(tmp_path / "graph")
    assert torch.equal(again.edges.dense(), graph.edges.dense())
    assert as_json(again, again.prune(), "a", "b") == as_json(graph, graph.prune(), "a", "b")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(SaveError, match="other"):
        graph.save(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "change"),
    {
        "sources": lambda t: t + 1000,
        "row_starts": lambda t: t.flip(0),
        "layer": lambda t: t.flip(0),
        "weights": lambda t: t * torch.nan,
        "tokens": lambda t: t.float(),
        "value": lambda t: t[:3],
    }.items(),
)
def test_a_file_of_somebody_else_is_not_believed(graph, tmp_path, monkeypatch, name, change):
    graph.save(tmp_path / "graph")
    path = tmp_path / "graph" / files.TENSORS
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name]).contiguous()}, path)
    with pytest.raises(ValueError, match=r"graph\.safetensors"):
        dictlearn.load_graph(tmp_path / "graph")
    monkeypatch.setattr(files, "verify", lambda folder: {})
    with pytest.raises(ValueError, match=r"graph\.safetensors"):
        dictlearn.load_graph(tmp_path / "graph")


def test_kinds_without_a_graph_are_refused_by_name():
    lm = build("qwen3")
    options: Any = {"n_features": 20, "k": 4}
    for dictionary, why in (
        (sae(lm.info, ReLU, site="resid_post.1", **options), "reads resid_post.1"),
        (molt(lm.info, ReLU, layer=1, k=4), "write no fixed vectors"),
        (
            crosscoder(lm.info, ReLU, sites=["resid_pre.1", "resid_pre.2"], **options),
            "writes resid_pre.1",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            dictlearn.attribute(lm, dictionary, TOKENS)
    layer = random(transcoder, lm, layer=1)
    with pytest.raises(ValueError, match="two dictionaries have a site mlp_in of layer 1"):
        dictlearn.attribute(lm, [layer, layer], TOKENS)


def test_wrong_values_are_named():
    lm = build("qwen3")
    dictionary = random(plt, lm)
    refused: Any = (
        ({"nodes": 0}, "nodes=0: want at least 1"),
        ({"probability": 1.5}, "probability=1.5"),
        ({"targets": []}, "targets: want at least one"),
        ({"targets": [999]}, "token 999: the model has tokens 0 to 63"),
        ({"targets": [" a"]}, "has no tokenizer"),
        ({"targets": [FeatureTarget(9, 0)]}, "no dictionary reads layer 9"),
        ({"targets": [FeatureTarget(1, 0, 40)]}, "the prompt has 6 tokens"),
        ({"targets": [Direction(torch.ones(3), 1)]}, "want a vector of the model's width, 16"),
    )
    for options, words in refused:
        with pytest.raises(ValueError, match=words):
            dictlearn.attribute(lm, dictionary, TOKENS, **options)
    with pytest.raises(ValueError, match="want one text of at least 2"):
        dictlearn.attribute(lm, dictionary, TOKENS[:1])

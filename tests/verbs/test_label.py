"""`dictlearn label`: graphs get the words that are known of their features, and only those."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dictlearn.config import compose
from dictlearn.export.graph_labels import feature_of
from dictlearn.store.explanations import Explanation, add_explanations
from dictlearn.verbs import label
from tests.store.made import made_store

LAYERS = ("mlp_in.0", "mlp_in.1", "mlp_in.2")


def pair(layer: int, index: int) -> int:
    """circuit-tracer's number of a feature."""
    return (layer + index) * (layer + index + 1) // 2 + index


def node(layer: int, index: int, position: int = 3) -> dict:
    return {
        "node_id": f"{layer}_{index}_{position}",
        "feature": pair(layer, index),
        "layer": str(layer),
        "ctx_idx": position,
        "feature_type": "cross layer transcoder",
        "clerp": "",
    }


ERROR = {
    "node_id": "0_2_3",
    "feature": -1,
    "layer": "2",
    "feature_type": "mlp reconstruction error",
    "clerp": "",
}
LOGIT = {
    "node_id": "4_17_3",
    "feature": 17,
    "layer": "4",
    "feature_type": "logit",
    "clerp": 'Output " x" (p=0.5)',
}


def graph(path: Path, *nodes: dict) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"metadata": {"slug": "a"}, "nodes": nodes, "links": []}))
    return path


def clerps(path: Path) -> list[str]:
    return [node["clerp"] for node in json.loads(path.read_text())["nodes"]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    found = [
        Explanation(2, 4, "a call's first token", "lexical", reliable=True),
        Explanation(0, 1, "digits", "lexical", scores={"balanced_accuracy": 0.61}),
        Explanation(1, 2, "", "lexical"),
    ]
    add_explanations(run / "features", found)
    return run


def run_label(*overrides: str) -> int:
    return label.main(compose("label", list(overrides)))


def test_descriptions_reach_their_nodes_and_no_others(run, tmp_path, capsys):
    path = graph(tmp_path / "g.json", node(2, 4), node(0, 1), node(1, 2), node(4, 2), ERROR, LOGIT)
    assert run_label(f"run={run}", f"graph={path}") == 0
    said = ["a call's first token", "digits (unreliable, 0.61)", "", "", "", LOGIT["clerp"]]
    assert clerps(path) == said
    assert "2 of 4 features named" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["g.json"]  # no leftovers


def test_a_feature_without_a_description_shows_its_tokens(run, tmp_path):
    made_store(run, LAYERS)
    path = graph(tmp_path / "g.json", node(2, 4), node(1, 0), node(1, 3))
    assert run_label(f"run={run}", f"graph={path}", "tokens=2") == 0
    described, tokens, dead = clerps(path)
    assert described == "a call's first token"
    assert "fires on" in tokens and "self" in tokens and "promotes" in tokens
    assert "fires on" not in dead
    assert (
        run_label(f"run={run}", f"graph={path}", "tokens=0", f"output={tmp_path / 'none.json'}")
        == 0
    )


def test_a_folder_of_graphs_goes_to_another_and_the_list_of_them_stays(run, tmp_path):
    folder = tmp_path / "graphs"
    paths = [graph(folder / f"{slug}.json", node(2, 4)) for slug in "ab"]
    (folder / "graph-metadata.json").write_text('{"graphs": []}')
    assert run_label(f"run={run}", f"graph={folder}", f"output={tmp_path / 'out'}") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "b.json"]
    assert clerps(tmp_path / "out" / "b.json") == ["a call's first token"]
    assert clerps(paths[0]) == [""]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"graphs": []}', "want a graph that circuit-tracer wrote"),
        ("not json", "is not readable"),
        (json.dumps({"nodes": [{**node(2, 4), "layer": "1"}]}), "want the Cantor number"),
        (json.dumps({"nodes": [{**node(2, 4), "feature": None}]}), "want the Cantor number"),
    ],
)
def test_what_is_no_graph_is_refused_and_none_is_written(content, sentence, run, tmp_path):
    whole = graph(tmp_path / "graphs" / "a.json", node(2, 4))
    (tmp_path / "graphs" / "b.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        run_label(f"run={run}", f"graph={tmp_path / 'graphs'}")
    assert clerps(whole) == [""]


def test_mistakes_are_one_sentence(run, tmp_path):
    path = graph(tmp_path / "g.json", node(2, 4))
    empty = tmp_path / "empty"
    empty.mkdir()
    for overrides, sentence in [
        ([f"graph={path}"], "want run="),
        ([f"run={run}"], "want graph="),
        ([f"run={run}", f"graph={empty}"], "no such file"),
        ([f"run={tmp_path / 'none'}", f"graph={path}"], "no such folder"),
        ([f"run={empty}", f"graph={path}"], "nothing is known of its features"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            run_label(*overrides)


def test_a_graph_is_not_labelled_from_another_kind_of_dictionary(tmp_path):
    made_store(tmp_path / "sae")
    path = graph(tmp_path / "g.json", node(0, 4))
    with pytest.raises(ValueError, match="resid_post.1"):
        run_label(f"run={tmp_path / 'sae'}", f"graph={path}")


def test_every_feature_has_its_number():
    for layer in range(40):
        for index in (0, 1, 77, 163_839):
            assert feature_of(node(layer, index), Path("g.json")) == (layer, index)

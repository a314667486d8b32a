"""The page of a graph: its data say what the graph says, and an odd graph is one sentence."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from dictlearn.attribution.page import Features, write_index, write_page
from dictlearn.attribution.page.columns import FEATURE
from dictlearn.disk.whole import SaveError
from dictlearn.store.explanations import Explanation, add_explanations
from dictlearn.store.features import FeatureStore
from tests.pages.graphs import TOKENS, feature_node, made_graph
from tests.store.made import made_store, pico_tokenizer

PACKAGE = files("dictlearn.attribution.page")
SHARED = files("dictlearn.pages").joinpath("site")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Six features in each of two layers."""
    folder = tmp_path_factory.mktemp("run")
    return made_store(folder, ("mlp_in.0", "mlp_in.1"), ("mlp_out.0", "mlp_out.1"))


def features_of(store: FeatureStore) -> Features:
    texts = {(0, 0): ("the word `self`", True), (1, 2): ("</script><b>", False)}
    explanations = {
        key: Explanation(
            *key, text, "lexical", scores={"balanced_accuracy": 0.9}, reliable=reliable
        )
        for key, (text, reliable) in texts.items()
    }
    return Features(store, explanations, pico_tokenizer())


def arguments(path: Path) -> list[Any]:
    """What a data file hands to its function."""
    match = re.fullmatch(r"dictlearn\.\w+\((.*)\);\n", path.read_text("utf-8"), re.DOTALL)
    assert match
    return json.loads(f"[{match[1]}]")


def data_of(page: Path) -> dict[str, Any]:
    return arguments(page.parent / "pages" / "graph.js")[0]


def test_columns_say_what_the_graph_says(tmp_path):
    graph = made_graph()
    data = data_of(write_page(tmp_path, graph))
    assert data["nodes"]["name"] == [node["node_id"] for node in graph["nodes"]]
    assert data["tokens"] == TOKENS and data["title"] == "made" and data["listed"] is False
    names, rows = data["nodes"]["name"], data["nodes"]["row"]
    for link, source, target, weight in zip(
        graph["links"], *(data["links"][key] for key in ("source", "target", "weight")), strict=True
    ):
        assert (names[source], names[target], weight) == tuple(link.values())
        assert rows[source] < rows[target]
    assert max(rows) == 3 and set(rows) == {0, 1, 2, 3}
    for node, kind, index in zip(
        graph["nodes"], data["nodes"]["type"], data["nodes"]["index"], strict=True
    ):
        assert index == (int(node["node_id"].split("_")[1]) if kind == FEATURE else None)


def test_nodes_of_one_feature_share_its_record(store, tmp_path):
    graph = made_graph()
    graph["nodes"] += [feature_node(0, 0, 3), feature_node(0, 0, 5), feature_node(0, 4000, 5)]
    data = data_of(write_page(tmp_path, graph, features_of(store)))
    *_, first, second, unknown = data["records"]
    assert first == second >= 0 and unknown == -1
    name, address, text, status, tokens = data["features"][first]
    assert (name, address, text, status) == ("mlp_in.0/0", "#mlp_in.0/0", "the word `self`", 1)
    assert tokens == "self"
    chunks = [arguments(path)[1] for path in sorted(tmp_path.glob("pages/features-*.js"))]
    records = [record for chunk in chunks for record in chunk]
    assert [record["row"] for record in records] == list(range(len(data["features"])))
    assert records[first]["explanation"]["text"] == "the word `self`" and records[first]["top"]
    pairs = {(i, j) for i, j, _ in data["similar"]}
    assert pairs and all(i < j < len(records) for i, j in pairs)


def test_features_lead_to_their_own_pages(store, tmp_path):
    folder = store.folder.parent / "attribution" / "one"
    assert data_of(write_page(folder, made_graph(), features_of(store)))["site"] is None
    (store.folder / "index.html").write_text("")
    data = data_of(write_page(folder, made_graph(), features_of(store)))
    assert (folder / data["site"]).resolve() == (store.folder / "index.html").resolve()


def test_a_runs_features_are_found_if_it_has_some(store, tmp_path):
    assert Features.of_run(tmp_path) is None
    add_explanations(store.folder, [Explanation(0, 0, "from the file", "lexical", reliable=True)])
    found = Features.of_run(store.folder.parent, pico_tokenizer())
    assert found is not None and found.explanations[0, 0].text == "from the file"
    graph = made_graph()
    graph["nodes"].append(feature_node(0, 0, 3))
    data = data_of(write_page(tmp_path, graph, found))
    assert data["features"][data["records"][-1]][2] == "from the file"


def test_of_two_nodes_with_one_name_the_first_stays(tmp_path):
    graph = made_graph()
    graph["nodes"] += [feature_node(1, 5, 3), feature_node(1, 5, 3, clerp="a twin")]
    data = data_of(write_page(tmp_path, graph))
    assert data["nodes"]["name"].count("1_5_3") == 1 and "a twin" not in data["nodes"]["label"]


Change = Callable[[dict[str, Any]], Any]
ODD: dict[str, tuple[Change, str]] = {
    "no nodes": (lambda g: g.pop("nodes"), "has no nodes"),
    "no tokens": (lambda g: g["metadata"].pop("prompt_tokens"), "prompt_tokens"),
    "no metadata": (lambda g: g.pop("metadata"), "prompt_tokens"),
    "a list": (lambda g: g.update(nodes=[[]]), "no node_id"),
    "position": (lambda g: g["nodes"][0].update(ctx_idx=99), "ctx_idx=99; want a position"),
    "type": (lambda g: g["nodes"][0].update(feature_type="x"), "feature_type='x'; want one of"),
    "layer": (lambda g: g["nodes"][9].update(layer="1e9"), "layer='1e9'; want the number"),
    "feature": (lambda g: g["nodes"][9].update(feature=-4), "feature=-4; want the Cantor"),
    "link": (lambda g: g["links"][0].update(source="nobody"), "is odd; want the node_ids"),
    "list in a link": (lambda g: g["links"][0].update(source=[]), "is odd; want the node_ids"),
    "weight": (lambda g: g["links"][0].update(weight=float("inf")), "is odd; want the node_ids"),
}


@pytest.mark.parametrize("change", ODD)
def test_an_odd_graph_is_a_sentence_and_nothing_is_written(change, tmp_path):
    graph = made_graph()
    act, says = ODD[change]
    act(graph)
    with pytest.raises(ValueError, match=re.escape(says)):
        write_page(tmp_path / "page", graph)
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("value", [None, 3, [], "graph", {"nodes": []}])
def test_what_is_no_graph_is_refused(value, tmp_path):
    with pytest.raises(ValueError, match="^graph: "):
        write_page(tmp_path, value)


def test_extra_keys_are_shown_where_they_are_numbers(tmp_path):
    graph = made_graph()
    graph["metadata"] |= {
        "scores": {"replacement": 0.61, "odd": "text", "nan": float("nan")},
        "baselines": {"shuffled": {"replacement": 0.1}, "no": 3},
        "left_out": {"influence": 0.02},
        "checks": [{"what": "a to b", "predicted": 0.5, "measured": 0.4}, {"what": "no figures"}],
    }
    data = data_of(write_page(tmp_path, graph))
    assert data["scores"] == [["replacement", 0.61]]
    assert data["baselines"] == [["shuffled", [["replacement", 0.1]]], ["no", []]]
    assert data["left_out"] == [["influence", 0.02]] and data["checks"] == [["a to b", 0.5, 0.4]]


@pytest.mark.parametrize(
    "scan, shown", [("/home/me/runs/clt", "clt"), ("owner/name", "owner/name"), ("", "")]
)
def test_a_page_says_whose_graph_it_is_and_not_where_that_lay(tmp_path, scan, shown):
    graph = made_graph()
    graph["metadata"]["scan"] = scan
    page = write_page(tmp_path, graph)
    assert data_of(page)["of"] == json.loads((tmp_path / "summary.json").read_text())["of"] == shown
    assert "/home/me" not in (page.parent / "pages" / "graph.js").read_text()


def test_other_peoples_files_stay(tmp_path):
    (tmp_path / "index.html").write_text("a thesis")
    with pytest.raises(SaveError, match="not written by dictlearn"):
        write_page(tmp_path, made_graph())
    assert (tmp_path / "index.html").read_text() == "a thesis"
    assert not (tmp_path / "pages").exists()


def test_a_page_is_replaced_by_the_next(tmp_path):
    write_page(tmp_path, made_graph())
    other = made_graph(seed=3)
    other["metadata"]["slug"] = "other"
    assert data_of(write_page(tmp_path, other))["title"] == "other"


def test_the_list_holds_every_graph(tmp_path):
    for slug in ("b", "a"):
        graph = copy.deepcopy(made_graph())
        graph["metadata"] |= {"slug": slug, "scores": {"replacement": 0.5}}
        write_page(tmp_path / slug, graph, listed=True)
    (tmp_path / "empty").mkdir()
    page = write_index(tmp_path)
    (graphs,) = arguments(page.parent / "pages" / "graphs.js")
    assert [graph["title"] for graph in graphs] == ["a", "b"]
    assert all((tmp_path / graph["address"]).is_file() for graph in graphs)
    assert graphs[0]["outputs"][0] == ['Output " x" (p=0.500)', 0.5]
    assert write_index(tmp_path) == page  # again, over its own


@pytest.mark.parametrize("site", ["site", "list"])
def test_pages_load_what_is_beside_them_and_nothing_else(site, tmp_path):
    page = write_page(tmp_path / "one", made_graph())
    if site == "list":
        page = write_index(tmp_path)
    html = page.read_text("utf-8")
    loaded = re.findall(r'(?:src|href)="(pages/[^"#]+)"', html)
    assert len(loaded) > 5 and all((page.parent / path).is_file() for path in loaded)
    assert {Path(path).name for path in loaded if path.endswith(".js")} >= {
        path.name for path in PACKAGE.joinpath(site).iterdir() if path.name.endswith(".js")
    }
    assert "default-src 'none'" in html


def test_nothing_is_ever_parsed_as_markup_or_fetched():
    for path in (*PACKAGE.joinpath("site").iterdir(), *PACKAGE.joinpath("list").iterdir()):
        code = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        odd = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc"
            r"|fetch\(|XMLHttpRequest|https?://|\bimport\b",
            code,
        )
        assert not odd, path


def test_no_two_scripts_of_a_page_define_one_name():
    defined = re.compile(r"^(?:async )?(?:function|const|let) (\w+)", re.MULTILINE)
    for site in (PACKAGE.joinpath("site"), PACKAGE.joinpath("list")):
        scripts = [p for p in (*SHARED.iterdir(), *site.iterdir()) if p.name.endswith(".js")]
        names = [name for path in scripts for name in defined.findall(path.read_text("utf-8"))]
        assert len(names) > 40 and len(names) == len(set(names))

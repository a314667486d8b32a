"""The page of an attribution graph as somebody uses it, opened from the disk in Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest

from dictlearn.attribution.page import Features, write_index, write_page
from dictlearn.store.explanations import Explanation
from tests.browser.devtools import Browser
from tests.pages.graphs import feature_node, made_graph
from tests.store.made import made_store, pico_tokenizer

NASTY = "<img src=x onerror=\"document.title='hacked'\"><b>bold</b>"
TITLE = "document.querySelector('#view h1').textContent"
PINNED = "state.pinned.map((node) => data.graph.name[node])"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of two layers with a store of six features each, one feature at three positions."""
    folder = tmp_path_factory.mktemp("graphs") / "run"
    store = made_store(folder, ("mlp_in.0", "mlp_in.1"), ("mlp_out.0", "mlp_out.1"))
    explanations = {
        (source, index): Explanation(source, index, text, "lexical", reliable=reliable)
        for source, index, text, reliable in [(0, 0, NASTY, True), (1, 1, "numbers", False)]
    }
    graph = made_graph(features=30)
    known = {node["node_id"] for node in graph["nodes"]}
    graph["nodes"] += [feature_node(1, 1, p) for p in (3, 5, 7) if f"1_1_{p}" not in known]
    for name in ("1_1_3", "1_1_5", "1_1_7", "0_1001_7"):
        ends = [("E_1_1", name, 0.4), (name, "3_0_7", 0.7)][
            name.startswith("0") :
        ]  # not to an error
        graph["links"] = [one for one in graph["links"] if name not in one.values()]
        graph["links"] += [{"source": s, "target": t, "weight": w} for s, t, w in ends]
    (store.folder / "index.html").write_text("<title>features</title>")
    features = Features(store, explanations, pico_tokenizer())
    page = write_page(folder / "attribution" / "made", graph, features, listed=True)
    write_index(folder / "attribution")
    return page


def place(browser: Browser, name: str) -> tuple[float, float]:
    """Where a node is in the window, when all is drawn."""
    browser.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    x, y = browser.value(
        f"""(() => {{
            const box = byId("graph-canvas").getBoundingClientRect();
            const [x, y] = spot(data.graph.number.get({json.dumps(name)}));
            return [box.x + x, box.y + y];
        }})()"""
    )
    return x, y


def box_place(browser: Browser, number: int) -> tuple[float, float]:
    """Where a box of the subgraph is in the window."""
    browser.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    x, y = browser.value(
        f"""(() => {{
            const canvas = byId("subgraph-canvas"), frame = canvas.getBoundingClientRect();
            const [x, y] = boxSpot(subgraph.boxes[{number}], canvas.clientWidth, canvas.clientHeight);
            return [frame.x + x, frame.y + y];
        }})()"""
    )
    return x, y


def clicked(browser: Browser, name: str) -> None:
    """Waits until the node's panel is on the screen."""
    browser.until(
        f"byId('view').dataset.node === String(data.graph.number.get({json.dumps(name)}))"
    )


def test_it_opens_on_an_overview(browser, page):
    browser.loaded.clear()
    browser.open(page)
    assert browser.value(TITLE) == "made" and browser.value("document.title") == "made"
    assert browser.value("[...document.querySelectorAll('.prompt .word')].length") == 8
    assert browser.value("view.chips.map((chip) => chip.text)") == ["·x", "y", "↵"]
    assert browser.value("byId('count').textContent").endswith(" links")
    assert browser.value("byId('all').hidden") is False
    assert all(name.startswith("file://") for name in browser.loaded if name != "about:blank")


def test_a_click_on_a_node_shows_what_it_is_and_its_links(browser, page):
    browser.open(page)
    browser.click_at(*place(browser, "1_1_5"))
    clicked(browser, "1_1_5")
    assert browser.value(TITLE) == "mlp_in.1/1" and "clickedId=1_1_5" in browser.value(
        "location.hash"
    )
    told = browser.value("document.querySelector('#view .description').textContent")
    assert told.startswith("Unreliable description.") and "numbers" in told
    assert browser.value("document.querySelectorAll('#view .examples details').length") > 3
    assert "token 5" in browser.value("document.querySelector('#view .site').textContent")
    way = browser.value("document.querySelector('#view .own').href")
    assert way.endswith("/features/index.html#mlp_in.1/1")
    links = browser.value("linksOf(data.graph.into, state.clicked).length")
    shown = browser.value("document.querySelector('#view .edge-table h2 small').textContent")
    assert links and shown.startswith(str(links))


def test_links_are_sorted_and_lead_on(browser, page):
    browser.open(page, "#clickedId=3_0_7")
    clicked(browser, "3_0_7")
    weights = (
        "[...document.querySelectorAll('#view .edges li > .value')].map((v) => "
        "Number(v.textContent.split(' ')[0].replace('−', '-')))"
    )
    sizes = [abs(weight) for weight in browser.value(weights)]
    assert len(sizes) == 8 and sizes == sorted(sizes, reverse=True)
    browser.click("#view [data-sort=weight]")
    values = browser.value(weights)
    assert values == sorted(values, reverse=True) and values != sizes
    first = browser.value(
        "data.graph.name[document.querySelector('#view .edges .node').dataset.node]"
    )
    browser.click("#view .edges .node")
    clicked(browser, first)
    browser.press("Escape")
    browser.until("byId('view').dataset.node === ''")


def test_errors_tokens_and_outputs_say_what_they_are(browser, page):
    browser.open(page)
    for name, title, says in [
        ("0_1001_7", "error 1", "did not reconstruct"),
        ("E_3_3", "(self", "embedding of a token"),
        ("3_0_7", "·x", "may write next"),
    ]:
        browser.click_at(*place(browser, name))
        clicked(browser, name)
        assert browser.value(TITLE) == title
        assert says in browser.value("byId('view').textContent")


def test_pointing_at_a_node_says_its_label_and_its_link(browser, page):
    browser.open(page, "#clickedId=3_0_7")
    x, y = place(browser, "1_1_7")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    tip = browser.value("byId('tip').textContent").split("\n")
    assert tip[0] == "numbers" and "mlp_in.1/1" in tip[1] and tip[2].endswith(" to ·x")


def test_keys_move_pin_and_leave(browser, page):
    browser.open(page)
    browser.press("ArrowDown")
    clicked(browser, "3_0_7")  # the likeliest output
    browser.press("ArrowDown")
    row = "data.graph.row[state.clicked]"
    assert browser.value(row) == 2
    before = browser.value("state.clicked")
    browser.press("ArrowLeft")
    assert browser.value(row) == 2 and browser.value("state.clicked") != before
    browser.press("p")
    assert len(browser.value(PINNED)) == 1
    browser.press("p")
    assert browser.value(PINNED) == []
    browser.press("Escape")
    assert browser.value("state.clicked") is None
    browser.press("?")
    assert browser.value("byId('dialog').open") and "pin the node" in browser.value(
        "byId('dialog').textContent"
    )
    browser.click("#dialog .close")
    assert not browser.value("byId('dialog').open")


def test_the_address_holds_the_view(browser, page):
    browser.open(page)
    for name in ("1_1_5", "1_1_7", "E_3_3"):
        browser.click_at(*place(browser, name), shift=True)
    assert browser.value(PINNED) == ["1_1_5", "1_1_7", "E_3_3"]
    browser.click_at(*place(browser, "1_1_5"))
    browser.press("g")
    browser.type(" mine")
    browser.press("Enter")
    browser.until("state.groups.length === 1")
    address = browser.value("location.hash")
    wanted = browser.value("JSON.stringify([state, address()])")
    browser.open(page, address)
    assert browser.value("JSON.stringify([state, address()])") == wanted
    assert browser.value("supernodes()") == [[browser.value("state.groups[0].name"), "1_1_5"]]


def test_neuronpedias_parameters_open(browser, page):
    cantor = (1 + 1) * (1 + 1 + 1) // 2 + 1  # layer 1, feature 1
    asked = f'#pinnedIds=1_1_5,nobody&clerps=[["1_{cantor}_5","mine"]]&supernodes=[["s","1_1_5"]]'
    browser.open(page, asked + "&pruningThreshold=x&clickedId=__proto__")
    assert browser.value(PINNED) == ["1_1_5"] and browser.value("state.clicked") is None
    assert browser.value("labelOf(state.pinned[0])") == "mine"
    assert browser.value("supernodes()") == [["s", "1_1_5"]]


def test_what_the_file_pins_is_pinned_at_first(browser, tmp_path):
    graph = made_graph()
    names = [node["node_id"] for node in graph["nodes"][8:11]]
    graph["qParams"] |= {"pinnedIds": names, "supernodes": [["both", *names[:2]]]}
    graph["qParams"]["sg_pos"] = "100 200 700 800"
    browser.open(write_page(tmp_path, graph))
    assert sorted(browser.value(PINNED)) == sorted(names)
    assert browser.value("boxKeys().map((key) => state.places.get(key))") == [
        [100, 200],
        [700, 800],
    ]


def test_a_box_dropped_on_another_makes_a_group(browser, page):
    browser.open(page, "#pinnedIds=1_1_3,1_1_5,3_0_7")
    browser.drag(box_place(browser, 0), box_place(browser, 1))
    assert browser.value("supernodes().map((one) => one.slice(1).sort())") == [["1_1_3", "1_1_5"]]
    assert browser.value("state.groups[0].name") == "numbers"
    assert browser.value("subgraph.boxes.length") == 2 or browser.value("boxes().length") == 2
    into = browser.value(
        "boxLinks(boxes()).find(({ to }) => boxes()[to].nodes.length === 1).weight"
    )
    sums = "['1_1_3', '1_1_5'].map((name) => data.graph.number.get(name))"
    apart = browser.value(
        f"{sums}.flatMap((n) => [...linksOf(data.graph.from, n)])"
        ".filter((link) => data.graph.name[data.graph.target[link]] === '3_0_7')"
        ".reduce((sum, link) => sum + data.graph.weight[link], 0)"
    )
    assert into == pytest.approx(apart)
    start = box_place(browser, 0)
    browser.drag(start, (start[0] + 60, start[1] + 10))
    assert "sg_pos=" in browser.value("location.hash")


def test_a_group_has_a_panel_of_its_own(browser, page):
    browser.open(
        page, "#pinnedIds=1_1_3,1_1_5,3_0_7&supernodes=" + quote('[["s","1_1_3","1_1_5"]]')
    )
    browser.click_at(*box_place(browser, 1))
    browser.until(f"{TITLE} === 's'")
    given = "[...document.querySelectorAll('#view section:last-child .value')].map((v) => v.textContent)"
    assert browser.value(given) == ["+1.4"]  # 0.7 of each member
    browser.click("#view [data-action=ungroup]")
    browser.until(f"{TITLE} === 'made'")
    assert browser.value("supernodes()") == [] and len(browser.value(PINNED)) == 3


def test_groups_are_suggested_for_features_that_are_alike(browser, page):
    browser.open(page)
    browser.click("#suggest")
    browser.until("document.querySelectorAll('.suggestion').length > 0")
    browser.click("#dialog .primary")
    browser.until("state.groups.length > 0")
    groups = browser.value("state.groups.map(({ nodes }) => nodes.map((n) => nameOf(n)))")
    same = next(names for names in groups if "mlp_in.1/1" in names)
    assert len(same) >= 3


def test_clusters_are_joined_by_their_mean_likeness(browser, page):
    browser.open(page)
    alike = [[1, 0.9, 0.1, 0.6], [0.9, 1, 0.1, 0.2], [0.1, 0.1, 1, 0], [0.6, 0.2, 0, 1]]
    found = browser.value(f"clustered({alike}).map((members) => members.sort())")
    assert found == [[0, 1]]  # (0.6 + 0.2) / 2 is too little for the last
    alike[1][3] = alike[3][1] = 0.4
    assert browser.value(f"clustered({alike}).map((members) => members.sort())") == [[0, 1, 3]]


def without(*kinds: str) -> dict[str, Any]:
    """A graph without these kinds of nodes; without "link" it has no links."""
    graph = made_graph()
    graph["nodes"] = [node for node in graph["nodes"] if node["feature_type"] not in kinds]
    names = {node["node_id"] for node in graph["nodes"]} if "link" not in kinds else set()
    graph["links"] = [one for one in graph["links"] if {one["source"], one["target"]} <= names]
    return graph


@pytest.mark.parametrize(
    "kinds",
    [
        ("cross layer transcoder", "mlp reconstruction error"),
        ("logit",),
        ("embedding",),
        ("link",),
        ("cross layer transcoder", "mlp reconstruction error", "logit", "embedding"),
    ],
)
def test_a_graph_may_lack_any_kind_of_node(browser, tmp_path, kinds):
    browser.open(write_page(tmp_path, without(*kinds)))
    for key in ("ArrowDown", "ArrowUp", "p", "s"):
        browser.press(key)
    browser.click("#dialog .close")
    assert "<svg" in browser.value("svgOf('graph', 600, 400)")
    assert browser.value("Number.isFinite(graphScores().replacement)")


def test_the_search_finds_and_fades(browser, page):
    browser.open(page)
    browser.press("/")
    browser.type("NUMBERS")
    assert browser.value("view.found.size") >= 3
    assert "numbers" in browser.value("byId('found').textContent")
    browser.press("Enter")
    browser.until("state.clicked !== null")
    assert browser.value("nameOf(state.clicked)") == "mlp_in.1/1"
    browser.press("Escape")
    assert browser.value("view.found") is None


def test_exports_are_whole_pictures_and_lists(browser, page, tmp_path):
    supernodes = quote('[["a & b <c>","1_1_3","1_1_5"]]')
    browser.open(page, f"#pinnedIds=1_1_3,1_1_5&supernodes={supernodes}")
    for which in ("graph", "subgraph"):
        drawing = ElementTree.fromstring(browser.value(f"svgOf('{which}', 900, 500)"))
        assert len(list(drawing.iter("{http://www.w3.org/2000/svg}text"))) > 1
        assert drawing.get("viewBox") == "0 0 900 500"
    texts = [one.text for one in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert "a & b <c>" in texts
    assert browser.value("canvasOf('graph', 300, 200).toDataURL()").startswith("data:image/png")
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.value("EXPORTS.pinned()")
    browser.until("true")
    file = tmp_path / "made-pinned.json"
    for _ in range(500):
        browser.value("new Promise((done) => setTimeout(done, 10))")
        if file.is_file():
            break
    saved = json.loads(file.read_text())
    assert saved["qParams"]["supernodes"] == [["a & b <c>", "1_1_3", "1_1_5"]]
    assert [one["node_id"] for one in saved["nodes"]] == ["1_1_3", "1_1_5"]
    assert saved["nodes"][0]["supernode"] == "a & b <c>"


def test_text_is_never_markup(browser, tmp_path):
    graph = made_graph(tokens=["<bos>", NASTY, "b"], features=4)
    graph["metadata"]["slug"] = graph["metadata"]["scan"] = NASTY
    for node in graph["nodes"]:
        node["clerp"] = NASTY
    graph["qParams"]["supernodes"] = [[NASTY, *(node["node_id"] for node in graph["nodes"][3:6])]]
    browser.open(write_page(tmp_path / "nasty", graph))
    for name in [None, *(node["node_id"] for node in graph["nodes"])]:
        browser.value(f"click({json.dumps(name)} && data.graph.number.get({json.dumps(name)}))")
        browser.press("s")
        browser.click("#dialog .close")
    assert NASTY in browser.value("byId('view').textContent")
    browser.open(write_index(tmp_path))
    assert NASTY in browser.value("byId('graphs').textContent")
    assert browser.value("document.querySelectorAll('img, b, body script').length") == 0
    assert "hacked" not in browser.value("document.title")


@pytest.mark.parametrize("width", [360, 700, 1000, 1400])
@pytest.mark.parametrize("address", ["", "#clickedId=1_1_5&pinnedIds=1_1_3,1_1_5"])
def test_it_fits_any_width(browser, page, width, address):
    browser.look(width, 800)
    browser.open(page, address)
    for tab in ("graph", "subgraph", "view"):
        browser.value(f"showTab('{tab}')")
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("byId('view').scrollWidth") <= width
    panes = "[...document.querySelectorAll('#graph, #subgraph, #view')]"
    seen = f"{panes}.filter((pane) => pane.offsetWidth).length"
    assert browser.value(seen) == (1 if width < 800 else 3)


def test_it_is_drawn_in_the_systems_colours(browser, page):
    pixel = "getContext('2d').getImageData(view.chips[0].x + 3, 20, 1, 1).data[0]"
    for dark, paper, red in ((False, "#ffffff", 255), (True, "#15171a", 21)):
        browser.look(1400, 900, dark=dark)
        browser.open(page)
        assert browser.value("colours().paper") == paper
        browser.until(f"byId('graph-canvas').{pixel} === {red}")


def test_zoom_comes_closer_and_returns(browser, page):
    browser.open(page)
    before = place(browser, "1_1_5")
    browser.press("+")
    after = place(browser, "1_1_5")
    assert after != before and browser.value("view.zoom.k") == 1.5
    browser.click_at(*after)
    clicked(browser, "1_1_5")
    browser.press("0")
    assert place(browser, "1_1_5") == before


def test_thousands_of_nodes_are_drawn_in_part(browser, tmp_path):
    tokens = [f" t{i}" for i in range(40)]
    graph = made_graph(layers=12, features=2000, links=100_000, tokens=tokens, n_indices=20)
    assert (len(graph["nodes"]) > 2000, len(graph["links"])) == (True, 100_000)
    browser.open(write_page(tmp_path, graph))
    assert browser.value("view.strongest.length <= BACKDROP")
    assert browser.value("svgOf('graph', 900, 500).split('<path').length - 1 <= BACKDROP")
    browser.click_at(*place(browser, graph["nodes"][900]["node_id"]))
    browser.until("state.clicked !== null")
    assert browser.value("document.querySelectorAll('#view *').length") < 1500


def test_it_says_how_many_links_of_a_node_are_drawn(browser, tmp_path):
    graph = made_graph(layers=1, features=690, links=10_000, n_indices=100)
    output = graph["nodes"][-3]["node_id"]
    browser.open(write_page(tmp_path, graph), f"#clickedId={output}")
    clicked(browser, output)
    links = sum(one["target"] == output for one in graph["links"])
    told = browser.value("document.querySelector('#view .about + .key + .about').textContent")
    assert told == f"The 500 strongest of its {links} links are drawn."
    assert browser.value("svgOf('graph', 900, 500).split('<path').length - 1") == 500


def test_the_list_leads_to_the_graphs(browser, page):
    browser.open(page.parent.parent / "index.html")
    assert browser.value("byId('count').textContent") == "1 of 1"
    browser.click("article a")
    browser.until("document.querySelector('#graph-canvas') !== null")


def test_a_lost_file_is_a_sentence(browser, tmp_path):
    page = write_page(tmp_path, made_graph())
    (tmp_path / "pages" / "graph.js").unlink()
    browser.call("Page.navigate", url=page.as_uri())
    browser.until("document.querySelector('#view .warning') !== null")
    assert "pages/graph.js cannot be read" in browser.value("byId('view').textContent")
    browser.errors.clear()

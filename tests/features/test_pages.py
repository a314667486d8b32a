"""The site's files say what the store says, of every feature, whatever its text holds."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from dictlearn import config
from dictlearn.evals.record import write_record
from dictlearn.evals.report import write_report
from dictlearn.features.pages import write, write_pages
from dictlearn.pages import record
from dictlearn.pages.record import Pieces, page_of
from dictlearn.store.explanations import Explanation, Failure, add_explanations
from dictlearn.store.features import FeatureStore
from dictlearn.store.records import Direction, Feature, Transform
from dictlearn.store.text import token_text
from dictlearn.verbs import pages as verb
from tests.store.made import RULES, made_store, pico_tokenizer

SHARED, SITE = (
    files(package).joinpath("site") for package in ("dictlearn.pages", "dictlearn.features.pages")
)
NASTY = "</script><img src=x onerror=alert(1)> \"'\\ \u2028 __proto__ ü"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("run")
    return made_store(folder, ("mlp_in.0", "mlp_in.1"), ("mlp_out.0", "mlp_out.1"))


def described(index: int, text: str, score: float = 0.9, **changed: Any) -> Explanation:
    options: dict[str, Any] = {
        "scores": {"balanced_accuracy": score, "recall": 0.8},
        "baselines": {"shuffled": 0.5},
        "n_examples": 40,
        "reliable": score >= 0.7,
        "failing": (Failure(f"a <<{text}>>", True, False),),
    }
    return Explanation(0, index, text, "lexical", **{**options, **changed})


def written(store: FeatureStore, folder: Path, *explanations: Explanation) -> Path:
    by_feature = {(one.source, one.feature): one for one in explanations}
    return write_pages(store, by_feature, pico_tokenizer(), folder)


def arguments(path: Path) -> list[Any]:
    """What a data file hands to its function."""
    match = re.fullmatch(r"dictlearn\.\w+\((.*)\);\n", path.read_text("utf-8"), re.DOTALL)
    assert match
    return json.loads(f"[{match[1]}]")


def columns(page: Path) -> dict[str, list[Any]]:
    """The index, its files put together."""
    whole: dict[str, list[Any]] = {}
    for path in sorted(page.parent.glob("pages/index-*.js")):
        first, part = arguments(path)
        assert first == len(whole.get("text", []))
        for name, values in part.items():
            whole.setdefault(name, []).extend(values)
    return whole


def records(page: Path) -> list[dict[str, Any]]:
    chunks = [arguments(path) for path in sorted(page.parent.glob("pages/features-*.js"))]
    assert [number for number, _ in chunks] == list(range(len(chunks)))
    return [one for _, chunk in chunks for one in chunk]


def info(page: Path) -> dict[str, Any]:
    return arguments(page.parent / "pages" / "info.js")[0]


def text_of(pieces: list[Any]) -> str:
    return "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)


def test_every_feature_is_found_and_has_its_page(store, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "INDEX_ROWS", 5)
    monkeypatch.setattr(write, "CHUNK_BYTES", 6000)
    page = written(store, tmp_path)
    index, pages, about = columns(page), records(page), info(page)
    assert {len(column) for column in index.values()} == {len(store)} == {2 * len(RULES)}
    assert [one["row"] for one in pages] == list(range(len(store)))
    chunks = sorted(page.parent.glob("pages/features-*.js"))
    assert len(chunks) > 2 and about["index_files"] == 3
    assert about["chunk_rows"] == [arguments(path)[1][0]["row"] for path in chunks]
    for row, feature in enumerate(store):
        assert index["density"][row] == pytest.approx(feature.density, rel=0.01)
        assert (index["density"][row] == 0) == feature.dead == pages[row]["dead"]
        assert (index["tokens"][row] == "") == feature.dead
    assert index["tokens"][0] == "self"


def test_examples_are_the_text_that_was_read(store, tmp_path):
    tokenizer = pico_tokenizer()
    for feature, page in zip(store, records(written(store, tmp_path)), strict=True):
        shown = [*page["top"], *(one for drawn in page["intervals"] for one in drawn)]
        assert len(shown) == len(feature.examples)
        for example, (document, window, position, peak, pieces) in zip(
            feature.examples, shown, strict=True
        ):
            texts = token_text(tokenizer, example.tokens)
            assert text_of(pieces) == "".join(texts)
            assert (document, window) == (example.document, example.window)
            assert position == example.start + example.peak
            assert pieces[peak][0] == texts[example.peak]
            assert text_of(pieces[:peak]) == "".join(texts[: example.peak])
            values = [piece[1] for piece in pieces if not isinstance(piece, str)]
            assert values == pytest.approx([v for v in example.activations if v > 0], rel=0.01)


def test_a_feature_of_a_clt_writes_to_each_target(store, tmp_path):
    pages = records(written(store, tmp_path))
    assert [site for site, _, _ in pages[0]["writes"]] == ["mlp_out.0", "mlp_out.1"]
    assert [site for site, _, _ in pages[len(RULES)]["writes"]] == ["mlp_out.1"]
    _, promoted, suppressed = pages[0]["writes"][0]
    assert promoted[0][1] > 0 > suppressed[0][1]


def test_a_feature_shows_what_it_writes_to_each_target(store, tmp_path):
    page = written(store, tmp_path)
    first, last = records(page)[0], records(page)[len(RULES)]
    feature = store.feature(0, 0)
    assert feature.norms == {"mlp_out.0": 1.0, "mlp_out.1": 0.5}
    assert first["norms"] == [["mlp_out.0", feature.mean], ["mlp_out.1", 0.5 * feature.mean]]
    assert [site for site, _ in last["norms"]] == ["mlp_out.1"]
    index = columns(page)
    live = index["density"][0] > 0
    assert live and (index["target"][0], index["part"][0], index["centre"][0]) == (0, 0.667, 0.333)
    dead = index["density"].index(0)
    assert index["target"][dead] is None and index["part"][dead] is None
    assert info(page)["targets"] == ["mlp_out.0", "mlp_out.1"]


def test_one_target_needs_no_columns(tmp_path):
    page = written(made_store(tmp_path / "run"), tmp_path)
    assert "part" not in columns(page)
    assert len(records(page)[0]["norms"]) == 1


def test_the_summary_adds_up_and_shows_the_best_described(store, tmp_path):
    texts = [described(0, "good"), described(1, "doubtful", 0.55), described(2, NASTY, 0.95)]
    found = json.loads((written(store, tmp_path, *texts).parent / "summary.json").read_text())
    dead = sum(feature.dead for feature in store)
    assert found["counts"] == {
        "described": 2, "unreliable": 1, "undescribed": len(store) - dead - 3, "dead": dead,
    }  # fmt: skip
    assert sum(found["counts"].values()) == found["features"] == len(store)
    first, second, third = found["examples"][:3]
    assert (first["name"], first["address"]) == ("mlp_in.0/2", "#mlp_in.0/2")
    assert first["description"] == NASTY and second["description"] == "good"
    assert not third["reliable"] and third["density"] < 0.05
    names = [one["name"] for one in found["examples"]]
    assert len(names) == len(set(names)) and all(one["contexts"] for one in found["examples"])
    before, token, after, activation = second["contexts"][0]
    top = store.feature(0, 0).top[0]
    assert token == token_text(pico_tokenizer(), [top.tokens[top.peak]])[0]
    assert activation == pytest.approx(top.activation, rel=0.01)
    assert before + token + after in "".join(token_text(pico_tokenizer(), top.tokens))


def test_links_lead_to_features(store, tmp_path):
    for page in records(written(store, tmp_path)):
        linked = [row for row, _ in (*page["neighbours"], *page["cofiring"])]
        assert linked and all(0 <= row < len(store) and row != page["row"] for row in linked)


def test_any_text_comes_through(store, tmp_path):
    page = written(store, tmp_path, described(0, NASTY), described(1, "half \ud800 a pair"))
    assert columns(page)["text"][:2] == [NASTY, "half ? a pair"]
    explanation = records(page)[0]["explanation"]
    assert explanation["text"] == NASTY
    assert explanation["failing"][0]["text"] == f"a <<{NASTY}>>"


def test_a_description_stands_beside_its_scores(store, tmp_path):
    nothing = described(2, "", 0.5)
    page = written(store, tmp_path, described(0, "good"), described(1, "bad", 0.55), nothing)
    index, pages = columns(page), records(page)
    assert index["status"][:4] == [write.RELIABLE, write.UNRELIABLE, write.NONE, write.NONE]
    assert index["score"][:4] == [0.9, 0.55, None, None]
    bad = pages[1]["explanation"]
    assert bad["reliable"] is False and bad["n_failing"] == 1
    assert bad["scores"][0] == ["balanced_accuracy", 0.55]
    assert bad["baselines"] == [["shuffled", 0.5]]
    assert pages[3]["explanation"] is None
    assert info(page)["score"] == "balanced accuracy"


def test_many_failures_are_counted_and_some_shown(store, tmp_path):
    failing = (Failure("x" * 2000, True, False),) * 50
    page = written(store, tmp_path, described(0, "bad", 0.5, failing=failing))
    explanation = records(page)[0]["explanation"]
    assert explanation["n_failing"] == 50
    assert len(explanation["failing"]) == record.SHOWN_FAILURES
    assert len(explanation["failing"][0]["text"]) == record.LONGEST_FAILURE


def test_a_transform_shows_its_directions():
    direction = Direction(2.0, ((5, 0.5),), ((6, -0.5),), ((7, 0.25),), ())
    feature = Feature(
        source=0, index=3, density=0.0, count=0, maximum=0.0, mean=0.0, quantiles=(), histogram=(),
        dead=True, top=(), by_interval=(), norms={}, promoted={}, suppressed={}, neighbours=(),
        cofiring=(),
        transform=Transform(4, (direction,)),
    )  # fmt: skip
    page = page_of(feature, None, Pieces(None), 10)
    row = [2.0, [["<5>", 0.5]], [["<6>", -0.5]], [["<7>", 0.25]], []]
    assert page["transform"] == {"rank": 4, "directions": [row]}


def test_what_was_there_stays_when_writing_fails(store, tmp_path):
    before = written(store, tmp_path, described(0, "before"))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pages(store, {}, None, tmp_path, progress=stop)
    assert columns(before)["text"][0] == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.html",
        "pages",
        "summary.json",
    ]
    (tmp_path / "pages.tmp-999999999").mkdir()  # as a process leaves it that was killed
    after = written(store, tmp_path, described(0, "after"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.html",
        "pages",
        "summary.json",
    ]
    assert columns(after)["text"][0] == "after"


def test_the_page_loads_what_is_beside_it_and_nothing_else(store, tmp_path):
    page = written(store, tmp_path)
    html = page.read_text("utf-8")
    loaded = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert len(loaded) > 5 and all((tmp_path / path).is_file() for path in loaded)
    ours = {path.name for site in (SHARED, SITE) for path in site.iterdir()}
    assert {Path(path).name for path in loaded} == ours - {"index.html"}
    assert "default-src 'none'" in html


def test_nothing_is_ever_parsed_as_markup_or_fetched():
    for path in (*SHARED.iterdir(), *SITE.iterdir()):
        code = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        odd = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc"
            r"|fetch\(|XMLHttpRequest|https?://|\bimport\b",
            code,
        )
        assert not odd, path


def test_the_colours_are_the_reports():
    def palettes(css: str) -> list[str]:
        return re.findall(r"--\w+: #\w+;", css)

    report = files("dictlearn.evals.report").joinpath("style.css").read_text("utf-8")
    ours = SHARED.joinpath("base.css").read_text("utf-8")
    assert palettes(ours) == palettes(report) != []


def test_the_verb_writes_the_site(store):
    add_explanations(store.folder, [described(0, "from the file")])
    cfg = config.compose("pages", [f"run={store.folder.parent}"])
    assert verb.main(cfg) == 0
    page = store.folder / "index.html"
    assert columns(page)["text"][0] == "from the file"
    assert info(page)["title"] == store.folder.parent.name
    assert info(page)["report"] is None  # there is none


def test_the_report_and_the_pages_know_each_other(tmp_path):
    store = made_store(tmp_path / "run")
    add_explanations(store.folder, [described(0, NASTY), described(1, "bad", 0.5)])
    dictionary = {
        "kind": "sae", "sources": ["resid_post.1"], "targets": ["resid_post.1"], "n_features": 6,
        "code_sources": 1,
    }  # fmt: skip
    text, model = {"tokens": 9, "sha256": ""}, {"name": "pico", "revision": None}
    rest = {"series": {}, "baselines": {}, "figures": {}, "versions": {}, "date": "now"}
    write_record(tmp_path / "run", {"dictionary": dictionary, "text": text, "model": model} | rest)
    cfg = config.compose("pages", [f"run={store.folder.parent}"])
    for _ in range(2):  # the report is written for the first time, then linked to
        assert verb.main(cfg) == 0
    assert info(store.folder / "index.html")["report"] == "../report.html"
    html = (tmp_path / "run/report.html").read_text()
    assert NASTY not in html and "&lt;img src=x" in html and "unreliable: bad" not in html
    links = re.findall(r'href="(features/[^"]+)"', html)
    assert links[:2] == ["features/index.html", "features/index.html#resid_post.1/0"]
    assert re.findall(r"<dd>(\d+)</dd>", html) == ["1", "1", "2", "2"]
    assert html.count("<article>") == len(links) - 1 and "<mark>self</mark>" in html.replace(
        " ", ""
    )
    elsewhere = config.compose("pages", [f"run={tmp_path / 'run'}", f"output={tmp_path / 'site'}"])
    assert verb.main(elsewhere) == 0
    assert info(tmp_path / "site/index.html")["report"] is None
    (store.folder / "summary.json").write_text('{"features": "many"}')
    with pytest.raises(ValueError, match=r"summary\.json: not what `dictlearn pages` writes"):
        write_report(tmp_path / "run")


def test_a_run_without_features_is_told_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="dictlearn features run="):
        verb.main(config.compose("pages", [f"run={tmp_path}"]))

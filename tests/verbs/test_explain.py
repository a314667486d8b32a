"""`dictlearn explain`: from a saved dictionary to scored descriptions, on disk and in the report."""

from __future__ import annotations

import itertools
import json
import re
import threading
from dataclasses import replace
from functools import partial

import pytest

from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.ckpt.signature import signed
from dictlearn.config import compose
from dictlearn.dicts.sae import sae
from dictlearn.evals.report.descriptions import descriptions
from dictlearn.explain.local import Local
from dictlearn.explain.wording import quoted
from dictlearn.lm.load import read_info
from dictlearn.sparsity.topk import TopK
from dictlearn.store.explanations import read_explanations
from dictlearn.store.features import FeatureStore
from dictlearn.store.text import token_text
from dictlearn.verbs import explain, features
from tests.explain.server import Reply, serving
from tests.features.harvested import dictionary_of
from tests.store.made import pico_tokenizer

SMALL = ["tokens=2048", "windows=4", "baseline_features=5", "at_least=4"]


@pytest.fixture(autouse=True)
def one_text(tmp_path, monkeypatch):
    """Text for pico, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [{"text": f"def f{i}(x):\n    return 'a {i}' + x[{i}:]\n" * 6} for i in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    save(tmp_path / "run/dictionary")


def save(folder, n_features=64):
    info = replace(read_info("pico"))
    dictionary = sae(info, partial(TopK, k=4), "resid_post.1", n_features=n_features, k=4).eval()
    data = {
        "_target_": "dictlearn.sources.tokens.text_windows",
        "_partial_": True,
        "paths": ["text.jsonl"],
        "context": 64,
        "held_out": 0.5,
    }
    save_dictionary(dictionary, folder, signed({"model": "pico", "revision": None, "data": data}))


def run(*overrides):
    return explain.main(compose("explain", ["run=run", *SMALL, *overrides]))


def test_one_file_of_text_is_halved_by_windows(tmp_path, capsys):
    """It has no documents to keep for scoring."""
    (tmp_path / "one.txt").write_text(
        "".join(f"def f{i}(x):\n    return {i}\n" for i in range(200))
    )
    named = ["data=text", "data.paths=one.txt", "data.context=64", "output=out", "limit=8"]
    assert run(*named, "explainer.terms=1") == 0
    summary = json.loads((tmp_path / "out/features/explanations.json").read_text())
    assert min(summary["tokens"].values()) > 200
    assert "too few documents to keep some for scoring" in capsys.readouterr().err


def test_features_get_descriptions_scores_and_baselines(tmp_path, capsys):
    assert run("limit=24", "explainer.terms=2") == 0
    found = read_explanations(tmp_path / "run/features")
    summary = json.loads((tmp_path / "run/features/explanations.json").read_text())
    assert len(found) == summary["explained"] > 10
    assert summary["live"] == summary["explained"] + summary["left_out"]
    assert summary["tokens"]["explain"] and summary["tokens"]["score"]
    assert {"shuffled", "random_dictionary"} == summary["baselines"].keys()
    assert all(e.baselines.keys() == summary["baselines"].keys() for e in found.values())
    good = [e for e in found.values() if e.reliable]
    assert good and all(e.scores["balanced_accuracy"] >= 0.8 and e.text for e in good)
    assert summary["scores"]["balanced_accuracy"]["mean"] > summary["baselines"]["shuffled"]["mean"]
    wrong = [e for e in found.values() if e.scores["recall"] < 1 or e.scores["precision"] < 1]
    assert wrong and all("<<" in failure.text for e in wrong for failure in e.failing)
    assert all(failure.fired != failure.predicted for e in wrong for failure in e.failing)
    output = capsys.readouterr()
    assert "shuffled" in output.out and "explanations.jsonl" in output.err


def test_the_report_shows_scores_beside_baselines(tmp_path):
    run("limit=4")
    html = descriptions(tmp_path / "run")
    assert "shuffled" in html and "random dictionary" in html and "never" in html
    assert descriptions(tmp_path) == ""


def test_the_same_run_says_the_same(tmp_path):
    for output in ("a", "b"):
        run(f"output={output}", "limit=6", "baseline_features=1")
    first, second = ((tmp_path / o / "features/explanations.jsonl").read_text() for o in "ab")
    assert first == second
    assert not (tmp_path / "run/features").exists()


def test_some_features_only(tmp_path):
    run("features=[3,0/5]", "at_least=1")
    assert set(read_explanations(tmp_path / "run/features")) <= {(0, 3), (0, 5)}
    run("limit=7", "explainer.terms=1")
    summary = json.loads((tmp_path / "run/features/explanations.json").read_text())
    assert summary["features"] == summary["live"] == 7


@pytest.mark.parametrize("kind", ["skip transcoder", "clt", "crosscoder", "molt"])
def test_a_dictionary_of_any_kind_is_described(tmp_path, kind):
    saved = json.loads((tmp_path / "run/dictionary/dictionary.json").read_text())
    dictionary = dictionary_of(kind)
    save_dictionary(dictionary, tmp_path / "other/dictionary", saved["training"])
    few = ["limit=8", "tokens=512", "at_least=2", "baseline_features=2", "explainer.terms=1"]
    run("run=other", *few)
    summary = json.loads((tmp_path / "other/features/explanations.json").read_text())
    found = read_explanations(tmp_path / "other/features")
    assert len(found) == summary["explained"] > 0 and summary["baselines"]["random_dictionary"]["n"]
    assert all(s < dictionary.code_sources and i < dictionary.n_features for s, i in found)


LLM = ["scorer=detection", "scorer.detection.examples=4", "limit=2", "baseline_features=1"]


def test_a_small_model_behind_a_server_describes_features(tmp_path, capsys):
    """pico writes no lists of numbers: every score is missing, said so, and none is made up."""
    pico = Local("pico", "cpu")
    lock = threading.Lock()

    def answer(body):
        end = [{**message, "content": message["content"][-100:]} for message in body["messages"]]
        with lock:
            return pico._complete(end, 4).text

    with serving(answer, ["429"]) as server:
        overrides = [*LLM, "explainer=openai", f"explainer.base_url={server.url}"]
        overrides += ["explainer.model=pico", "explainer.retries=5", "explainer.concurrency=2"]
        assert run(*overrides, "dry_run=true") == 0
        assert not server.bodies and not (tmp_path / "run/features").exists()
        assert run(*overrides) == 0
        asked = len(server.bodies)
        assert run(*overrides) == 0
        assert len(server.bodies) == asked  # the cache answers
    summary = json.loads((tmp_path / "run/features/explanations.json").read_text())
    found = read_explanations(tmp_path / "run/features")
    assert len(found) == summary["explained"] and {e.model for e in found.values()} == {"pico"}
    unscored = [e for e in found.values() if "balanced_accuracy" not in e.scores]
    assert len(unscored) == summary["unscored"] and not any(e.reliable for e in unscored)
    assert summary["asked"]["malformed"] >= len([e for e in unscored if e.text])
    assert "about" in capsys.readouterr().err


def test_a_model_on_this_machine_describes_features(tmp_path, monkeypatch):
    """pico's answers are cut and hold no description, which is said; its words are put in its mouth."""
    local = ["explainer=local", "explainer.path=pico", "explainer.max_tokens=4", "limit=1"]
    with pytest.raises(OSError, match="no answer holds a description .* 2 cut at their limit"):
        run(*LLM, *local)
    assert not (tmp_path / "run/features/explanations.json").exists()
    real = Local._complete

    def complete(self, messages, max_tokens):
        return replace(real(self, messages, max_tokens), text="DESCRIPTION: x")

    monkeypatch.setattr(Local, "_complete", complete)
    run(*LLM, *local, "explainer.max_tokens=5")
    (one,) = read_explanations(tmp_path / "run/features").values()
    assert one.explainer == "local" and one.model == "pico" and one.text == "x"
    assert not one.reliable


def test_what_the_store_knows_reaches_the_prompt_and_the_page(tmp_path):
    said = "any line of Python"
    small = ["tokens=2048", "batch_windows=4", "promoted=3", "pages=false"]
    assert features.main(compose("features", ["run=run", *small])) == 0
    with serving(lambda body: f"DESCRIPTION: {said}") as server:
        run(*LLM, "explainer=openai", f"explainer.base_url={server.url}", "explainer.model=m")
    store = FeatureStore(tmp_path / "run")
    pages = [path.read_text() for path in (store.folder / "pages").glob("features-*.js")]
    asked = [body["messages"][-1]["content"] for body in server.bodies]
    found = read_explanations(store.folder)
    assert found and sum(page.count(said) for page in pages) == len(found)
    for source, index in found:
        known = store.feature(source, index)
        assert known.cofiring and known.neighbours
        for effect, by_site in (("likelier", known.promoted), ("less likely", known.suppressed)):
            (scores,) = by_site.values()
            tokens = [quoted(t) for t in token_text(pico_tokenizer(), [i for i, _ in scores])]
            line = f"{effect}: resid_post.1: {', '.join(tokens)}"
            assert any(line in prompt for prompt in asked)
    halves = [set[str](), set[str]()]
    for prompt in asked:  # each document has its own number
        halves[prompt.startswith("Description:")] |= set(re.findall(r"def f(\d+)\(", prompt))
    assert halves[0] and halves[1] and not halves[0] & halves[1]


def test_a_dead_server_ends_with_a_sentence_and_replaces_nothing(tmp_path, capsys):
    """Good descriptions and their summary stay; with part of them answered, only those change."""
    few = ["limit=4", "baseline_features=1"]
    assert run(*few) == 0
    folder = tmp_path / "run/features"
    before = [(folder / name).read_text() for name in ("explanations.jsonl", "explanations.json")]
    model = ["explainer=openai", "explainer.model=m", "explainer.retries=0", "scorer=detection"]
    with serving(lambda _: Reply(b"no", 503)) as server:
        asking = [*few, *model, f"explainer.base_url={server.url}"]
        with pytest.raises(OSError, match=r"explainer: no.* answer.*prompts.*failed.*status 503"):
            run(*asking)
    assert before == [
        (folder / name).read_text() for name in ("explanations.jsonl", "explanations.json")
    ]
    assert {path.name for path in folder.iterdir()} == {"explanations.jsonl", "explanations.json"}
    capsys.readouterr()
    left = read_explanations(folder)
    asked = 0

    def first_alone(body):
        nonlocal asked
        asked += 1
        return "DESCRIPTION: the first" if asked == 1 else Reply(b"no", 400)

    with serving(first_alone) as server:
        asking = [*few, *model, f"explainer.base_url={server.url}", "explainer.concurrency=1"]
        with pytest.raises(OSError, match="5 prompts in a row"):
            run(*asking)
    assert left.items() == read_explanations(folder).items()  # its scores didn't come
    with serving(lambda _: "DESCRIPTION: what no scorer could score") as server:
        assert run(*few, *model, f"explainer.base_url={server.url}") == 0
    assert left.items() == read_explanations(folder).items()
    assert (folder / "explanations.json").read_text() == before[1]
    assert f"{len(left)} features keep the description that they had" in capsys.readouterr().err


def test_what_was_asked_is_said(tmp_path, capsys):
    answers = itertools.cycle(["DESCRIPTION: x", "[0, 1, 0, 1, 0]", "nothing", "[1"])
    with serving(lambda _: next(answers), ["cut"]) as server:
        run(*LLM, "explainer=openai", f"explainer.base_url={server.url}", "explainer.model=m")
    said = capsys.readouterr().err
    counted = re.search(
        r"([\d,]+) prompts: 0 answered from the cache, 0 failed; ([\d,]+) answers malformed, "
        r"1 cut at their limit of tokens; [\d,]+ tokens in, [\d,]+ out",
        said,
    )
    assert counted is not None and int(counted[1]) == len(server.bodies)
    assert int(counted[2]) > 0 and "explainer.max_tokens" in said


def test_a_run_that_ends_early_says_what_it_found(tmp_path, capsys):
    def answer(body):
        if server.at_once and len(server.bodies) > 2:
            return Reply(b"no money", 402)
        return "[0, 1, 0, 1, 0]" if "Description:" in body["messages"][-1]["content"] else "x"

    with serving(answer) as server:
        model = ["explainer=openai", f"explainer.base_url={server.url}", "explainer.model=m"]
        with pytest.raises(ValueError, match="status 402: no money"):
            run(*LLM, *model, "explainer.concurrency=1")
    assert [e.text for e in read_explanations(tmp_path / "run/features").values()] == ["x"]
    assert "1 descriptions were found before that" in capsys.readouterr().err


def test_a_model_must_be_named(tmp_path):
    with pytest.raises(Exception, match="base_url|model"):
        run("explainer=openai")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["features=[64]"], "features=64: want <source>/<index> with a source of resid_post.1"),
        (["features=[a]"], "features=a: want <source>/<index>"),
        (["limit=0"], "limit=0: want a whole number of at least 1"),
        (["threshold=80"], "threshold=80: want a number from 0 to 1"),
        (["explainer.terms=0"], "explainer.terms=0: want a whole number of at least 1"),
    ],
    ids=str,
)
def test_senseless_requests_are_refused(tmp_path, overrides, message):
    with pytest.raises(Exception, match=message):
        run(*overrides)
    assert not (tmp_path / "run/features").exists()

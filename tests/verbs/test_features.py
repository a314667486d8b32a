"""`dictlearn features`: what it reads, where it writes, how it refuses, and that it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.ckpt.signature import signed
from dictlearn.config import compose
from dictlearn.dicts.sae import sae
from dictlearn.lm.load import load_tokenizer, read_info
from dictlearn.sparsity.abstopk import AbsTopK
from dictlearn.sparsity.topk import TopK
from dictlearn.store.features import FeatureStore
from dictlearn.verbs import explain, features, lookup

SMALL = ["tokens=2000", "batch_windows=2", "block=40", "before=4", "after=3"]


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Text for pico, a cache of its own, and an SAE."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [{"text": f"def f{i}(x):\n    return x + {i}\n" * 5} for i in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dictionary = sae(
        read_info("pico"), partial(TopK, k=4), "resid_post.1", n_features=64, k=4
    ).eval()
    data = {"_target_": "dictlearn.sources.tokens.text_windows", "_partial_": True}
    data |= {"paths": ["text.jsonl"], "context": 64, "held_out": 0.3}
    training = signed({"model": "pico", "revision": None, "data": data})
    save_dictionary(dictionary, tmp_path / "runs/a/dictionary", training)
    return tmp_path / "runs/a"


def contents(folder: Path) -> dict[str, bytes]:
    names = (path for path in FeatureStore(folder).path.iterdir() if path.name != "manifest.json")
    return {path.name: path.read_bytes() for path in names}


def test_a_run_gets_its_features(run: Path, capsys: pytest.CaptureFixture[str]):
    assert features.main(compose("features", ["run=runs/a", *SMALL])) == 0
    store = FeatureStore(run)
    assert len(store) == 64 and store.info.data["context"] == 64 and store.info.before == 4
    assert "64 features on" in capsys.readouterr().err
    written = {path.name for path in (run / "features").iterdir()}
    assert written == {"store", "pages", "index.html", "summary.json"}


def test_output_scores_come_with_the_pass_or_after_it(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(ValueError, match="has no features yet; output_scores=true makes both"):
        features.main(compose("features", ["run=runs/a", "output_scores=only"]))
    both = ["run=runs/a", *SMALL, "output_scores=true"]
    assert features.main(compose("features", both)) == 0
    said = capsys.readouterr().err
    assert "Output scores: " in said and "tokens through the model" in said
    scores = run / "features/output_scores.safetensors"
    store, was = contents(run), scores.read_bytes()
    assert '"output_scores":true' in (run / "features/pages/info.js").read_text().replace(" ", "")
    pages = [path.read_text() for path in (run / "features/pages").glob("features-*.js")]
    assert sum(page.count('"output":') for page in pages) == 64
    scores.unlink()
    assert features.main(compose("features", ["run=runs/a", "output_scores=only"])) == 0
    assert contents(run) == store and scores.read_bytes() == was
    known = FeatureStore(run).output_scores
    assert known is not None and bool(known.isfinite().any())


def test_damaged_descriptions_are_refused_before_any_work(run: Path):
    (run / "features").mkdir()
    (run / "features/explanations.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="explanations.jsonl line 1: not an explanation"):
        features.main(compose("features", ["run=runs/a", *SMALL]))
    assert not (run / "features/store").exists()


@pytest.mark.parametrize("site", ["mlp_in.1", "model.layers.1.mlp:input"])
def test_a_target_outside_the_residual_stream_promotes_nothing(run: Path, site: str):
    """It has pages and descriptions like any other; only the table of tokens is left out."""
    dictionary = sae(read_info("pico"), partial(TopK, k=4), site, n_features=64, k=4).eval()
    training = json.loads((run / "dictionary/dictionary.json").read_text())["training"]
    save_dictionary(dictionary, run / "dictionary", training)
    assert features.main(compose("features", ["run=runs/a", *SMALL])) == 0
    found = [FeatureStore(run).feature(0, index) for index in range(64)]
    assert not any(one.promoted or one.suppressed for one in found)
    assert any(one.top for one in found)
    small = ["tokens=1000", "at_least=2", "limit=2", "baseline_features=2"]
    assert explain.main(compose("explain", ["run=runs/a", *small])) == 0


def test_features_that_may_be_negative_are_refused_before_any_text_is_read(run: Path):
    """They have no place in the store; a concept is looked up by their weights all the same."""
    sparsity = partial(AbsTopK, k=4)
    dictionary = sae(read_info("pico"), sparsity, "resid_post.1", n_features=64, k=4).eval()
    training = json.loads((run / "dictionary/dictionary.json").read_text())["training"]
    save_dictionary(dictionary, run / "dictionary", training)
    for verb, name in ((features, "features"), (explain, "explain")):
        with pytest.raises(ValueError, match="its abstopk features may be negative"):
            verb.main(compose(name, ["run=runs/a"]))
    assert {path.name for path in run.rglob("*") if path.is_dir()} <= {"dictionary", "features"}
    assert lookup.main(compose("lookup", ["run=runs/a", "pos=def", "neg=return"])) == 0


def test_processes_share_the_text(run: Path):
    features.main(compose("features", ["run=runs/a", *SMALL]))
    one = contents(run)
    features.main(compose("features", ["run=runs/a", "processes=2", *SMALL]))
    assert contents(run) == one


def test_processes_share_all_of_the_text_that_a_user_names(run: Path):
    text = "".join(f"def f{i}(x):\n    return {i}\n" for i in range(100))
    (run.parents[1] / "one.txt").write_text(text)
    named = ["data=text", "data.paths=one.txt", "data.context=64", "tokens=100000", *SMALL[1:]]
    features.main(compose("features", ["run=runs/a", "processes=2", "pages=false", *named]))
    info = FeatureStore(run).info
    tokenizer = load_tokenizer("pico")
    assert tokenizer is not None and info.documents == 1
    assert info.tokens == len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_killed_pass_goes_on(run: Path):
    """kill -9 after some states were committed; what comes out is that of a pass left alone."""
    overrides = ["run=runs/a", "buffer=1", "batch_windows=1", *SMALL[2:]]
    slow = (
        "import time; from dictlearn.features.reading import Reading as R; read = R._read;"
        "R._read = lambda *a: (time.sleep(0.2), read(*a));"
        "from dictlearn.config import compose; from dictlearn.verbs.features import main;"
        f"main(compose('features', {overrides}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    manifest = run / "features/partial/0-of-1/state/manifest.json"
    while not (manifest.is_file() and json.loads(manifest.read_bytes())["done"] >= 3):
        assert process.poll() is None, "it must not end before it is killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "features/store").exists()
    features.main(compose("features", overrides))
    resumed = contents(run)
    features.main(compose("features", [*overrides, "output=other"]))
    assert contents(Path("other")) == resumed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing to describe; want run="),
        (["run=runs/a", "processes=0"], "processes=0: want a whole number of at least 1"),
        (["run=runs/a", "examples=0"], "examples=0: want a whole number of at least 1"),
        (["run=runs/a", "quantiles=[1.5]"], "quantiles=.* numbers above 0 and below 1"),
    ],
    ids=str,
)
def test_senseless_requests_are_refused(run: Path, overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        features.main(compose("features", overrides))
    assert not (run / "features").exists()


def test_a_dictionary_of_made_up_activations_is_refused(run: Path):
    path = run / "dictionary/dictionary.json"
    description = json.loads(path.read_text())
    description["training"]["model"] = "synthetic"
    path.write_text(json.dumps(description))
    (path.parent / "manifest.json").unlink()
    with pytest.raises(ValueError, match="its activations are synthetic: there is no text"):
        features.main(compose("features", ["run=runs/a"]))

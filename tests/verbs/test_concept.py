"""`dictlearn steer study=<concept>`: its folder, going on with it, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.config import compose
from dictlearn.dicts.sae import sae
from dictlearn.interventions.concept import measure
from dictlearn.lm.load import read_info
from dictlearn.sparsity.topk import TopK
from dictlearn.verbs import concept, steer
from tests.store.made import RULES, made_store

SMALL = [
    "run=runs/a", "study=docstrings", "feature=0/1", "study.pattern=self", "study.n_prompts=4",
    "study.tokens=3", "study.context=8", "study.kl_windows=2", "study.kl_tokens=6", "study.seeds=2",
    "study.strengths=[1]", r"study.after='^ *def \w+\(.*\):\n'", "output=study",
]  # fmt: skip


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    n = len(RULES)
    one = sae(read_info("pico"), partial(TopK, k=2), "resid_post.1", n_features=n, k=2).eval()
    save_dictionary(one, tmp_path / "runs/a/dictionary", {"model": "pico", "revision": None})
    made_store(tmp_path / "runs/a")


def study(*overrides: str) -> None:
    assert steer.main(compose("steer", [*SMALL, *overrides])) == 0


def test_a_study_goes_on_with_the_cells_that_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    methods = "study.methods=[add,add@token,mean,pca,random_direction,random_feature,prefix]"
    study(methods)
    record = json.loads(Path("study/study.json").read_text())
    printed = capsys.readouterr()
    assert "16 cells of 4 texts each" in printed.err and len(printed.out.splitlines()) == 2 + 7
    unchanged, *others = record["results"]
    assert unchanged["method"] == "none" and unchanged["points"][0]["kl"]["mean"] == 0
    kl = {row["method"]: row["points"][0]["kl"]["mean"] for row in others}
    assert all(value > 0 for method, value in kl.items() if method != "add@token")
    assert record["feature"] == "resid_post.1/1" and record["length"] > 0
    page = Path("study/report.html").read_text()
    assert "<svg" in page and all(method in page for method in kl)
    cells = {path: path.read_bytes() for path in Path("study/cells").iterdir()}
    assert len(cells) == 16 and Path("study/pareto.png").read_bytes()[:4] == b"\x89PNG"

    lost = next(path for path in cells if path.name == "mean-1-seed1.json")
    lost.unlink()
    damaged = next(path for path in cells if path.name == "pca-1-seed0.json")
    damaged.write_text('{"method": "pca", "rate": "high"}')
    made = []
    original = measure.cell
    monkeypatch.setattr(
        concept, "cell", lambda *args: made.append(args[4:]) or original(*args)
    )  # fmt: skip
    study(methods)
    assert made == [("pca", 1.0, 0), ("mean", 1.0, 1)]
    assert all(path.read_bytes() == cells[path] for path in (lost, damaged))
    with pytest.raises(ValueError, match="study: holds a study with another settings"):
        study("study.methods=[add]")


def test_the_feature_is_found_where_none_is_named():
    study("feature=null", "study.methods=[add]", "study.check=null", "study.wanted=fewer")
    record = json.loads(Path("study/study.json").read_text())
    assert record["feature"].startswith("resid_post.1/")
    assert record["feature"] != "resid_post.1/3"  # which never fired
    assert record["fitted_on"]["with"] >= 8 and record["fitted_on"]["without"] >= 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["study.check=nothing.at_all"], "study.check=nothing.at_all: is not found"),
        (["study.n_prompts=100000"], "study.n_prompts=100000: there are"),
        (["study.after=zzz"], "of its matches in the held-out text 0 go on with"),
        (["study.kl_windows=10000"], "study.kl_windows=10000: "),
        (["feature=0/9"], "feature=0/9: want"),
        (["feature=0/3"], "feature=resid_post.1/3: never fired"),
        (["study.context=600"], "study.context=600: pico reads at most 512"),
        (["study.seeds=1"], "study.seeds=1: want a whole number of at least 2"),
    ],
)
def test_what_is_refused_leaves_no_study(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(*overrides)
    assert not Path("study/study.json").exists()


def test_a_folder_with_other_files_is_left_alone():
    Path("study").mkdir()
    Path("study/mine.txt").write_text("mine")
    with pytest.raises(OSError, match="holds mine.txt, which is no study"):
        study("study.methods=[add]")
    assert [path.name for path in Path("study").iterdir()] == ["mine.txt"]

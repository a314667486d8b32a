"""`dictlearn compare`: a table, a page, and a sentence where there is nothing to compare."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dictlearn.config import compose
from dictlearn.evals.record import FORMAT, write_record
from dictlearn.evals.report.compared.page import page
from dictlearn.evals.report.compared.plots import grouped, mover
from dictlearn.evals.report.compared.read import Run, differing, read_runs, run_folders
from dictlearn.verbs import compare

NASTY = '<script>alert("1")</script>'
DICTIONARY = {
    "kind": "sae", "sources": ["resid_post.1"], "targets": ["resid_post.1"], "n_features": 512,
}  # fmt: skip


def made(folder: Path, k: int, lr: float, model: str = "pico", **figures: Any) -> Path:
    found = {"l0": float(k), "fvu": 1 / k, "ce_increase": 2 / k, "kl": None, "dead": 0.01} | figures
    record = {"format": FORMAT, "figures": found, "dictionary": DICTIONARY}
    record |= {"model": {"name": model}, "text": {"sha256": "ab", "tokens": 2000}}
    write_record(folder, record)
    config = {"name": folder.name, "seed": 0, "dict": {"_target_": "a.b.sae", "k": k}}
    OmegaConf.save({**config, "optim": {"lr": lr}}, folder / "config.yaml")
    (folder / "report.html").write_text("a report")
    return folder


@pytest.fixture
def multirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/m: two values of k by two of the learning rate."""
    monkeypatch.chdir(tmp_path)
    for k in (16, 8):
        for lr in (0.1, 0.01):
            made(tmp_path / f"runs/m/dict.k={k},optim.lr={lr}", k, lr)
    return Path("runs/m")


def compared(*overrides: str) -> int:
    return compare.main(compose("compare", list(overrides)))


def points(html: str) -> list[str]:
    return re.findall(r'<a data-run="\d+" href="([^"]*)">', html)


def test_runs_stand_beside_one_another(
    multirun: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert compared(f"runs=[{multirun}]") == 0
    said = capsys.readouterr()
    assert said.err == "The page: runs/m/sweep.html\n"
    lines = [line for line in said.out.splitlines() if line.startswith("dict.k=")]
    assert [line.split()[0] for line in lines] == [
        f"dict.k={k},optim.lr={lr}" for k in (8, 16) for lr in (0.01, 0.1)
    ]
    assert lines[0].split()[1:] == ["8.00", "0.1250", "+0.2500", "1.00%"]  # no KL was measured
    assert "dict.k: 8, 16" in said.out and "optim.lr: 0.01, 0.1" in said.out
    assert all(len(line) <= 80 for line in said.out.splitlines())
    html = (multirun / "sweep.html").read_text()
    assert html.count("<svg") == 2 and html.count('<tr data-run="') == 4
    assert not re.search(r"https?:|<link|<img|@import|\$", html)
    for link in points(html):
        assert (multirun / link.replace("%3D", "=").replace("%2C", ",")).is_file()
    assert len(points(html)) == 8
    assert compared(f"runs=[{multirun}]") == 0  # its own page may be written anew


def test_what_differs_says_whose_it_is(multirun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(Path("runs/b"), 8, 0.5)
    made(Path("runs/a"), 64, 0.5)
    assert compared("runs=[runs/a,runs/b]") == 0
    assert "dict.k: 64 (a), 8 (b)\n" in capsys.readouterr().out
    others = [f"runs/{name}" for name in "cdefgh"]
    for k, folder in enumerate(others):
        made(Path(folder), 100 - k, 0.5)
    assert compared(f"runs=[runs/a,runs/b,{','.join(others)}]") == 0
    assert "dict.k: 64, 8, 100, 99, 98, 97, 96, 95\n" in capsys.readouterr().out


def test_a_page_goes_where_it_was_asked_for_and_links_from_there(multirun: Path) -> None:
    runs = "runs=['runs/m/dict.k=8,optim.lr=0.1','runs/m/dict.k=16,optim.lr=0.1']"
    assert compared(runs, "output=found/two.html") == 0
    html = Path("found/two.html").read_text()
    assert points(html) and all(link.startswith("../runs/m/dict.k") for link in points(html))
    assert compared(runs) == 0
    assert [path.parent.name[:8] for path in Path("runs").glob("*/sweep.html")] == ["compare-"]


def test_lines_join_runs_that_differ_in_what_moves_l0(multirun: Path) -> None:
    runs = read_runs(run_folders([multirun]).runs)
    assert differing(runs) == ["dict.k", "optim.lr"]
    assert mover(runs) == "dict.k"
    assert grouped(runs, range(4), "dict.k") == {"optim.lr 0.01": [0, 2], "optim.lr 0.1": [1, 3]}
    assert mover([runs[0], runs[3]]) is None  # both settings changed at once


def test_what_files_hold_is_text_on_the_page(multirun: Path) -> None:
    made(multirun / "odd <b> $\\q$", 4, 0.1, model=NASTY)
    html = page(read_runs(run_folders([multirun]).runs), multirun, "a & b")
    assert NASTY not in html and "odd <b>" not in html
    assert "&lt;script&gt;" in html and "odd &lt;b&gt;" in html and "<h1>a &amp; b</h1>" in html


def test_other_text_and_missing_figures_are_said(multirun: Path) -> None:
    other = made(multirun / "other", 4, 0.1, ce_increase=None)
    record = {"format": FORMAT, "figures": {"l0": 3.0, "fvu": 0.5}, "versions": {}}
    write_record(multirun / "synthetic", record)
    runs = read_runs([other, multirun / "synthetic"])
    html = page(runs, multirun, "x")
    assert "Not all were evaluated on the same text" in html
    assert html.count("<svg") == 1 and "\N{EN DASH}" in html
    assert isinstance(runs[0], Run) and runs[1].settings == {} and runs[1].report is None


def test_the_number_of_tokens_is_a_column_where_it_differs(
    multirun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(multirun / "short", 4, 0.1)
    made(multirun / "chat", 4, 0.1, tokens=868.0)  # of 2,000, other roles' turns among them
    record = json.loads((multirun / "short/figures.json").read_text())
    write_record(multirun / "short", record | {"text": {"sha256": "cd", "tokens": 300}})
    assert compared(f"runs=[{multirun}]") == 0
    said = capsys.readouterr().out
    ends = {line.split()[0]: line.split()[-1] for line in said.splitlines() if line.strip()}
    assert ends["run"] == "tokens" and ends["short"] == "300"
    assert ends["chat"] == "868"
    assert ends["dict.k=8,optim.lr=0.1"] == "2,000"
    assert "Not all were evaluated on the same text" in said
    assert 'data-value="300.0">300</td>' in (multirun / "sweep.html").read_text()


def test_runs_without_figures_are_named(multirun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped, new, saved = (Path("runs") / name for name in ("m/a stop", "new", "saved"))
    for run, inside in (
        (stopped, "checkpoints/step-20"),
        (new, "checkpoints"),
        (saved, "dictionary"),
    ):
        (run / inside).mkdir(parents=True)
        (run / "config.yaml").write_text("run_dir: x\nsteps: 5000\n")
    (stopped / "checkpoints/step-1000").mkdir()
    assert compared("runs=[runs]") == 0
    assert capsys.readouterr().err.splitlines() == [
        "The page: runs/sweep.html",
        "Left out: runs/m/a stop has no figures.json yet, step 1,000 of 5,000; `dictlearn train "
        "resume=auto 'name=m/a stop'` goes on",
        "Left out: runs/new has no figures.json yet, nor a checkpoint",
        "Left out: runs/saved has no figures.json; `dictlearn evaluate run=runs/saved` writes it",
    ]
    page = Path("runs/sweep.html").read_text()
    assert "<h2>Left out</h2>" in page and "runs/new has no figures.json yet" in page
    elsewhere = stopped.rename("stopped")
    with pytest.raises(
        ValueError, match=r"runs: no figures to compare yet: stopped has .* goes on"
    ):
        compared(f"runs=[{elsewhere}]")


def test_objectives_differ_in_their_terms(
    multirun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in run_folders([multirun]).runs:
        config = OmegaConf.load(run / "config.yaml")
        config.objective = {
            "terms": {"reconstruction": {}, **({"kl": {}} if "k=8" in run.name else {})}
        }
        OmegaConf.save(config, run / "config.yaml")
    runs = [run for run in run_folders([multirun]).runs if "lr=0.1" in run.name]
    assert differing(read_runs(runs)) == ["dict.k"]  # which changes together with them
    config = OmegaConf.load(runs[0] / "config.yaml")
    config.dict.k = 16
    OmegaConf.save(config, runs[0] / "config.yaml")
    assert differing(read_runs(runs)) == ["objective.terms"]


def test_a_multirun_keeps_its_earlier_runs_and_says_what_failed(
    multirun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (multirun / "dict.k=4/checkpoints/step-20").mkdir(parents=True)
    (multirun / "dict.k=2/checkpoints").mkdir(parents=True)
    compare.conclude([multirun / "dict.k=8,optim.lr=0.1"], multirun, {"dict.k=4": "<b> unlucky"})
    said = capsys.readouterr()
    assert said.out.count("\ndict.k=") == 4  # three of them from before
    assert said.err.splitlines() == [
        "The page: runs/m/sweep.html",
        "Left out: dict.k=4 failed: <b> unlucky",
        "Left out: runs/m/dict.k=2 has no figures.json yet, nor a checkpoint",
    ]
    assert "<li>dict.k=4 failed: &lt;b&gt; unlucky</li>" in (multirun / "sweep.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing to compare; want folders of runs"),
        (["runs=[runs/none]"], "runs/none: no such folder"),
        (["runs=[runs/empty]"], "runs/empty: has no figures"),
        (["runs=[runs/m,runs/empty]"], "runs/empty: has no figures"),
        (["runs=[runs/torn]"], "torn/figures.json: not a JSON file"),
        (["runs=[runs/odd]"], "odd/figures.json: holds no figures"),
        (["runs=[runs/m]", "output=runs/one"], "output=runs/one: is a run or an evaluation"),
        (["runs=[runs/m]", "output=thesis.html"], "output=thesis.html: is there already"),
    ],
    ids=str,
)
def test_what_has_no_figures_is_refused(multirun: Path, overrides: list[str], message: str) -> None:
    Path("runs/empty").mkdir()
    for name, text in (("torn", '{"figures"'), ("odd", "[1]")):
        (Path("runs") / name).mkdir()
        (Path("runs") / name / "figures.json").write_text(text)
    made(Path("runs/one"), 2, 0.1)
    Path("thesis.html").write_text("<h1>mine</h1>")
    with pytest.raises(ValueError, match=message):
        compared(*overrides)
    assert Path("thesis.html").read_text() == "<h1>mine</h1>"
    assert Path("runs/one/report.html").read_text() == "a report"
    assert not Path("runs/m/sweep.html").exists()


def test_a_damaged_configuration_is_one_sentence(multirun: Path) -> None:
    (multirun / "dict.k=8,optim.lr=0.1/config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"config\.yaml: not a run's configuration"):
        compared(f"runs=[{multirun}]")


def test_it_needs_no_torch() -> None:
    code = "import sys, dictlearn.verbs.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

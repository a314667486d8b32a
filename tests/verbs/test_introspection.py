"""`dictlearn steer study=introspection`: its table, record and picture, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from figures.printed import blocks, run_python

import dictlearn
from dictlearn.config import compose
from dictlearn.interventions.introspection import CONCEPTS
from dictlearn.verbs import steer

PAGE = Path(__file__).parents[2] / "docs" / "introspection.md"
STUDY = ["study=introspection", "study.placebos=2", "study.strengths=[1,2]", "study.batch=64"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_study_prints_its_verdict_and_writes_a_record_with_a_picture(
    capsys: pytest.CaptureFixture[str],
):
    Path("words.txt").write_text("\n".join(CONCEPTS[:5]))
    command = [*STUDY, "study.concepts=words.txt", "model=pico", "output=out"]
    assert steer.main(compose("steer", command)) == 0
    shown = capsys.readouterr().out
    record = json.loads(Path("out/introspection.json").read_text())
    assert record["site"] == "resid_post.2" and record["concepts"] == list(CONCEPTS[:5])
    assert record["verdict"]["text"] in " ".join(shown.split())
    assert record["verdict"]["found"] == [] and "Nothing found" in shown
    for i, strength in enumerate(record["strengths"]):
        row = record["contrasts"]["over placebo"][i]
        assert row["low"] < row["mean"] < row["high"]
        line = next(line for line in shown.splitlines() if line.startswith(f"{strength:g} "))
        assert f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" in line
    assert Path("out/introspection.png").read_bytes().startswith(b"\x89PNG")
    drawn = ElementTree.parse("out/introspection.svg").getroot()
    words = " ".join(text for element in drawn.iter() if (text := (element.text or "").strip()))
    assert "placebo, unrelated questions" in words and "Injected concepts in pico" in words


def test_concepts_may_be_saved_vectors(capsys: pytest.CaptureFixture[str]):
    others = [f"return {name}\n" for name in "abcde"]
    for i in range(5):
        texts = [f"{CONCEPTS[i]} = {word}\n" for word in ("one", "two", "six", "ten", "red")]
        dictlearn.vector("pico", texts, others, "resid_post.1", pool="mean").save(f"v{i}")
    listed = "study.concepts=[v0,v1,v2,v3,v4]"
    command = [*STUDY, listed, "model=pico", "site=resid_post.1", "study.placebos=1"]
    assert steer.main(compose("steer", command)) == 0
    assert "5 concepts, 1 placebo of" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"site=resid_post\.2: the vector is at resid_post\.1"):
        steer.main(compose("steer", [*command, "site=resid_post.2"]))
    with pytest.raises(ValueError, match="dogs is no folder of a saved vector, as others are"):
        steer.main(compose("steer", [*STUDY, "study.concepts=[v0,dogs]", "model=pico"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "model: want the model to study, such as model=pico"),
        (
            ["model=pico", "study.concepts=[a,b]"],
            "concepts: 2; intervals are over concepts, want 5",
        ),
        (["model=pico", "study.strengths=[0]"], "strengths=.*0.*: want numbers above 0"),
        (["model=pico", "study.placebos=0"], "placebos=0: want a whole number of at least 1"),
        (["model=pico", "site=resid_post.9"], "pico has layers 0 to 3"),
        (["model=pico", "study.concepts=none.txt"], "concepts=none.txt: it is not there"),
        (["model=pico", "output=full"], "cannot save full: it holds a"),
    ],
    ids=str,
)
def test_senseless_requests_are_refused(overrides: list[str], message: str):
    Path("full").mkdir()
    Path("full/a").touch()
    with pytest.raises(Exception, match=message):
        steer.main(compose("steer", [*STUDY, *overrides]))
    assert [path.name for path in Path().iterdir()] == ["full"]


def test_the_pages_example_says_what_the_page_says() -> None:
    names: dict[str, Any] = {}
    for language, code in blocks(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            run_python(code, names)
    record = names["record"]
    assert record["verdict"]["text"].startswith("Nothing found")
    assert len(record["shifts"]["named, matched"][1]) == 5

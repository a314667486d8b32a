"""What is wrong with a text is said before a model's weights are loaded, and leaves nothing behind."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dictlearn import cli
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.dicts.sae import sae
from dictlearn.lm import load
from dictlearn.lm.load import read_info
from dictlearn.sparsity.topk import TopK
from dictlearn.verbs import opened

OF_PICO = ["run=d", "model=pico"]
VERBS = {
    "train": ["steps=1", "trainer=cpu", "name=wrong"],
    "train a crosscoder": ["steps=1", "trainer=cpu", "model.other=pico", "dict=crosscoder"],
    "evaluate": OF_PICO,
    "evaluate on the model of training": ["run=d"],
    "features": OF_PICO,
    "explain": [*OF_PICO, "explainer=lexical"],
    "export": [*OF_PICO, "format=saelens"],
    "targets": ["model=pico", "output=there"],
}
TEXTS = {
    "data=hub data.path=someone/some-text": "data.path=someone/some-text: the hub cannot be reached",
    "data=hub data.path=./nowhere": "data.path=./nowhere: no such folder with data files",
    "data=text data.paths=nowhere.txt": "data.paths=nowhere.txt: no file matches",
    "data=text data.paths=empty.txt": "empty.txt: there is no text in it",
    "data=text data.paths=binary.txt": "binary.txt",
    "data=text data.paths=short.txt": "is one window of data.context=512; want more text",
    "data=text data.paths=rows.jsonl data.field=body": "data.field=body",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a saved dictionary and some texts lie, and no model's weights can be loaded."""

    def loaded(*given: object, **options: object) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(load, "load_model", loaded)  # what conf/model names
    monkeypatch.setattr(opened, "load_model", loaded)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here = tmp_path / "here"
    info = replace(read_info("pico"), width=256)
    save_dictionary(
        sae(info, partial(TopK, k=4), "resid_post.1", n_features=64, k=4).eval(),
        here / "d",
        {"model": "pico", "revision": None, "data": {}},
    )
    (here / "empty.txt").touch()
    (here / "binary.txt").write_bytes(bytes(range(256)) * 8)
    (here / "short.txt").write_text("one line\n")
    (here / "rows.jsonl").write_text(json.dumps({"text": "a row"}) + "\n")
    monkeypatch.chdir(here)
    return here


def refused(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> bool:
    monkeypatch.setattr(sys, "argv", ["dictlearn", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return exit_.value.code == 2


@pytest.mark.parametrize("text", TEXTS)
def test_a_run_says_nothing_but_what_is_wrong_with_its_text(folder, text, monkeypatch, capsys):
    before = sorted(folder.rglob("*"))
    assert refused(monkeypatch, "train", *VERBS["train"], *text.split())
    said = capsys.readouterr().err
    assert TEXTS[text] in said and len(said.splitlines()) == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reads_its_text_before_it_loads_a_model(folder, verb, monkeypatch, capsys):
    before = sorted(folder.rglob("*"))
    text = ["data=text", "data.paths=rows.jsonl", "data.field=body"]
    assert refused(monkeypatch, verb.partition(" ")[0], *VERBS[verb], *text)
    assert "data.field=body: " in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before

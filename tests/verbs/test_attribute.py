"""`dictlearn attribute`: graphs of prompts in folders, made once, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

import dictlearn
from dictlearn import cli
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.dicts.plt import plt
from dictlearn.dicts.sae import sae
from dictlearn.lm.load import read_info
from dictlearn.sparsity.topk import TopK


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained PLT of pico in a dictionary's folder."""
    folder = tmp_path_factory.mktemp("saved") / "plt" / "dictionary"
    dictionary = plt(read_info("pico"), partial(TopK, k=4), n_features=64, k=4)
    save_dictionary(dictionary.eval(), folder, {"model": "pico"})
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["dictlearn", "attribute", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return done.value.code


def test_prompts_get_a_folder_each_and_are_made_once(saved, tmp_path, monkeypatch, capsys):
    out, prompts = tmp_path / "out", tmp_path / "prompts.txt"
    prompts.write_text("import os\n\ndef add(first, second):\n")
    keys = [f"dictionary={saved}", f"prompts={prompts}", f"output={out}", "nodes=40", "logits=3"]
    assert not run(monkeypatch, *keys)
    said = capsys.readouterr().err
    slugs = ["000-import-os", "001-def-add-first-second"]
    assert all(f"{out / slug}: " in said for slug in slugs) and "FLOP" in said
    for slug in slugs:
        graph = dictlearn.load_graph(out / slug / "graph")
        drawn = json.loads((out / slug / "graph" / f"{slug}.json").read_text())
        assert drawn["metadata"]["slug"] == slug and drawn["links"]
        assert drawn["metadata"]["scores"] == graph.scores._asdict()
        assert graph.nodes.n_features <= 40 and len(graph.nodes.targets) <= 3
        assert graph.conservation < 1e-4
        metadata = json.loads((out / slug / "graph" / "graph-metadata.json").read_text())
        assert metadata == {"graphs": [drawn["metadata"]]}
        assert (out / slug / "index.html").is_file()
    assert (out / "index.html").is_file()

    written = (out / slugs[0] / "graph" / "manifest.json").stat().st_mtime_ns
    (out / slugs[1] / "graph" / "graph.json").write_text("{}")  # damaged: made again
    assert not run(monkeypatch, *keys)
    said = capsys.readouterr().err
    assert f"{out / slugs[0]}: is there already" in said
    assert (out / slugs[0] / "graph" / "manifest.json").stat().st_mtime_ns == written
    dictlearn.load_graph(out / slugs[1] / "graph")


def test_one_token_less_another(saved, tmp_path, monkeypatch):
    keys = [f"dictionary={saved}", "prompt='import os'", f"output={tmp_path / 'out'}", "page=false"]
    assert not run(monkeypatch, *keys, "targets=[17]", "minus=23")
    graph = dictlearn.load_graph(tmp_path / "out" / "000-import-os" / "graph")
    assert len(graph.nodes.targets) == 1 and " - " in graph.nodes.targets[0].name
    assert not (tmp_path / "out" / "index.html").exists()


def test_what_is_wrong_is_said_before_work(saved, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    other = tmp_path / "sae" / "dictionary"
    save_dictionary(
        sae(read_info("pico"), partial(TopK, k=4), site="resid_post.1", n_features=64, k=4).eval(),
        other,
        {"model": "pico"},
    )
    given, text = f"dictionary={saved}", "prompt='import os'"
    for arguments, words in (
        ([given], "prompt: want the text to trace"),
        ([given, text, "minus=3"], "minus=3: want one target with it"),
        ([given, text, "nodes=0"], "nodes=0"),
        ([given, text, "targets='two words'"], "want a text of one token"),
        ([given, text, "node_threshold=1.2"], "node_threshold=1.2"),
        ([f"dictionary={other}", text], "reads resid_post.1"),
        ([given, "prompts=nowhere.txt"], "nowhere.txt"),
    ):
        assert run(monkeypatch, *arguments, f"output={out}")
        said = capsys.readouterr()
        assert words in said.err + said.out
        assert not out.exists() or not any(out.rglob("*.safetensors"))

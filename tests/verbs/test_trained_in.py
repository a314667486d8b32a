"""A run whose model and text were named from one folder is read from any other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from dictlearn.ckpt.signature import is_own, signed
from dictlearn.store import tokenizer
from dictlearn.verbs.trained_in import FILE, anywhere, remember, tokenizer_for, where_it_began

DATA: dict[str, Any] = {"_target_": "a.text", "paths": ["corpus/*.txt", "more.txt"], "context": 64}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The provenance of home/runs/a; the working folder is another one by then."""
    home = tmp_path / "home"
    for name in ("corpus/a.txt", "more.txt", "model/config.json"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    origin = signed({"model": "./model", "other_model": None, "data": DATA, "seed": 0})
    monkeypatch.chdir(home)
    remember(Path("runs/a"), origin)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return origin


@pytest.mark.parametrize("named", ["runs/a", "runs/a/dictionary"])
def test_it_is_found_from_elsewhere(named: str, trained, tmp_path: Path) -> None:
    home = tmp_path / "home"
    found = anywhere(trained, str(home / named))
    assert found["model"] == str(home / "model")
    assert found["data"] == {**DATA, "paths": [str(home / "corpus/*.txt"), str(home / "more.txt")]}
    assert is_own(found) and found["seed"] == 0
    assert str(tmp_path) not in json.dumps(trained)  # which others are given


def test_what_lies_here_is_meant(trained, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path / "home")
    assert anywhere(trained, "runs/a") == trained


def test_only_the_users_own_word_for_this_run_counts(trained, tmp_path: Path) -> None:
    run = tmp_path / "home/runs/a"
    said = json.loads((run / FILE).read_text())
    other = signed({**trained, "model": "model"})
    assert anywhere(other, str(run)) == other  # the file is of another run
    unsigned = {key: value for key, value in trained.items() if key != "signature"}
    assert anywhere(unsigned, str(run)) == unsigned
    for wrong in (
        {**said, "folder": str(tmp_path)},
        {"folder": 3},
        [],
        {**said, "signature": None},
    ):
        (run / FILE).write_text(json.dumps(wrong))
        assert anywhere(trained, str(run)) == trained
    (run / FILE).write_text("{")
    assert anywhere(trained, str(run)) == trained


def test_no_file_where_nothing_is_named_from_the_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").touch()
    for model, paths in (("pico", None), ("org/name", [str(tmp_path / "text")])):
        remember(tmp_path / "run", signed({"model": model, "data": {"paths": paths}}))
    remember(tmp_path / "run", {"model": "pico", "data": {"paths": "text"}})  # not signed
    assert not (tmp_path / "run").exists()


def continued_from(run: str, **paths: Any) -> tuple[Path, str, Path | None]:
    """(the working folder, run_dir, checkpoint) while a run is continued whose paths are these."""
    cfg = OmegaConf.create({"run_dir": "runs/b", "model": {"path": "pico"}, "data": paths})
    with where_it_began(cfg, Path(run) / "checkpoints/step-20") as checkpoint:
        return Path.cwd(), cfg.run_dir, checkpoint


def test_a_continued_run_finds_what_lay_in_the_folder_it_was_begun_in(trained, tmp_path) -> None:
    home, here = tmp_path / "home", tmp_path / "elsewhere"
    step = home / "runs/a/checkpoints/step-20"
    for paths in ({"paths": ["corpus/*.txt"]}, {"paths": "more.txt"}, {"path": "./model"}):
        found = continued_from("../home/runs/a", **paths)
        assert (found[0], found[1]) == (home, str(here / "runs/b"))
        assert found[2] is not None and found[2].resolve() == step
    assert Path.cwd() == here
    stays = (here, "runs/b", Path("../home/runs/a/checkpoints/step-20"))
    for paths in ({"paths": ["gone.txt"]}, {"path": "org/name"}, {"paths": None}):
        assert continued_from("../home/runs/a", **paths) == stays
    (here / "more.txt").touch()
    assert continued_from("../home/runs/a", paths="more.txt") == stays
    (home / "runs/a" / FILE).write_text('{"folder": 3}')
    assert continued_from("../home/runs/a", path="./model") == stays


@dataclass
class About:
    """What a store says of its model."""

    model: str
    revision: str | None
    signature: str | None


def test_a_store_finds_the_tokenizer_from_elsewhere(trained, tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "home/runs/a"
    (run / "dictionary").mkdir()
    (run / "dictionary/dictionary.json").write_text(json.dumps({"training": trained}))
    asked: list[str] = []
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda path, _: asked.append(path))

    for signature in (tokenizer.signature_of("./model", None), "a stranger's"):
        store = SimpleNamespace(info=About("./model", None, signature), folder=run / "features")
        tokenizer_for(store)  # type: ignore[arg-type]
    assert asked == [str(tmp_path / "home/model"), "./model"]

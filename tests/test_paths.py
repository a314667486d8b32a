"""Paths on the command line: completed, and from home."""

from __future__ import annotations

from pathlib import Path

import pytest

from dictlearn import config, paths

PATHS = {
    "run=": ["run=runs/one", "run=runs/two"],
    "resume=": ["resume=runs/one", "resume=runs/two", "resume=auto"],
    "run=runs/t": ["run=runs/two/"],
    "resume=runs/one/": ["resume=runs/one/checkpoints/"],
    "init=ru": ["init=runs/"],
    "vector=": ["vector=file.npy", "vector=runs/"],
    "optim.l": [],
}


@pytest.mark.parametrize("word", PATHS)
def test_paths_are_completed(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/one/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/two").mkdir()
    (tmp_path / "file.npy").touch()
    assert sorted(paths.completed(word)) == sorted(PATHS[word])


def test_a_path_begins_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.compose("evaluate", ["run=~/runs/a"]).run == f"{tmp_path}/runs/a"
    cfg = config.compose("train", ["data=text", "data.paths=[~/a.txt,b.txt]", "init=~/d"])
    assert list(cfg.data.paths) == [f"{tmp_path}/a.txt", "b.txt"]
    assert cfg.init == f"{tmp_path}/d"
    assert config.compose("lookup", ["pos='~/'", "run=r"]).pos == "~/"


ABSENT = {
    "run=absent": "run=absent: no such folder; dictionary= also takes a hub id",
    "dictionary=absent": "dictionary=absent: no such folder, and not a hub id",
    "dictionary=./a/b": "dictionary=./a/b: no such folder, and not a hub id",
}


@pytest.mark.parametrize("given", ABSENT)
def test_what_is_not_there_is_named(given: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=ABSENT[given].replace("(", "\\(")):
        paths.refuse_absent(config.compose("evaluate", [given]))


def test_what_may_be_there_is_left_to_the_verb(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    for given in ("dictionary=owner/name", "dictionary=owner/name/layer.3", "run=one"):
        paths.refuse_absent(config.compose("evaluate", [given]))

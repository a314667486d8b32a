"""Paths on the command line: completed, and from home."""

from __future__ import annotations

import re
import subprocess
import sys
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
    "run=one": "run=one: no such folder; did you mean run=runs/one?",
    "dictionary=absent": "dictionary=absent: no such folder, and not a hub id",
    "dictionary=./a/b": "dictionary=./a/b: no such folder, and not a hub id",
}


@pytest.mark.parametrize("given", ABSENT)
def test_what_is_not_there_is_named(given: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/one").mkdir(parents=True)
    with pytest.raises(ValueError, match=re.escape(ABSENT[given])):
        paths.refuse_absent(config.compose("evaluate", [given]))


NO_MODELS = {
    "model=./nope": "model.path=./nope: no such folder, and not a hub id (owner/name)",
    "model=./empty": "model.path=./empty: no config.json in empty; want a folder in the hub's layout",
    "model=./torn": "model.path=./torn: torn/config.json is not valid JSON",
    "model.other=a/b/c": "model.other=a/b/c: no such folder, and not a hub id",
    "teacher=./nope": "teacher.path=./nope: no such folder",
}


@pytest.mark.parametrize("given", NO_MODELS)
def test_a_folder_without_a_model_is_named(given: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/config.json").write_text("{")
    with pytest.raises(ValueError, match=re.escape(NO_MODELS[given])):
        paths.refuse_absent(config.compose("train", [given]))


def test_what_lies_in_the_way_of_a_run_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    code = (
        "import sys; from dictlearn import config, paths\n"
        "for text in sys.argv[1:]:\n"
        "    try: paths.refuse_absent(config.compose('train', text.split()))\n"
        "    except ValueError: continue\n"
        "    sys.exit(text)\n"
        "sys.exit('torch' in sys.modules and 'torch was imported')"
    )
    mistakes = [
        "model=./nope",
        *(f"data=text data.paths={name}.txt" for name in ("empty", "latin")),
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *mistakes], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_may_be_there_is_left_to_the_verb(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    for given in ("dictionary=owner/name", "dictionary=owner/name/layer.3", "run=one", "model=a/b"):
        paths.refuse_absent(config.compose("evaluate", [given]))


OUTPUTS = {
    "export run=a format=hub output=file": "output=file: is no folder; want a folder",
    "export run=a format=hub output=file/b": "output=file/b: file is no folder; want a folder elsewhere",
    "evaluate run=a output=file": "output=file: is no folder; want a folder",
    "features run=a output=gone": "output=gone: is no folder; want a folder",
    "explain run=a output=file": "output=file: is no folder; want a folder",
    "pages run=a output=file": "output=file: is no folder; want a folder",
    "cache output=file": "output=file: is no folder; want a folder",
    "targets output=file": "output=file: is no folder; want a folder",
    "vector output=file": "output=file: is no folder; want a folder",
    "attribute run=a output=file": "output=file: is no folder; want a folder",
    "lookup run=a vector=file output=a": "output=a: is a folder; want a file",
    "steer run=a feature=1 output=a": "output=a: is a folder; want a file",
    "lookup run=a vector=file output=file/x": "output=file/x: file is no folder; want a file elsewhere",
    "compare output=file": "output=file: is no folder; want a folder, or a file that ends in .html",
    "compare output=a.html": r"output=a.html: is a folder; want a file",
    "label run=a graph=file output=a.json": "output=a.json: is a folder; want a file",
    "label run=a graph=a output=file": "output=file: is no folder; want a folder",
    "train run_dir=file": "run_dir=file: is no folder; want a folder",
    "plan run_dir=file/a": "run_dir=file/a: file is no folder",
}


@pytest.mark.parametrize("line", OUTPUTS)
def test_what_an_output_would_be_is_checked_for_every_verb(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "a.html", "a.json"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to("nowhere")
    verb, *overrides = line.split()
    with pytest.raises(ValueError, match=OUTPUTS[line]):
        paths.refuse_misplaced(verb, config.compose(verb, overrides))


def test_every_verb_with_an_output_is_among_them() -> None:
    texts = {path.stem: path.read_text() for path in config.conf_dir().glob("*.yaml")}
    with_output = {verb for verb, text in texts.items() if "\noutput:" in text}
    assert with_output <= {line.split()[0] for line in OUTPUTS}


def test_outputs_that_can_be_are_left_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for line in ("compare output=a", "compare output=b.html", "lookup output=/dev/stdout run=a"):
        verb, *overrides = line.split()
        paths.refuse_misplaced(verb, config.compose(verb, overrides))

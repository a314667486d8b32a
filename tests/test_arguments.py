"""What is wrong with a command line as a whole: one sentence, before anything runs or is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dictlearn import __version__, arguments, cli


def ended(monkeypatch: pytest.MonkeyPatch, *args: str) -> object:
    monkeypatch.setattr(sys, "argv", ["dictlearn", *args])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


MISTAKES = {
    "train dict=sae dict=clt": "dict=sae and dict=clt: both set dict; leave one of them out",
    "train -m dict.k=8,16 dict.k=32": "dict.k=8,16 and dict.k=32: both set dict.k",
    "train dict.k=8 -m steps=1 +dict.k=32": "dict.k=8 and +dict.k=32: both set dict.k",
    "train model=./x model.path=./y": "model=./x and model.path=./y: both set model.path",
    "train dict=sae ~dict": "dict=sae and ~dict: both set dict",
    "compare run=runs/a": "run=runs/a: no such key; folders stand without a key: dictlearn compare "
    "runs/a <another folder>",
    "compare dictionary=runs/a": "folders stand without a key: dictlearn compare runs/a",
    "evaluate here": "here: want key=value, such as run=here or dictionary=here",
    "train here": "here: want key=value, such as resume=here",
    "train --foo": "--foo: no such option; there are --help, --cfg job, -m and --config-dir",
    "train --steps=5": "--steps=5: no such option; there are",
    "compare a --mutlirun": "--mutlirun: no such option; did you mean --multirun?",
    "train --cfg": "--cfg: expected one argument",
    "train --cfg xx": "--cfg: invalid choice: 'xx'",
    "train --config-dir absent": "--config-dir absent: no such folder",
    "--foo": "--foo: want a verb first; choose from plan, train, ",
    "-m train": "-m: want a verb first; choose from plan, train, ",
    "foo": "foo: no such verb; choose from plan, train, ",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence(line: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert ended(monkeypatch, *line.split()) == 2
    said = capsys.readouterr()
    assert MISTAKES[line] in said.err
    assert said.err.count("\n") == 1 and not said.out
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


BARE = {
    "train notes.txt": "notes.txt: want key=value, such as data=text data.paths=notes.txt",
    "train model": "model: want key=value, such as model=model",
    "lookup notes.txt": "notes.txt: want key=value, such as vector=notes.txt",
    "pages model": "model: want key=value, such as run=model",
}


@pytest.mark.parametrize("line", BARE)
def test_a_path_without_a_key_is_answered_with_the_key(line, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").touch()
    assert ended(monkeypatch, *line.split()) == 2
    assert capsys.readouterr().err == f"{BARE[line]}\n"


def test_overrides_stand_on_each_side_of_options(monkeypatch, capsys) -> None:
    assert ended(monkeypatch, "train", "steps=7", "--cfg", "job", "seed=3") == 0
    assert "steps: 7\n" in (said := capsys.readouterr().out) and "seed: 3\n" in said
    found = arguments.taken_apart(["a=1", "--cfg", "job", "b=2", "-m"])
    assert (found.options, found.overrides) == (["--cfg", "job", "-m"], ["a=1", "b=2"])


def test_the_last_of_two_values_counts_and_is_said(monkeypatch, capsys) -> None:
    assert (
        ended(monkeypatch, "train", "steps=12", "seed=1", "seed=1", "steps=30", "--cfg", "job") == 0
    )
    said = capsys.readouterr()
    assert "steps: 30\n" in said.out
    assert said.err == "steps=30 replaces steps=12, which stands before it\n"


def test_the_last_of_two_models_counts_and_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    models = [str(tmp_path / name) for name in "ab"]
    for path in models:
        Path(path).mkdir()
    assert ended(monkeypatch, "train", *(f"model={path}" for path in models), "--cfg", "job") == 0
    said = capsys.readouterr()
    assert f"path: {models[1]}\n" in said.out
    assert said.err == f"model={models[1]} replaces model={models[0]}, which stands before it\n"


@pytest.mark.parametrize("line", ["--version", "train --version"])
def test_the_version_is_ours(line: str, monkeypatch, capsys) -> None:
    assert ended(monkeypatch, *line.split()) == 0
    assert capsys.readouterr().out == f"dictlearn {__version__}\n"

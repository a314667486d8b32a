"""Commands that messages name can be pasted into a shell."""

from __future__ import annotations

import errno
import shlex
from pathlib import Path

import pytest

from dictlearn import cli, config, overrides
from dictlearn.commands import command
from dictlearn.disk.whole import SaveError
from dictlearn.verbs import continued, evaluate, reported

NAMES = {
    "a": "run=a",
    "my run": "'run=my run'",
    "données": "'run=données'",
    "x=1,y=2": """'run="x=1,y=2"'""",
    "1e3": """'run="1e3"'""",
    "null": """'run="null"'""",
    "it's": None,
    'a"b c': None,
    " a[0] ": None,
    "back\\": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_command_is_read_back_as_it_was_meant(name: str) -> None:
    line = command("report", run=name)
    assert line == f"dictlearn report {NAMES[name]}" or NAMES[name] is None
    (override,) = config.translated(shlex.split(line)[2:])
    assert overrides.value(override) == name


def test_a_stopped_run_with_spaces_in_its_name_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/dictlearn", "train"])
    cfg = config.compose("train", ["name='my run'", "run_dir='a b/my run'"])
    line = continued.command(cfg)
    assert line == "dictlearn train resume=auto 'name=my run' 'run_dir=a b/my run'"
    again = config.compose("train", shlex.split(line)[2:])
    assert (again.name, again.run_dir) == ("my run", "a b/my run")


def test_a_module_is_started_again_as_one(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["/a/dictlearn/__main__.py", "train", "--help"])
    cfg = config.compose("train", ["name=a"])
    assert continued.command(cfg) == "python -m dictlearn train resume=auto name=a"
    assert command("report", run="a") == "python -m dictlearn report run=a"
    for words in (["train", "--help"], ["--help"]):
        monkeypatch.setattr("sys.argv", ["/a/dictlearn/__main__.py", *words])
        with pytest.raises(SystemExit):
            cli.main()
        said = capsys.readouterr().out
        assert f"    python -m dictlearn {words[0] if words[1:] else '<verb>'} [group=" in said
        assert "__main__" not in said


def test_a_report_that_cannot_be_written_names_what_writes_it(tmp_path: Path, monkeypatch) -> None:
    def full(folder: Path) -> None:
        raise SaveError(folder / "report.html", OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(reported, "write_report", full)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        OSError, match="No space.*untouched; dictlearn report 'run=my run' writes it"
    ):
        evaluate.write_into(Path("my run"), {"figures": {}})
    assert Path("my run/figures.json").is_file()

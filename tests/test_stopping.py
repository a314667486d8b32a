"""SIGTERM and Ctrl-C outside training leave nothing half-written and say what goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dictlearn import cli, config, stopping
from dictlearn.ckpt import commit
from tests.store.made import made_store


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Here and in child processes; a script that runs tests in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_verb_cleans_up(tmp_path: Path, monkeypatch, capsys, number, status):
    made_store(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["dictlearn", "pages", f"run={tmp_path}/run"])
    monkeypatch.setattr(commit, "_seal", lambda *given: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == status
    name = signal.Signals(number).name
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"stopped by {name}; nothing is left half-written, and the same command starts again"
    )
    assert [path.name for path in (tmp_path / "run/features").iterdir()] == ["store"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["features"]  # and no lock


def test_a_second_sigterm_ends_the_process_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with stopping.listening():
        with pytest.raises(stopping.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stopped_training_names_the_command_that_goes_on(monkeypatch, capsys):
    from dictlearn.verbs import continued

    cfg = config.compose("train", ["name=mine"])
    monkeypatch.setattr(continued, "goes_on", lambda cfg: f"to go on: {cfg.name}")
    with pytest.raises(SystemExit, match="143"), stopping.told("train", cfg):
        raise stopping.Stopped(143)
    assert capsys.readouterr().err == "stopped by SIGTERM; to go on: mine\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit, match="143"), stopping.told("train", cfg):
        raise stopping.Stopped(143)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_before_any_work_is_said(monkeypatch, capsys, number, status):
    monkeypatch.setattr(sys, "argv", ["dictlearn", "train"])
    monkeypatch.setattr(
        config, "translated", lambda given, *verb: os.kill(os.getpid(), number) or given
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == status
    assert capsys.readouterr().err == (
        f"stopped by {signal.Signals(number).name}; nothing was written\n"
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_while_libraries_are_imported_ends_the_process(monkeypatch, capsys, number, status):
    class Ended(BaseException):
        pass

    def importing(name):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:  # as some library does
            pytest.fail("an exception was left to a library")

    def leave(status):
        raise Ended(status)

    monkeypatch.setattr(sys, "argv", ["dictlearn", "train", "name=a"])
    monkeypatch.setattr(cli, "import_module", importing)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Ended, match=str(status)):
        cli.main()
    name = signal.Signals(number).name
    assert capsys.readouterr().err == f"stopped by {name}; nothing was written\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stop_between_two_runs_does_not_say_that_there_are_none(monkeypatch, capsys):
    cfg = config.compose("train", ["name=mine"])
    with pytest.raises(SystemExit, match="130"), stopping.listening():
        with stopping.told("train", cfg):
            pass
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stopped by SIGINT; what was begun before is there\n"


def test_ctrl_c_is_heard_while_the_command_line_itself_is_imported(tmp_path):
    """The console script's module imports next to nothing before it listens."""
    (tmp_path / "hydra.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "dictlearn", "train"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT; nothing was written\n")

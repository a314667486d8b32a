"""SIGTERM and Ctrl-C outside training leave nothing half-written and say what goes on."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from dictlearn import cli, stopping
from dictlearn.ckpt import commit
from tests.store.made import made_store


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
    from dictlearn.config import compose
    from dictlearn.verbs import continued

    cfg = compose("train", ["name=mine"])
    monkeypatch.setattr(continued, "goes_on", lambda cfg: f"to go on: {cfg.name}")
    with pytest.raises(SystemExit, match="143"), stopping.told("train", cfg):
        raise stopping.Stopped(143)
    assert capsys.readouterr().err == "stopped by SIGTERM; to go on: mine\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit, match="143"), stopping.told("train", cfg):
        raise stopping.Stopped(143)
    assert capsys.readouterr().err == ""

"""The command line in the tests' own process; conftest.py makes its fixtures known to all tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import DictConfig

from dictlearn import cli

Runs = list[DictConfig]
Command = Callable[..., int]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """What the verb `train` was called with, in the place of training: it answers 0."""
    seen: Runs = []
    answer(monkeypatch, lambda cfg: seen.append(cfg) or 0)
    return seen


def answer(monkeypatch: pytest.MonkeyPatch, main: Callable[[DictConfig], int]) -> None:
    verb = ModuleType("dictlearn.verbs.train")
    verb.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, verb.__name__, verb)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command line in this process, in an empty folder; returns its exit status."""
    monkeypatch.chdir(tmp_path)
    for variable in ("WORLD_SIZE", "SLURM_NTASKS", "DICTLEARN_DEBUG"):
        monkeypatch.delenv(variable, raising=False)

    def run(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dictlearn", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run

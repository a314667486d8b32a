"""A process that fails or is killed ends the others, with one sentence."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ckpt_worker import run_watched
from test_ranks import exit_codes, launch

MISTAKE = "source: a file is gone"
KILLED = (
    "process {} of the run has ended without a word: killed, or out of memory; resume=auto continues "
    "from the latest checkpoint"
)


def said(run: Path) -> list[str]:
    return [line for rank in (0, 1) for line in (run / f"errors.{rank}").read_text().splitlines()]


@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize("fault", ["mistake", "killed"])
def test_one_sentence_ends_all(tmp_path, start, fault, faulty, stuck):
    began = time.monotonic()
    codes = exit_codes(launch(start, tmp_path, fault, faulty, stuck, function=run_watched))
    assert codes[1 - faulty] == 2
    assert codes[faulty] == (2 if fault == "mistake" else -9)
    assert said(tmp_path) == [MISTAKE if fault == "mistake" else KILLED.format(faulty)]
    assert time.monotonic() - began < 60  # nobody waited for the one that sleeps


def test_an_error_that_is_nobodys_mistake_comes_with_its_traceback(tmp_path, start):
    codes = exit_codes(launch(start, tmp_path, "bug", 1, False, function=run_watched))
    assert codes == [2, 2]
    lines = said(tmp_path)
    assert lines[0] == "process 1: KeyError: 'a bug'"
    assert lines.count("Traceback (most recent call last):") == 1

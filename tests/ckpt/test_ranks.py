"""Two processes that train together save, stop and resume together."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import torch
from ckpt_worker import differing, final_state, run_rank

from dictlearn.ckpt import commit


def launch(
    start: Any, run: Path, *arguments: Any, function: Any = run_rank, **options: Any
) -> list:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [start(function, rank, port, run, *arguments, **options) for rank in (0, 1)]


def exit_codes(processes: list) -> list[int | None]:
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]


def fake_scontrol(folder: Path) -> Path:
    """A folder with a program of that name, which notes what it is asked for."""
    program = folder / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol.log\n')
    program.chmod(0o755)
    return program.parent


def test_a_signal_to_one_rank_stops_both_after_the_same_step_and_resume_is_exact(
    tmp_path, start, wait_for
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    together = launch(start, whole, -1, 0, 6)
    slurm = {"SLURM_JOB_ID": "7", "PATH": f"{fake_scontrol(tmp_path)}:{os.environ['PATH']}"}
    alone = launch(start, cut, 2, 1.0, 6, environment=slurm)
    wait_for(cut / "inside")
    os.kill(alone[1].pid, signal.SIGUSR1)
    assert exit_codes(alone) == [138, 138]
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"  # once, after the save
    assert {path.name for path in (cut / "checkpoints").iterdir()} == {"LATEST", "step-3"}
    assert exit_codes(together) == [0, 0]
    assert exit_codes(launch(start, cut, -1, 0, 6, resume="auto")) == [0, 0]
    expected = final_state(whole, 6)
    assert differing(expected, final_state(cut, 6)) == []
    assert not torch.equal(expected["rng"][0]["torch"], expected["rng"][1]["torch"])


def test_a_full_disk_on_the_rank_that_writes_holds_nobody_up(tmp_path, start):
    assert exit_codes(launch(start, tmp_path, -1, 0, 5, every_steps=2, full_at=4)) == [0, 0]
    checkpoints = tmp_path / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"LATEST", "step-2", "step-5"}
    assert commit.find_intact(checkpoints).newest == checkpoints / "step-5"

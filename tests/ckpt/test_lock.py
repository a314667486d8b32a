"""One run per folder, and a dead one doesn't block it."""

from __future__ import annotations

import os
import signal
import socket

import pytest
from ckpt_worker import hold_lock, hold_lock_and_fork

from dictlearn.ckpt.lock import run_lock


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path, start, wait_for):
    first = start(hold_lock, tmp_path / "run", tmp_path / "ready")
    wait_for(tmp_path / "ready")
    expected = (
        f"run_dir={tmp_path / 'run'}: process {first.pid} on {socket.gethostname()} is training "
        "in it; wait for it, stop it, or choose another name=..."
    )
    for _ in range(2):  # being refused changes nothing
        with pytest.raises(ValueError) as caught, run_lock(tmp_path / "run"):
            pass
        assert str(caught.value) == expected


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, start, wait_for, signum):
    first = start(hold_lock, tmp_path / "run", tmp_path / "ready")
    wait_for(tmp_path / "ready")
    os.kill(first.pid, signum)
    first.join()
    assert (tmp_path / "run" / ".lock").exists()
    with run_lock(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_the_same_process_is_refused_too(tmp_path):
    again = run_lock(tmp_path)
    with run_lock(tmp_path), pytest.raises(ValueError, match="this process already trains in it"):
        again.__enter__()


def test_it_is_released_after_an_error(tmp_path):
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    with run_lock(tmp_path):
        pass


def test_the_other_ranks_of_the_run_that_holds_it_are_let_in(tmp_path, monkeypatch):
    with run_lock(tmp_path):
        monkeypatch.setattr("lightning.pytorch.utilities.rank_zero_only.rank", 1)
        with run_lock(tmp_path):
            pass
        assert (tmp_path / ".lock").exists()
        monkeypatch.undo()


def test_a_run_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError), run_lock(tmp_path / "new"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path / "new"):
        (tmp_path / "new" / "config.yaml").touch()
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "config.yaml"]


def test_other_folders_are_free(tmp_path):
    with run_lock(tmp_path / "a"), run_lock(tmp_path / "b"):
        pass


def test_a_garbled_lock_file_still_locks_nobody_out(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff{")
    with run_lock(tmp_path):
        pass


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_lock(tmp_path, start, wait_for):
    first = start(hold_lock_and_fork, tmp_path)
    wait_for(tmp_path / "ready")
    worker = int((tmp_path / "ready").read_text())
    first.kill()
    first.join()
    try:
        os.kill(worker, 0)  # still there
        with run_lock(tmp_path / "run"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)

"""One run per folder, and a dead one doesn't block it."""

from __future__ import annotations

import os
import signal
import socket

import pytest
from ckpt_worker import hold_lock, hold_lock_and_fork, hold_writing

from dictlearn.ckpt.lock import run_lock, writing
from dictlearn.disk.whole import SaveError


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


def test_a_second_writer_is_refused_by_the_verb_of_the_first(tmp_path, start, wait_for):
    place = tmp_path / "run" / "features"
    first = start(hold_writing, place, tmp_path / "ready")
    wait_for(tmp_path / "ready")
    owner = f"process {first.pid} on {socket.gethostname()} (dictlearn features)"
    with pytest.raises(ValueError) as caught, writing(place, "pages"):
        pass
    assert str(caught.value) == f"{place}: {owner} is writing it; wait for it or stop it"
    with writing(place.with_name("report.html"), "report"):
        pass  # something else of the same run
    first.kill()
    first.join()
    with writing(place, "pages"):
        pass
    assert list(place.parent.iterdir()) == []


def test_who_may_not_be_refused_waits(tmp_path, start, wait_for):
    first = start(hold_writing, tmp_path / "report.html", tmp_path / "ready", 0.5)
    wait_for(tmp_path / "ready")
    with writing(tmp_path / "report.html", "train", wait=True):
        assert not first.is_alive() or first.join(10) is None


def test_a_writer_that_is_refused_leaves_no_folder_and_a_closed_place_is_named(tmp_path):
    with pytest.raises(ValueError), writing(tmp_path / "a" / "b" / "c", "export"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="cannot save .*/file/x"), writing(tmp_path / "file/x", "x"):
        pass


def test_a_writer_collects_what_the_dead_left_of_its_place(tmp_path):
    place, dead = tmp_path / "features", 10**30
    for path in (tmp_path / f"features.tmp-{dead}", place / f"store.tmp-{dead}"):
        path.mkdir(parents=True)
    (tmp_path / f"figures.json.tmp-{dead}").touch()
    with writing(place, "pages"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["features", f"figures.json.tmp-{dead}"]
    assert list(place.iterdir()) == []

"""Processes that die: whatever the moment, the disk holds a whole checkpoint."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ckpt_worker import (
    differing,
    final_state,
    run_and_wait,
    run_with_slow_save,
    save_and_die,
    save_forever,
    save_step,
    train,
)
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from dictlearn import stopping
from dictlearn.ckpt import commit
from dictlearn.ckpt.checkpoint_io import DictlearnCheckpointIO
from dictlearn.disk import manifest
from dictlearn.train.callbacks.signals import Interrupted
from dictlearn.verbs.train import begun

LAST = 8


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    run = tmp_path_factory.mktemp("uninterrupted")
    train(run, LAST)
    return final_state(run, LAST)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def temporaries(folder: Path) -> set[str]:
    return {name for name in names(folder) if re.search(r"\.(tmp|old)-", name)}


def assert_whole(checkpoints: Path, at_least: int) -> Path:
    """The newest is intact, no older than `at_least`, its files of one save; garbage goes."""
    newest = commit.find_intact(checkpoints).newest
    assert newest is not None
    step = newest.name.removeprefix("step-")
    assert int(step) >= at_least
    assert (newest / "a").read_text() == (newest / "b").read_text() == step * 1000
    commit.collect_garbage(checkpoints)
    assert temporaries(checkpoints) == set()
    return newest


def test_death_before_any_system_call_of_a_save_leaves_old_or_new(tmp_path, start):
    """Every point of a save that also replaces, moves LATEST and prunes, one after the other."""
    survived = 0
    for at in range(1, 100):
        checkpoints = tmp_path / str(at)
        for step in (1, 2, 3):
            save_step(checkpoints, step)
        process = start(save_and_die, checkpoints, 2, at)  # step-2 again: its old self goes
        process.join()
        newest = assert_whole(checkpoints, at_least=2)
        assert newest.name in ("step-2", "step-3")
        survived += newest.name == "step-2"
        save_step(checkpoints, 4)  # and the next run can save
        assert_whole(checkpoints, at_least=4)
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
    else:
        pytest.fail("a save has more system calls than this test expects")
    assert at > 15 and 1 < survived < at


def test_kill_at_random_moments_leaves_what_was_committed(tmp_path, start, wait_for):
    for seed in range(30):
        checkpoints, done = tmp_path / str(seed), tmp_path / f"{seed}.done"
        process = start(save_forever, checkpoints, seed, done)
        wait_for(done)
        time.sleep(random.Random(seed).random() * 0.08)
        process.kill()
        process.join()
        assert_whole(checkpoints, at_least=int(done.read_text() or 1))


def test_kill_between_steps_then_resume_is_the_uninterrupted_run(
    tmp_path, start, wait_for, uninterrupted
):
    process = start(run_and_wait, tmp_path, 5, 60, LAST, every_steps=2)
    wait_for(tmp_path / "inside")
    process.kill()
    process.join()
    assert names(tmp_path / "checkpoints") == {"LATEST", "step-2", "step-4"}
    train(tmp_path, LAST, resume="auto")
    assert differing(uninterrupted, final_state(tmp_path, LAST)) == []
    handed_out = (tmp_path / "batches.txt").read_text().split()
    assert handed_out == ["0", "1", "2", "3", "4", "1000"] + ["4", "1000", "1001", "1002"]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_signal_finishes_the_step_saves_and_exits(
    tmp_path, start, wait_for, uninterrupted, signum, code, accumulate
):
    process = start(run_and_wait, tmp_path, 3, 0.3, LAST, accumulate=accumulate)
    wait_for(tmp_path / "inside")  # with accumulation: inside the first half of step 3
    os.kill(process.pid, signum)
    process.join()
    assert process.exitcode == code
    assert names(tmp_path / "checkpoints") == {"LATEST", "step-4"}
    train(tmp_path, LAST, resume="auto", accumulate=accumulate)
    if accumulate == 1:
        assert differing(uninterrupted, final_state(tmp_path, LAST)) == []


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_second_signal_exits_at_once(tmp_path, start, wait_for, second):
    process = start(run_and_wait, tmp_path, 5, 60, LAST, every_steps=2)
    wait_for(tmp_path / "inside")
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.1)
    assert process.is_alive()  # it finishes its step first
    os.kill(process.pid, second)
    process.join(timeout=5)
    assert process.exitcode == 128 + second
    assert names(tmp_path / "checkpoints") == {"LATEST", "step-2", "step-4"}
    assert (
        commit.find_intact(tmp_path / "checkpoints").newest == tmp_path / "checkpoints" / "step-4"
    )


def test_a_signal_during_a_save_gives_one_whole_checkpoint(
    tmp_path, start, wait_for, uninterrupted
):
    process = start(run_with_slow_save, tmp_path, 6, 0.3, LAST)
    wait_for(tmp_path / "inside")
    os.kill(process.pid, signal.SIGTERM)
    process.join(timeout=60)
    assert process.exitcode == 143
    assert commit.find_intact(tmp_path / "checkpoints").damaged == ()
    assert names(tmp_path / "checkpoints") == {"LATEST", "step-6", "step-7"}
    train(tmp_path, LAST, resume="auto")
    assert differing(uninterrupted, final_state(tmp_path, LAST)) == []


def test_a_second_signal_during_a_save_leaves_the_one_before(tmp_path, start, wait_for):
    process = start(run_with_slow_save, tmp_path, 4, 60, LAST)
    wait_for(tmp_path / "inside")
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.1)
    process.join(timeout=5)
    assert process.exitcode == 143
    assert len(temporaries(tmp_path / "checkpoints")) == 1
    assert (
        commit.find_intact(tmp_path / "checkpoints").newest == tmp_path / "checkpoints" / "step-2"
    )
    commit.collect_garbage(tmp_path / "checkpoints")
    assert names(tmp_path / "checkpoints") == {"LATEST", "step-2"}


def test_a_program_that_catches_nothing_exits_with_the_code_of_its_signal(tmp_path, wait_for):
    """A process of its own, from the command line to its exit, without a traceback."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; import ckpt_worker\n"
        f"ckpt_worker.run_and_wait(Path({str(tmp_path)!r}), 3, 0.3, {LAST})\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "inside")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "SIGINT: saving after this step, then exit; once more to exit at once" in errors
    assert "Traceback" not in errors
    assert names(tmp_path / "checkpoints") == {"LATEST", "step-4"}


def test_signals_are_the_callers_again_after_training(tmp_path):
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    train(tmp_path / "fine", 2)
    with pytest.raises(RuntimeError, match="mid-step"):
        train(tmp_path / "broken", 2, on_step=fail)
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_schedulers_warning_before_training_stops_it_after_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "_warned", None)
    with stopping.noting_warnings():
        os.kill(os.getpid(), signal.SIGUSR2)  # while libraries are imported, text is read
        with pytest.raises(Interrupted) as stop:
            train(tmp_path, LAST)
    assert stop.value.code == 140
    assert names(tmp_path / "checkpoints") == {"LATEST", "step-1"}


def test_a_job_that_slurm_has_started_again_goes_on(tmp_path, monkeypatch):
    save_step(tmp_path / "checkpoints", 3)
    cfg = OmegaConf.create({"resume": None, "run_dir": str(tmp_path)})
    with pytest.raises(ValueError, match="holds a run already"):
        begun(cfg, tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert begun(cfg, tmp_path).folder == tmp_path / "checkpoints/step-3"


def test_of_several_processes_only_the_first_reads_a_checkpoint_before_it_loads(
    tmp_path, monkeypatch
):
    train(tmp_path, 2)
    hashed = []
    plain = manifest.sha256
    monkeypatch.setattr(manifest, "sha256", lambda path: hashed.append(path) or plain(path))
    cfg = OmegaConf.create({"resume": "auto", "run_dir": str(tmp_path)})
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    folder = begun(cfg, tmp_path).folder
    assert folder is not None and not hashed
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert begun(cfg, tmp_path).folder == folder
    files = len(hashed)
    assert files > 0
    DictlearnCheckpointIO(verified=folder).load_checkpoint(folder)
    assert len(hashed) == files


def fail(step: int) -> None:
    raise RuntimeError("mid-step")

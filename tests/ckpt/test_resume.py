"""What `resume=` means, and what it says when it cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dictlearn.ckpt import commit
from dictlearn.ckpt.resume import resolve_resume


def write(folder: Path) -> None:
    (folder / "weights").write_text("x")


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with the checkpoints of steps 1000, 2000 and 3000."""
    for step in (1000, 2000, 3000):
        folder = tmp_path / "clt-7" / "checkpoints" / f"step-{step}"
        commit.commit(folder, write, latest=True, sort="a test")
    return tmp_path / "clt-7"


def damage(run: Path, *steps: int) -> None:
    for step in steps:
        (run / "checkpoints" / f"step-{step}" / "weights").write_text("y")


def test_null_starts_afresh(run):
    assert resolve_resume(None, run) == (None, ())


def test_auto_takes_the_newest(run):
    assert resolve_resume("auto", run) == (run / "checkpoints" / "step-3000", ())


def test_auto_starts_afresh_where_nothing_was_saved_and_says_so(tmp_path):
    folder, (note,) = resolve_resume("auto", tmp_path / "new")
    assert folder is None
    assert note == f"resume=auto: no checkpoint in {tmp_path}/new/checkpoints yet, starting afresh"
    assert not (tmp_path / "new").exists()


def test_auto_skips_the_damaged_and_says_so(run):
    damage(run, 2000, 3000)
    folder, notes = resolve_resume("auto", run)
    assert folder == run / "checkpoints" / "step-1000"
    assert len(notes) == 2
    assert notes[0] == (
        f"skipped a damaged checkpoint: {run}/checkpoints/step-3000/weights does not match its "
        "manifest (sha256 differs): the file is damaged"
    )


def test_auto_does_not_throw_away_a_run_whose_checkpoints_are_all_damaged(run):
    damage(run, 1000, 2000, 3000)
    with pytest.raises(ValueError, match="resume=auto: no checkpoint in .* is intact: .*step-3000"):
        resolve_resume("auto", run)


@pytest.mark.parametrize("place", [".", "checkpoints", "checkpoints/step-3000"])
def test_a_path_may_be_a_run_or_a_checkpoint(run, place):
    assert resolve_resume(str(run / place), Path("elsewhere")).folder == (
        run / "checkpoints" / "step-3000"
    )


@pytest.mark.parametrize("place", [".", "checkpoints/step-3000"])
def test_a_path_to_damage_is_refused_and_the_intact_one_named(run, place):
    damage(run, 3000)
    resume = str(run / place)
    with pytest.raises(ValueError) as caught:
        resolve_resume(resume, run)
    newest = run / "checkpoints" / "step-2000"
    assert str(caught.value) == (
        f"resume={resume}: {run}/checkpoints/step-3000/weights does not match its manifest (sha256 "
        f"differs): the file is damaged. The newest intact checkpoint is step-2000; "
        f"resume={newest} uses it"
    )


def test_a_truncated_file_is_named_with_its_sizes(run):
    os.truncate(run / "checkpoints" / "step-3000" / "weights", 0)
    with pytest.raises(ValueError, match="weights has 0 bytes where its manifest says 1: the file"):
        resolve_resume(str(run), run)


def test_a_save_that_never_finished_is_no_checkpoint(run):
    folder = run / "checkpoints" / "step-4000"
    folder.mkdir()
    (folder / "weights").touch()
    with pytest.raises(ValueError, match="manifest.json is missing: nothing here was saved comple"):
        resolve_resume(str(folder), run)
    assert resolve_resume("auto", run).folder == run / "checkpoints" / "step-3000"


def test_all_damaged_names_no_way_out(run):
    damage(run, 1000, 2000, 3000)
    with pytest.raises(ValueError, match="No checkpoint of this run is intact"):
        resolve_resume(str(run / "checkpoints" / "step-1000"), run)


def test_paths_that_are_nothing_of_ours(tmp_path):
    with pytest.raises(
        ValueError, match="resume=nowhere: there is no such folder; want auto, a run"
    ):
        resolve_resume("nowhere", tmp_path)
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        resolve_resume(str(tmp_path), tmp_path)
    (tmp_path / "last.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"last.ckpt is a file: .*pickles are never loaded"):
        resolve_resume(str(tmp_path / "last.ckpt"), tmp_path)

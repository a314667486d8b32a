"""What dead processes left goes, what living ones are at work on stays."""

from __future__ import annotations

import os
import time

import pytest

from dictlearn.disk import leftovers

ALIVE = os.getppid()  # some process other than this one


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_own_work_in_progress_stays(tmp_path):
    leftovers.temporary(tmp_path / "store").mkdir()
    leftovers.temporary(tmp_path / "figures.json").touch()
    assert leftovers.collect(tmp_path) == [] and len(names(tmp_path)) == 2


def test_a_number_that_another_process_has_now_keeps_nothing(tmp_path, dead):
    started, machine = leftovers._started(ALIVE), leftovers._machine()
    assert started is not None
    kept = tmp_path / f"step-1.tmp-{ALIVE}-{started}-{machine}"
    for path in (kept, tmp_path / f"step-1.tmp-{ALIVE}-{started - 1}-{machine}"):
        path.mkdir()
    (tmp_path / f"LATEST.tmp-{dead}").touch()
    leftovers.collect(tmp_path)
    assert names(tmp_path) == [kept.name]


def test_another_machines_goes_after_a_day_or_under_a_lock(tmp_path):
    fresh, stale = (tmp_path / f"store.tmp-{pid}-7-01234567" for pid in (1, 2))
    for path in (fresh, stale):
        path.mkdir()
    yesterday = time.time() - 1.1 * leftovers.A_DAY
    os.utime(stale, (yesterday, yesterday))
    leftovers.collect(tmp_path)
    assert names(tmp_path) == [fresh.name]
    leftovers.collect(tmp_path, alone=True)
    assert names(tmp_path) == []


def test_only_those_of_one_name(tmp_path, dead):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tmp-{dead}").mkdir()
    leftovers.collect(tmp_path, "a")
    assert names(tmp_path) == [f"b.tmp-{dead}"]


@pytest.mark.parametrize("act", [leftovers.collect, lambda p: leftovers.recover(p / "store")])
def test_what_was_being_replaced_is_put_back(tmp_path, dead, act):
    (tmp_path / f"store.old-{dead}").mkdir()
    (tmp_path / f"store.old-{dead}" / "store.json").touch()
    act(tmp_path)
    assert names(tmp_path) == ["store"] and names(tmp_path / "store") == ["store.json"]


def test_a_reader_that_cannot_write_reads_the_old_one_where_it_lies(tmp_path, dead, monkeypatch):
    old = tmp_path / f"store.old-{dead}"
    old.mkdir()

    def refuse(*paths):
        raise PermissionError(1, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    assert leftovers.recover(tmp_path / "store") == old


def test_a_folder_that_is_there_is_itself_and_one_that_is_not_stays_away(tmp_path, dead):
    (tmp_path / f"store.tmp-{dead}").mkdir()
    assert leftovers.recover(tmp_path / "store") == tmp_path / "store"
    (tmp_path / "store").mkdir()
    (tmp_path / f"store.old-{dead}").mkdir()
    assert leftovers.recover(tmp_path / "store") == tmp_path / "store"
    assert names(tmp_path / "store") == []
    assert leftovers.recover(tmp_path / "nowhere" / "store") == tmp_path / "nowhere" / "store"

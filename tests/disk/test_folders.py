"""Folders made for what then is not written go again; others stay."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dictlearn.ckpt import lock, signature
from dictlearn.ckpt.commit import commit
from dictlearn.disk import whole
from dictlearn.disk.folders import ensure_folder
from dictlearn.explain import cache
from dictlearn.store.explanations import Explanation, add_explanations


def test_only_what_was_made_and_is_empty_goes(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyboardInterrupt), ensure_folder(tmp_path / "there/a/b"):
        raise KeyboardInterrupt
    with ensure_folder(tmp_path / "there"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    with pytest.raises(ValueError, match="late"), ensure_folder(tmp_path / "there/a/b"):
        (tmp_path / "there/a/file").touch()
        raise ValueError("late")
    assert [path.name for path in (tmp_path / "there/a").rglob("*")] == ["file"]


def test_one_that_is_half_made_goes(tmp_path, monkeypatch):
    mkdir = os.mkdir

    def full(path, mode):
        if Path(path).name == "b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError, match="No space"), ensure_folder(tmp_path / "a/b"):
        pass
    assert not list(tmp_path.iterdir())


def locked(place: Path) -> None:
    with lock.writing(place / "features", "features"):
        whole.write_text(place / "features/partial/0-of-1/x", "text")


WRITERS: dict[str, Callable[[Path], object]] = {
    "file": lambda place: whole.write_text(place / "report.html", "text"),
    "folder": lambda place: commit(
        place / "partial/0-of-1/blocks", lambda new: (new / "x").touch() or None, sort="x"
    ),
    "locked": locked,
    "explanations": lambda place: add_explanations(place, [Explanation(0, 1, "text", "lexical")]),
    "answers": lambda place: cache._append(place / "cache.jsonl", {"key": "a"}),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_a_full_disk_leaves_no_folder(writer, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open

    def refused(path, mode="r", *given, **named):
        if "a" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, mode, *given, **named)

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(OSError, match="No space left"):
        writer(tmp_path / "a/b")
    assert not list(tmp_path.iterdir())


def test_a_key_that_cannot_be_written_leaves_no_folder(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(os, "link", full)
    assert signature.SIGNATURE not in signature.signed({"model": "pico"})
    assert not list(tmp_path.iterdir())

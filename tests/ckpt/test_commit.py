"""A folder is whole or absent, and damage has a name."""

from __future__ import annotations

import builtins
import errno
import json
import os
import resource
from pathlib import Path

import pytest

from dictlearn.ckpt import commit
from dictlearn.ckpt.commit import SaveError


def save(folder: Path, text: str = "x" * 100, latest: bool = True) -> Path:
    def write(temporary: Path) -> None:
        (temporary / "weights").write_text(text)
        (temporary / "more").mkdir()
        (temporary / "more" / "empty").touch()

    commit.commit(folder, write, latest=latest, sort="a test")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_committed_folder_verifies_and_is_the_latest(tmp_path):
    folder = save(tmp_path / "checkpoints" / "step-3")
    manifest = commit.verify(folder)
    assert set(manifest["files"]) == {"weights", "more/empty"}
    assert commit.find_intact(folder.parent).newest == commit.read_latest(folder.parent) == folder
    assert names(folder.parent) == {"step-3", "LATEST"}


def truncate(folder: Path) -> str:
    os.truncate(folder / "weights", 40)
    return "weights has 40 bytes where its manifest says 100: the file is truncated"


def grow(folder: Path) -> str:
    (folder / "weights").write_text("x" * 101)
    return "weights has 101 bytes where its manifest says 100: the file is damaged"


def flip_a_bit(folder: Path) -> str:
    data = bytearray((folder / "weights").read_bytes())
    data[50] ^= 1
    (folder / "weights").write_bytes(data)
    return r"weights does not match its manifest \(sha256 differs\): the file is damaged"


def lose_a_file(folder: Path) -> str:
    (folder / "weights").unlink()
    return "weights is missing: the manifest lists it with 100 bytes"


def link_elsewhere(folder: Path) -> str:
    elsewhere = (folder / "weights").rename(folder.parent / "elsewhere")
    (folder / "weights").symlink_to(elsewhere)
    return "weights is missing"


def lose_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json is missing: nothing here was saved completely"


def garble_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text('{"files": {"weights"')
    return "manifest.json cannot be read as a manifest"


def bomb_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text("[" * 100_000)
    return "manifest.json cannot be read as a manifest"


def retype_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text('{"files": ["weights"], "sequence": 1, "schema": 1}')
    return "manifest.json cannot be read as a manifest"


def use_a_later_schema(folder: Path) -> str:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 2}))
    return "manifest.json has schema 2: this version reads schema 1"


DAMAGES = [
    truncate,
    grow,
    flip_a_bit,
    lose_a_file,
    link_elsewhere,
    lose_the_manifest,
    garble_the_manifest,
    bomb_the_manifest,
    retype_the_manifest,
    use_a_later_schema,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_has_a_name_and_the_one_before_is_the_newest_intact(tmp_path, damage):
    older, newer = save(tmp_path / "step-1"), save(tmp_path / "step-2")
    message = damage(newer)
    with pytest.raises(ValueError, match=message):
        commit.verify(newer)
    found = commit.find_intact(tmp_path)
    assert found.newest == older
    assert len(found.damaged) == 1 and "step-2" in found.damaged[0]


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a//b", ".", "", "a\0b", "x" * 300]
)
def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path, name):
    folder = save(tmp_path / "step-1")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"]["weights"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="file names must stay inside the folder"):
        commit.verify(folder)


@pytest.mark.parametrize("name", ["..", "x.tmp-12", "x.old-12", "a\0b", "x" * 300])
def test_names_that_could_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="not a usable folder name"):
        save(tmp_path / name)
    assert names(tmp_path) == set()


def test_a_latest_that_points_outside_points_nowhere(tmp_path):
    save(tmp_path / "checkpoints" / "step-1")
    save(tmp_path / "step-1")
    (tmp_path / "checkpoints" / "LATEST").write_text("../step-1\n")
    assert commit.read_latest(tmp_path / "checkpoints") is None


def fail_to_write_after(monkeypatch, limit: int, code: int) -> None:
    """Every file opened for writing takes `limit` more bytes in all."""
    left = limit
    real_open = builtins.open

    def fake_open(path, mode="r", *arguments, **options):
        file = real_open(path, mode, *arguments, **options)
        if "w" not in mode:
            return file
        real_write = file.write

        class Disk:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def write(self, data):
                nonlocal left
                left -= len(data)
                if left < 0:
                    raise OSError(code, os.strerror(code))
                return real_write(data)

            def flush(self):
                file.flush()

            def fileno(self):
                return file.fileno()

        return Disk()

    monkeypatch.setattr(builtins, "open", fake_open)


@pytest.mark.parametrize("limit", [0, 1, 50, 150, 250, 400])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_disk_that_refuses_leaves_the_old_state_alone(tmp_path, monkeypatch, limit, code):
    save(tmp_path / "step-1")

    def write(folder: Path) -> None:
        for name in "ab":
            with open(folder / name, "w") as file:
                file.write("y" * 100)

    with monkeypatch.context() as patched, pytest.raises(SaveError) as caught:
        fail_to_write_after(patched, limit, code)
        commit.commit(tmp_path / "step-2", write, sort="a test")
    assert caught.value.errno == code
    assert str(caught.value) == (
        f"cannot save {tmp_path}/step-2: {os.strerror(code)}; what was saved before is untouched"
    )
    assert commit.find_intact(tmp_path).newest == tmp_path / "step-1"
    assert names(tmp_path) == {"step-1", "LATEST"}


def test_the_kernel_refusing_at_a_byte_leaves_the_old_state_alone(tmp_path):
    save(tmp_path / "step-1")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(SaveError, match="File too large; what was saved before is untouched"):
            save(tmp_path / "step-2", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == {"step-1", "LATEST"}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match=r"file/step-1: File exists \(.*/file\);"):
        save(tmp_path / "file" / "step-1")
    with pytest.raises(SaveError, match="something that is not a folder has this name"):
        save(tmp_path / "file")
    assert names(tmp_path) == {"file"}


def test_permission_denied_is_named(tmp_path, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "mkdir", denied)  # root, who runs containers, is never denied
    with pytest.raises(SaveError, match=f"cannot save {tmp_path}/step-1: Permission denied"):
        save(tmp_path / "step-1")


def test_a_writer_that_raises_leaves_nothing(tmp_path):
    def write(folder: Path) -> None:
        (folder / "a").touch()
        raise TypeError("no")

    with pytest.raises(TypeError):
        commit.commit(tmp_path / "step-1", write, sort="a test")
    assert names(tmp_path) == set()


def test_a_folder_may_be_saved_over_itself(tmp_path):
    folder = save(tmp_path / "dictionary", "old")

    def write(temporary: Path) -> None:
        (temporary / "weights").write_text((folder / "weights").read_text() + " and new")

    commit.commit(folder, write, sort="a test")
    commit.verify(folder)
    assert (folder / "weights").read_text() == "old and new"
    assert not (folder / "more").exists()
    assert names(tmp_path) == {"dictionary", "LATEST"}


def test_a_replacement_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder = save(tmp_path / "dictionary", "old")
    rename = os.rename

    def refuse_the_new(source, target):
        if ".tmp-" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_the_new)
    with pytest.raises(SaveError):
        save(folder, "new")
    assert (folder / "weights").read_text() == "old"
    assert names(tmp_path) == {"dictionary", "LATEST"}


def test_newest_is_what_was_saved_last_not_the_highest_step(tmp_path):
    for step in (1, 2, 3, 10):
        save(tmp_path / f"step-{step}")
    save(tmp_path / "step-2")  # the run went back to step 1 and took another way
    assert commit.find_intact(tmp_path).newest == tmp_path / "step-2"
    commit.prune(tmp_path, keep=2)
    assert names(tmp_path) == {"LATEST", "step-2", "step-10"}


def test_pruning_spares_the_newest_the_latest_and_the_pinned(tmp_path):
    for step in range(1, 7):
        save(tmp_path / f"step-{step}")
    commit.pin(tmp_path / "step-2")
    commit.set_latest(tmp_path / "step-3")
    deleted = commit.prune(tmp_path, keep=2)
    assert names(tmp_path) == {"LATEST", "step-2", "step-3", "step-5", "step-6"}
    assert {path.name for path in deleted} == {"step-1", "step-4"}
    for step in (2, 3, 5, 6):
        commit.verify(tmp_path / f"step-{step}")


def test_pruning_survives_a_folder_that_cannot_be_deleted(tmp_path, monkeypatch, caplog):
    for step in range(1, 4):
        save(tmp_path / f"step-{step}")
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", lambda *paths: (_ for _ in ()).throw(OSError(16, "busy")))
        assert commit.prune(tmp_path, keep=1) == []
    assert "could not delete the old checkpoint" in caplog.text
    assert commit.find_intact(tmp_path).newest == tmp_path / "step-3"


def test_garbage_of_dead_processes_goes_and_that_of_living_ones_stays(tmp_path, start):
    import time

    save(tmp_path / "step-1")
    dead = start(time.sleep, 0)
    dead.join()
    alive = start(time.sleep, 60)
    for pid in (dead.pid, os.getpid(), alive.pid, 10**30):
        (tmp_path / f"step-9.tmp-{pid}").mkdir()
        (tmp_path / f"LATEST.tmp-{pid}").touch()
    (tmp_path / "notes.tmp").touch()
    commit.collect_garbage(tmp_path)
    kept = {"step-1", "LATEST", "notes.tmp", f"step-9.tmp-{alive.pid}", f"LATEST.tmp-{alive.pid}"}
    assert names(tmp_path) == kept


def test_a_folder_lost_while_it_was_replaced_comes_back(tmp_path):
    folder = save(tmp_path / "dictionary")
    folder.rename(tmp_path / f"dictionary.old-{10**30}")
    commit.collect_garbage(tmp_path)
    commit.verify(folder)


def test_a_checkpoint_lost_while_it_was_replaced_is_the_newest(tmp_path):
    save(tmp_path / "step-1")
    save(tmp_path / "step-2").rename(tmp_path / f"step-2.old-{10**30}")
    assert commit.find_intact(tmp_path).newest == tmp_path / "step-2"


def test_what_a_temporary_folder_holds_is_never_newest(tmp_path):
    save(tmp_path / "step-1")
    save(tmp_path / "step-2").rename(tmp_path / "step-2.tmp-1")
    assert commit.find_intact(tmp_path).newest == tmp_path / "step-1"
    assert commit.find_intact(tmp_path / "nowhere").newest is None

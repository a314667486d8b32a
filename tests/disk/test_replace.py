"""Nothing is deleted that we did not write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dictlearn.ckpt.commit import commit
from dictlearn.disk.replace import check_replaceable
from dictlearn.disk.whole import SaveError

SORT = "an export as hub"


def save(folder: Path, sort: str = SORT, overwrite: bool | None = False) -> Path:
    def write(temporary: Path) -> None:
        (temporary / "README.md").write_text("the card")
        (temporary / "inner").mkdir()
        (temporary / "inner" / "weights").touch()

    commit(folder, write, sort=sort, overwrite=overwrite)
    return folder


def all_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def someone_elses(folder: Path) -> str:
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    return "it holds thesis.tex, which was not written here by dictlearn"


def another_sort(folder: Path) -> str:
    save(folder, "a dictionary")
    return "it is a dictionary, not an export as hub"


def a_file_more(folder: Path) -> str:
    save(folder)
    (folder / "inner" / "notes").touch()
    return "it holds inner/notes, which was not written here by dictlearn"


def a_link(folder: Path) -> str:
    save(folder)
    (folder / "inner" / "elsewhere").symlink_to("/")
    return "it holds inner/elsewhere"


def a_manifest_that_cannot_be_read(folder: Path) -> str:
    save(folder)
    (folder / "manifest.json").write_text("{")
    return "it can't be told whether all in it is ours"


OTHERS = [someone_elses, another_sort, a_file_more, a_link, a_manifest_that_cannot_be_read]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.__name__)
def test_what_we_did_not_write_stays(tmp_path, other):
    folder = tmp_path / "notes"
    sentence = other(folder)
    before = all_of(folder)
    for overwrite, hint in ((False, "overwrite=true, which deletes"), (None, "another folder")):
        with pytest.raises(SaveError) as caught:
            save(folder, overwrite=overwrite)
        said = str(caught.value)
        assert said.startswith(f"cannot save {folder}: {sentence}") and hint in said
    assert all_of(folder) == before and os.listdir(tmp_path) == ["notes"]
    save(folder, overwrite=True)
    assert all_of(folder) == {"README.md", "inner", "inner/weights", "manifest.json"}


def test_our_own_an_empty_and_an_absent_folder_are_written(tmp_path):
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        save(tmp_path / "empty")
    (tmp_path / "empty" / "PINNED").touch()
    save(tmp_path / "empty")


def test_an_edit_counts_where_the_caller_says_so(tmp_path):
    folder = save(tmp_path / "hub")
    os.utime(folder / "README.md")  # touched, and the same
    check_replaceable(folder, SORT, edits=True)
    (folder / "README.md").write_text("my card!")
    check_replaceable(folder, SORT)
    with pytest.raises(SaveError, match="its README.md was changed since dictlearn wrote it"):
        check_replaceable(folder, SORT, False, edits=True)


@pytest.mark.parametrize(
    ("made", "named", "sentence"),
    [
        ("a/checkpoints/step-1", "a", "it is a run"),
        ("a/checkpoints/step-1", ".", "it holds the run a"),
        ("a/checkpoints/step-1", "a/checkpoints", "it is part of a run"),
        ("a/checkpoints/step-1", "a/checkpoints/step-1", "it is part of a run"),
        ("b/dictionary", "b", "it is a run"),
    ],
)
def test_not_even_overwrite_deletes_a_run(tmp_path, made, named, sentence):
    runs = tmp_path / "runs"
    save(runs / made, "a checkpoint")
    (runs / made.partition("/")[0] / "config.yaml").write_text("seed: 0\nrun_dir: runs/b\n")
    before = all_of(runs)
    with pytest.raises(SaveError, match=f"{sentence}, and is not replaced"):
        save(runs / named, overwrite=True)
    assert all_of(runs) == before


def test_not_even_overwrite_deletes_where_one_is(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for overwrite in (True, False):  # what would not help is not offered
        hint = "and is not replaced; choose another folder; what was"
        with pytest.raises(SaveError, match=f"a: it holds the folder you are in, {hint}"):
            check_replaceable(tmp_path / "a", SORT, overwrite)
        with pytest.raises(SaveError, match=rf"\.: it is the folder you are in, {hint}"):
            check_replaceable(Path("."), SORT, overwrite)  # empty, and still not to be replaced
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "mail").mkdir(parents=True)
    with pytest.raises(SaveError, match="it is your home folder"):
        check_replaceable(tmp_path / "home", SORT, True)

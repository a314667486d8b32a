"""A file is whole or absent, and what could not be saved has a name."""

from __future__ import annotations

import errno
import os
import resource
import tempfile

import pytest
import torch
from safetensors.torch import save_file

from dictlearn.disk import leftovers
from dictlearn.disk.whole import SaveError, replacing, write_bytes, write_json, write_text


@pytest.fixture
def small_disk():
    """Files of at most 5000 bytes, as the kernel has it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_is_replaced_and_its_folder_made(tmp_path):
    path = tmp_path / "a" / "figures.json"
    for value in ({"x": 1}, {"x": [2, "\N{SNOWMAN}"]}):
        write_json(path, value)
    assert path.read_text() == '{\n "x": [\n  2,\n  "\\u2603"\n ]\n}\n'
    assert os.listdir(path.parent) == ["figures.json"]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="this system has none")
def test_a_disk_in_memory_is_a_disk_though_it_lies_among_devices():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = os.path.join(folder, "a", "said")
        write_text(path, "old")
        with pytest.raises(SaveError), replacing(path) as place:
            place.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with open(path) as file:
            assert file.read() == "old"


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path, small_disk):
    path = tmp_path / "report.html"
    write_text(path, "old")
    with pytest.raises(SaveError) as caught:
        write_bytes(path, b"x" * 10_000)
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value) == (
        f"cannot save {path}: File too large; what was saved before is untouched"
    )
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["report.html"]


def test_a_full_disk_under_safetensors_is_an_error_of_the_disk(tmp_path, small_disk):
    path = tmp_path / "shard.safetensors"
    refused = pytest.raises(SaveError, match="cannot save .*shard.safetensors: File too large")
    with refused, replacing(path) as place:
        save_file({"a": torch.zeros(5000)}, place)
    assert os.listdir(tmp_path) == []


def test_a_writer_that_raises_leaves_what_was_there(tmp_path):
    path = tmp_path / "graph.json"
    write_text(path, "old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    with pytest.raises(KeyError), replacing(path) as place:
        place.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["graph.json"]


def test_a_place_that_is_no_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "inside"):
        with pytest.raises(SaveError, match=f"cannot save {path}: "):
            write_text(path, "x")
    with pytest.raises(SaveError, match="this is a folder"):
        write_text("", "x")


def test_a_link_is_followed_and_a_stream_is_written(tmp_path, capfd):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    write_text(tmp_path / "link", "here")
    assert (tmp_path / "real" / "file").read_text() == "here"
    assert (tmp_path / "link").is_symlink()
    write_text("/dev/stdout", "said")
    assert capfd.readouterr().out == "said"


def test_what_a_killed_process_left_of_a_file_goes_when_it_is_written_again(tmp_path, dead):
    path = tmp_path / "figures.json"
    for name in ("figures.json", "other.json"):
        (tmp_path / f"{name}.tmp-{dead}").touch()
    write_text(path, "whole")
    assert sorted(os.listdir(tmp_path)) == ["figures.json", f"other.json.tmp-{dead}"]


def test_a_name_too_long_for_an_ending_is_written_too(tmp_path):
    path = tmp_path / ("\N{SNOWMAN}" * 84)  # 252 bytes of 255
    write_text(path, "x")
    assert os.listdir(tmp_path) == [path.name]
    assert len(os.fsencode(leftovers.temporary(path).name)) <= 255

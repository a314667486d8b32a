"""Processes that want the same tokens at once: one makes them."""

from __future__ import annotations

import fcntl

import pytest
import torch

from dictlearn.sources import token_cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return token_cache.cache_folder()


def test_who_has_waited_reads_what_the_other_made(folder, monkeypatch):
    tokens = {"tokens": torch.arange(5)}
    waits = fcntl.lockf

    def another_makes_it(file, operation):
        monkeypatch.setattr(fcntl, "lockf", waits)
        token_cache.cached("text", lambda: tokens)

    monkeypatch.setattr(fcntl, "lockf", another_makes_it)
    found = token_cache.cached("text", lambda: pytest.fail("made twice"))
    assert torch.equal(found["tokens"], tokens["tokens"])
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_a_failure_leaves_no_lock(folder):
    def fail():
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        token_cache.cached("text", fail)
    assert not folder.exists()

"""Stores at addresses that fsspec knows: what is there is what a folder would hold."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch

from dictlearn.activations import layout, remote
from dictlearn.activations.formats import open_store
from dictlearn.activations.formats.dictlearn import Store
from dictlearn.activations.place import LocalPlace, opened
from dictlearn.activations.remote import RemotePlace
from dictlearn.sources import row_stream
from dictlearn.sources.cached import CachedSource
from dictlearn.sources.caching import begin, finish
from tests.activations.made import SITES, about, made, model, writer
from tests.activations.test_store import content
from tests.sources.test_live import Numbered, equal


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    monkeypatch.setattr(row_stream, "LEAST_RUN", 8)
    address = f"memory://{uuid4().hex}/acts"
    yield address


def filled(address: str, shards: range = range(5)) -> Store:
    """Writes what `made` writes into a folder."""
    place, one = opened(address), about()
    begin(place, one)
    for shard in shards:
        writer(place, one).write(shard)
    store = Store.opened(place)
    if len(store.records) == one.shards:
        finish(place, one, one.shards, store.statistics())
    return store


def source(path: str, **options: Any) -> CachedSource:
    sites: Any = {"sources": SITES[:1], "targets": SITES[2:], "windows": Numbered()}
    settings: dict[str, Any] = {"batch_tokens": 25, "seed": 0, "open_shards": 2, **options}
    return CachedSource(model(), path=path, **sites, **settings)


def test_what_is_there_and_what_is_read_is_what_a_folder_has(tmp_path, address):
    made(tmp_path / "s")
    filled(address, range(3))
    filled(address, range(2, 5))  # another process
    fs, root = fsspec.core.url_to_fs(address)
    local = content(tmp_path / "s")
    there = {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}
    assert there == local
    near, far = source(str(tmp_path / "s")), source(address)
    assert all(equal(near.next_batch(), far.next_batch()) for _ in range(20))
    assert isinstance(opened(f"file://{tmp_path}/s"), LocalPlace)


def test_no_more_shards_than_are_open_lie_here(address, monkeypatch, tmp_path):
    monkeypatch.setattr(remote.tempfile, "tempdir", str(tmp_path))
    filled(address)
    stream = source(address)
    for _ in range(20):
        stream.next_batch()
        assert sum(path.is_file() for path in tmp_path.rglob("*")) <= 2  # those being fetched
    del stream


def test_what_goes_wrong_is_tried_again_then_named(address, monkeypatch):
    filled(address)
    failures: list[int] = []

    class Flaky:
        def __init__(self, fs: Any, most: int):
            self._fs, self._left = fs, most

        def __getattr__(self, name: str) -> Any:
            if name == "get_file" and self._left > 0:
                self._left -= 1
                failures.append(1)
                raise ConnectionResetError("the peer has gone")
            return getattr(self._fs, name)

    for most, fails in {4: False, 5: True}.items():
        place = opened(address)
        assert isinstance(place, RemotePlace)
        store = Store.opened(place)
        monkeypatch.setattr(place, "_fs", Flaky(place._fs, most))
        if not fails:
            assert len(store.shard(0, SITES).tokens_N)
            continue
        with pytest.raises(
            OSError, match=f"{address}/shards/000000.safetensors: 5 requests failed, "
        ):
            store.shard(0, SITES)
    assert len(failures) == 9


@pytest.mark.parametrize("how", ["truncated", "gone", "flipped"])
def test_damaged_objects_are_named_or_left_out(address, how, caplog):
    filled(address)
    fs, root = fsspec.core.url_to_fs(address)
    path = f"{root}/{layout.data_name(2)}"
    data = fs.cat_file(path)
    if how == "gone":
        fs.rm(path)
    else:
        fs.pipe_file(path, data[:-5] if how == "truncated" else data[:-5] + b"\7" + data[-4:])
    with pytest.raises(ValueError, match=f"on_damage=stop: {address}/shards/000002.safetensors"):
        stream = source(address)
        for _ in range(20):
            stream.next_batch()
    with caplog.at_level(logging.WARNING):
        stream = source(address, on_damage="skip")
        tokens = torch.cat([stream.next_batch().tokens_N for _ in range(20)])
    assert "000002.safetensors" in caplog.text and len(set(tokens.tolist())) > 100


def test_addresses_that_lead_nowhere_are_refused():
    with pytest.raises(ValueError, match="^nowhere://x: "):
        opened("nowhere://x")
    with pytest.raises(ValueError, match="^source.path=memory://not/there: has no activations"):
        open_store(opened("memory://not/there"))

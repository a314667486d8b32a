"""Shards on disk: pure functions of what the store is of, whole or absent, exact in their statistics."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dictlearn.activations import layout
from dictlearn.activations.formats import open_store
from dictlearn.activations.formats.dictlearn import Store
from dictlearn.activations.packing import bytes_per_row, packed, unpacked
from dictlearn.activations.place import LocalPlace
from dictlearn.activations.protocol import Origin
from dictlearn.lm.capture import capture
from dictlearn.sources.caching import begin, finish
from tests.activations.made import SITES, about, made, model, writer
from tests.damages import make_fit
from tests.sources.test_live import BOS, CONTEXT, FIRST_WORD, WINDOWS, WORDS, Numbered


def content(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("order", ["shuffled", "windows"])
def test_rows_are_what_the_model_computes_there(tmp_path, order):
    store = made(tmp_path / "s", order=order)
    assert store.info.rows == len(WORDS) and store.info.shuffled == (order == "shuffled")
    seen = []
    for number, rows in enumerate(store.info.shard_rows):
        shard = store.shard(number, SITES)
        word = shard.tokens_N - FIRST_WORD
        window, position = word // CONTEXT, word % CONTEXT
        assert torch.equal(position, shard.positions_N)
        values = capture(model(), Numbered().window_batch(window), SITES)
        for site in SITES:
            there = values[site][torch.arange(rows), position]
            torch.testing.assert_close(shard.rows(site, 0, rows), there)
            assert torch.equal(shard.rows(site, 2, 5), shard.rows(site, 0, rows)[2:5])
        seen.append(shard.tokens_N)
        assert bool((window.diff() < 0).any()) == (order == "shuffled") or order == "windows"
    assert torch.cat(seen).sort().values.tolist() == WORDS.tolist()


def test_whoever_writes_a_shard_writes_the_same_file(tmp_path):
    made(tmp_path / "whole")
    for shards in (range(1, 5, 2), range(0, 5, 2)):  # two processes, and one that came later
        made(tmp_path / "parts", shards)
    parts = Store.opened(LocalPlace(tmp_path / "parts"))
    finish(parts.place, parts.about, 5, parts.statistics())
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


@pytest.mark.parametrize("died", ["000002.safetensors", "000002.statistics", "000002.json"])
def test_a_writer_that_dies_leaves_whole_shards(tmp_path, died, monkeypatch):
    made(tmp_path / "whole")
    write = LocalPlace.write

    def dies(self: LocalPlace, name: str, how: Any) -> None:
        if died in name:
            raise KeyboardInterrupt
        write(self, name, how)

    with monkeypatch.context() as patch:
        patch.setattr(LocalPlace, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "s")
    there = Store.opened(LocalPlace(tmp_path / "s"))
    assert sorted(there.records) == [0, 1] and not there.absent
    made(tmp_path / "s")
    assert content(tmp_path / "s") == content(tmp_path / "whole")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_statistics_are_those_of_what_is_stored(tmp_path, dtype):
    store = made(tmp_path / "s", dtype=dtype)
    merged = store.statistics()
    written = load_file(tmp_path / "s" / layout.STATISTICS)
    for site in SITES:
        shards = [store.shard(n, [site]) for n in range(5)]
        values = [shard.rows(site, 0, len(shard.tokens_N)) for shard in shards]
        exact = torch.cat(values).double()
        assert merged[site].rows == len(exact)
        torch.testing.assert_close(merged[site].mean_D, exact.mean(0), rtol=1e-12, atol=1e-14)
        variance = exact.var(0, correction=0)
        torch.testing.assert_close(merged[site].variance_D, variance, rtol=1e-12, atol=1e-14)
        assert merged[site].norm == pytest.approx(float(exact.norm(dim=1).mean()), rel=1e-12)
        assert torch.equal(written[f"{site}.mean"], merged[site].mean_D)


def test_eight_bits_lose_little_also_beside_an_outlier():
    x_ND = torch.randn(500, 200)  # a last group of 8
    x_ND[:, 3] *= 100
    tensors = packed(x_ND, "int8")
    assert {end: list(t.shape) for end, t in tensors.items()} == {
        "": [500, 200],
        ".scale": [500, 4],
    }
    error = unpacked(tensors[""], tensors[".scale"]).float() - x_ND
    ordinary = [i for i in range(200) if i != 3]
    assert error[:, 64:].square().mean() < 2e-4
    assert error[:, ordinary].square().sum() / x_ND.square().sum() < 2e-3
    assert torch.equal(unpacked(*packed(torch.zeros(2, 64), "int8").values()), torch.zeros(2, 64))
    assert bytes_per_row(200, "int8") == 208 and bytes_per_row(200, "bfloat16") == 400


def test_special_tokens_have_rows_where_they_are_kept(tmp_path):
    store = made(tmp_path / "s", special="keep")
    tokens = torch.cat([store.shard(n, []).tokens_N for n in range(5)])
    assert int((tokens == BOS).sum()) == WINDOWS
    assert len(tokens) == WINDOWS * CONTEXT  # a model without a tokenizer has no pads either


def test_numbers_that_a_dtype_cannot_hold_are_refused(tmp_path, monkeypatch):
    place, one = LocalPlace(tmp_path / "s"), about(dtype="float16")
    large = replace(model(), model=model().model)
    own = writer(place, one, large)
    read = own._reader.read

    def beyond(*args: Any) -> Any:
        reading = read(*args)
        return reading._replace(values={site: v * 1e30 for site, v in reading.values.items()})

    monkeypatch.setattr(own._reader, "read", beyond)
    with pytest.raises(ValueError, match="dtype=float16: resid_post.0 has values beyond"):
        own.write(0)
    assert not place.listed(layout.SHARDS)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sites": SITES[:1]}, r"have sites=\[resid_post.0,mlp_in.1,mlp_out.1\], these would have"),
        ({"seed": 1}, "have seed=0, these would have 1"),
        ({"dtype": "int8"}, "have dtype='float32', these would have 'int8'"),
        ({"origin": Origin(text="other")}, "have text=None, these would have 'other'"),
    ],
)
def test_a_store_of_something_else_is_not_gone_on_with(tmp_path, options, sentence):
    made(tmp_path / "s", range(1))
    before = content(tmp_path / "s")
    with pytest.raises(ValueError, match=f"^output=.*{sentence}"):
        begin(LocalPlace(tmp_path / "s"), about(**options))
    assert content(tmp_path / "s") == before


def test_a_place_without_a_store_is_named(tmp_path):
    with pytest.raises(ValueError, match="^source.path=.*has no activations in a known format"):
        open_store(LocalPlace(tmp_path))
    with pytest.raises(ValueError, match="^source.format=x: want auto, .*dictlearn"):
        open_store(LocalPlace(tmp_path), "x")


ODD = [None, True, -1, 0, 1 << 60, 1e9, "", "../x", [], {}, ["a", "a"], ["tokens"], "x" * 5000]


@pytest.mark.parametrize("name", ["sites", "width", "dtype", "windows", "shard_windows", "origin"])
def test_a_store_that_says_nonsense_is_refused(tmp_path, name):
    place = LocalPlace(tmp_path / "s")
    begin(place, about())
    path = tmp_path / "s" / layout.ABOUT
    said = json.loads(path.read_text())
    for value in ODD:
        path.write_text(json.dumps({**said, name: value}))
        with pytest.raises(ValueError, match=f"^{path}.* has .*") as refused:
            Store.opened(place)
        assert name in str(refused.value) and len(str(refused.value)) < 300


def test_a_shard_that_is_gone_is_missed_also_at_the_end(tmp_path):
    made(tmp_path / "s")
    (tmp_path / "s" / layout.record_name(4)).unlink()
    absent = Store.opened(LocalPlace(tmp_path / "s")).info.absent
    assert list(absent) == [4] and "000004.json is missing" in absent[4]


@pytest.mark.parametrize(
    "hostile",
    [
        {"tokens": torch.full((42,), 10**6, dtype=torch.int32)},
        {"positions": torch.full((42,), -1, dtype=torch.int32)},
        {"mlp_in.1": torch.zeros(42, 17)},
        {"mlp_in.1": torch.zeros(42, 16, dtype=torch.float64)},
        {"more": torch.zeros(1)},
        {"mlp_in.1": None},
        {"kept": torch.full((7, 8), 2, dtype=torch.uint8)},
        {"kept": torch.zeros(7, 8, dtype=torch.uint8)},
        {"window_tokens": torch.full((7, 8), -5, dtype=torch.int32)},
        {"window_tokens": torch.full((7, 8), 20, dtype=torch.int32)},
    ],
    ids=str,
)
def test_a_shard_with_a_hash_that_fits_is_refused_all_the_same(tmp_path, hostile):
    store = made(tmp_path / "s", range(1), order="windows")
    path = tmp_path / "s" / layout.data_name(0)
    tensors = load_file(path)
    rows = len(tensors["tokens"])
    for name, tensor in hostile.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor[:rows] if len(tensor) == 42 else tensor
    save_file(tensors, path)
    fit(path)
    with pytest.raises(
        ValueError, match=r"000000\.(safetensors is damaged|json has bytes)"
    ) as refused:
        Store.opened(store.place).shard(0, SITES)
    assert "\n" not in str(refused.value)


def fit(path: Path) -> None:
    """Makes the record fit what the data is now."""
    make_fit(path, path.parents[1])

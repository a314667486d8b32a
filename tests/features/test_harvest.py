"""A harvest of every kind against what the model and the dictionary say token by token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dictlearn.features import reading
from dictlearn.features.harvest import PARTIAL
from dictlearn.lm.capture import capture
from dictlearn.store.features import FeatureStore
from tests.features.harvested import (
    CONTEXT,
    KINDS,
    SETTINGS,
    dictionary_of,
    harvest_of,
    pico,
    windows,
)


@torch.no_grad()
def activations(kind: str) -> Tensor:
    """[W, P, S, F]; 0 at special tokens."""
    dictionary, text = dictionary_of(kind), windows()
    tokens = text.window_batch(range(len(text)))
    acts = capture(pico(), tokens, dictionary.sources)
    x_NSD = torch.stack([acts[site].flatten(0, 1) for site in dictionary.sources], 1)
    code = dictionary.encode(x_NSD).dense()
    return code.view(*tokens.shape, *code.shape[1:]) * text.kept(range(len(text)))[..., None, None]


def made(kind: str, folder: Path, processes: int = 1, **settings: object) -> FeatureStore:
    harvest = harvest_of(kind, folder, replace(SETTINGS, **settings))  # type: ignore[arg-type]
    harvest.finish([harvest.read(rank, processes) for rank in range(processes)])
    return FeatureStore(folder)


def same(a: FeatureStore, b: FeatureStore) -> bool:
    """The bytes of every file but the manifest."""
    names = sorted(path.name for path in a.path.iterdir())
    assert names == sorted(path.name for path in b.path.iterdir())
    return all(
        (a.path / name).read_bytes() == (b.path / name).read_bytes()
        for name in names
        if name != "manifest.json"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_store_says_what_the_dictionary_does(kind: str, tmp_path: Path):
    store, values_WPSF = made(kind, tmp_path), activations(kind)
    info, text = store.info, windows()
    assert (info.kind, info.windows) == (dictionary_of(kind).kind, len(text))
    assert info.tokens == int(text.kept(range(len(text))).sum())
    assert info.documents == 40 and info.model == "pico" and info.data == {"x": [1]}
    assert not (tmp_path / "features" / PARTIAL).exists()
    assert bool(store.statistics["dead"][:, 1].all())
    for feature in list(store)[:: max(1, len(store) // 40)]:
        values_WP = values_WPSF[:, :, feature.source, feature.index]
        positive = values_WP[values_WP > 0]
        assert feature.count == len(positive) == sum(feature.histogram)
        if feature.dead:
            assert feature.examples == () and feature.maximum == 0
            continue
        assert feature.maximum == pytest.approx(float(positive.max()), rel=1e-5)
        assert feature.mean == pytest.approx(float(positive.mean()), rel=1e-5)
        strongest = values_WP.amax(1).sort(descending=True).values
        strongest = strongest[strongest > 0][: SETTINGS.examples].tolist()
        assert [e.activation for e in feature.top] == pytest.approx(strongest, rel=1e-3)
        for example in feature.examples:
            shown = slice(example.start, example.start + len(example.tokens))
            expected = values_WP[example.window, shown].tolist()
            assert example.activations == pytest.approx(expected, rel=2e-3, abs=1e-6)
            assert example.tokens == tuple(text.window_batch([example.window])[0, shown].tolist())
            place = example.start + example.peak
            assert example.document == int(text.documents([example.window])[0, place])
        limits = [[e.activation for e in drawn] for drawn in feature.by_interval if drawn]
        assert all(max(a) <= min(b) * 1.001 for a, b in zip(limits, limits[1:], strict=False))
        drawn = feature.count - len(feature.top)
        at_most = min(drawn, SETTINGS.drawn)
        assert at_most - len(feature.top) <= sum(map(len, feature.by_interval)) <= at_most


@pytest.mark.parametrize("kind", ["clt", "molt"])
def test_processes_and_buffers_and_blocks_dont_show(kind: str, tmp_path: Path):
    one = made(kind, tmp_path / "one")
    assert same(one, made(kind, tmp_path / "three", processes=3))
    assert same(one, made(kind, tmp_path / "large", buffer=10**6))
    other = made(kind, tmp_path / "block", block=7)
    assert other.info.rows == 7 and list(other) == list(one)


def test_a_small_sample_keeps_fewer_windows(tmp_path: Path):
    """And the same ones, however many processes read."""
    one = made("sae", tmp_path / "one", sample_tokens=10_000, sample_firings=800)
    assert same(one, made("sae", tmp_path / "two", 2, sample_tokens=10_000, sample_firings=800))
    rows = one.sampled_windows().tolist()
    assert rows == list(range(0, one.info.windows, rows[1])) and rows[1] > 1
    values = activations("sae")
    for index in range(one.info.n_features):
        places, found = one.sampled_firings(0, index)
        kept = torch.zeros(len(values), dtype=torch.bool)
        kept[rows] = True
        expected = values[:, :, 0, index].masked_fill(~kept[:, None], 0).flatten()
        assert places.tolist() == expected.nonzero()[:, 0].tolist()
        assert torch.allclose(found, expected[places], rtol=1e-4)


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_pass_cut_short_goes_on(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = replace(SETTINGS, buffer=400)  # about every batch
    whole = made("plt", tmp_path / "whole", buffer=400)
    harvest, reads = harvest_of("plt", tmp_path / "cut", settings), []
    original = reading.Reading._read

    def until(self: reading.Reading, batch: int) -> None:
        if len(reads) == after:
            raise KeyboardInterrupt
        reads.append(batch)
        original(self, batch)

    monkeypatch.setattr(reading.Reading, "_read", until)
    with pytest.raises(KeyboardInterrupt):
        harvest.read(0, 1)
    assert not (tmp_path / "cut/features/store").exists()
    monkeypatch.setattr(reading.Reading, "_read", original)
    resumed = harvest_of("plt", tmp_path / "cut", settings)
    found = reading.Reading(
        resumed.dictionary,
        pico(),
        resumed.text,
        settings,
        tmp_path / "cut/features" / PARTIAL / "0-of-1",
        reading.fingerprint(resumed.dictionary, pico(), resumed.text, settings),
    )
    assert 0 < found.done <= after
    resumed.finish([resumed.read(0, 1)])
    assert same(whole, FeatureStore(tmp_path / "cut"))


def test_the_state_of_another_pass_is_dropped(tmp_path: Path):
    harvest_of("sae", tmp_path, replace(SETTINGS, examples=2)).read(0, 1)
    assert same(made("sae", tmp_path), made("sae", tmp_path / "anew"))
    harvest_of("sae", tmp_path / "d").read(0, 1)
    state = tmp_path / "d/features" / PARTIAL / "0-of-1/state/block-0.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"\x01")  # a damaged one too
    assert same(made("sae", tmp_path / "d"), FeatureStore(tmp_path))


def test_fewer_tokens_are_spread_over_the_split(tmp_path: Path):
    store = made("sae", tmp_path, tokens=10 * CONTEXT)
    numbers = store.windows.numbers.tolist()
    assert (
        len(numbers) == 10
        and numbers == sorted(set(numbers))
        and numbers[-1] > 0.8 * len(windows())
    )
    assert torch.equal(store.windows.tokens.long(), windows().window_batch(numbers))

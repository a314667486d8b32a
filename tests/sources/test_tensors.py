"""A source of plain arrays: its order, its held-out rows, and which array is which site."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dictlearn
from dictlearn.sources import tensors
from dictlearn.sources.array_sites import GIVEN, given
from dictlearn.sources.protocol import HoldsOut, MakesActivations, Source
from dictlearn.sources.tensors import TensorsSource
from dictlearn.types import Batch
from tests.peak import Peak

ROWS, WIDTH = 1000, 4
SITE = ("resid_post.0",)
MLP = {"sources": ("mlp_in.0",), "targets": ("mlp_out.0",)}


@pytest.fixture
def path(tmp_path) -> str:
    """Every row says its number."""
    np.save(tmp_path / "x.npy", np.arange(ROWS)[:, None].repeat(WIDTH, 1).astype(np.float32))
    return str(tmp_path / "x.npy")


def build(path: str, **options) -> TensorsSource:
    sites = {"sources": SITE, "targets": SITE}
    return TensorsSource(**{"path": path, "batch_tokens": 90, "seed": 0, **sites, **options})


def numbers(batch: Batch) -> list[int]:
    return batch.x_NSD[:, 0, 0].int().tolist()


def read(source: TensorsSource, batches: int) -> list[int]:
    return [row for _ in range(batches) for row in numbers(source.next_batch())]


def test_it_is_a_source_without_a_model(path):
    source = build(path)
    assert isinstance(source, Source) and isinstance(source, MakesActivations)
    assert isinstance(source, HoldsOut)
    batch = source.next_batch()
    assert batch.x_NSD.shape == (90, 1, WIDTH) and batch.x_NSD.dtype == torch.float32
    assert batch.y_NTD is batch.x_NSD
    assert (source.info.width, source.info.n_layers) == (WIDTH, 1)


def test_epochs_hold_every_row_once_but_those_held_out(path):
    source = build(path, held_out=0.1)
    rows = read(source, 40)  # 4 epochs of 900 rows, of which the buffer holds some back
    counts = np.bincount(rows, minlength=ROWS)
    assert counts[900:].sum() == 0 and counts[:900].min() >= 1 and counts.max() <= 6
    assert rows[:90] != sorted(rows[:90])
    held = [row for batch in source.held_out.batches(ROWS) for row in numbers(batch)]
    assert held == list(range(900, 1000)) and len(source.held_out) == 100
    assert len(build(path, held_out=7).held_out) == 7


def test_the_order_depends_on_the_seed_alone(path):
    assert read(build(path), 3) == read(build(path), 3) != read(build(path, seed=1), 3)
    assert numbers(build(path).sample(50)) == read(build(path, batch_tokens=90), 1)[:50]


@pytest.mark.parametrize("taken", [1, 13])
def test_a_restored_source_goes_on_bit_for_bit(path, monkeypatch, taken):
    monkeypatch.setattr(tensors, "SHARD_ROWS", 300)
    first = build(path, buffer_tokens=400)
    read(first, taken)
    other = build(path, buffer_tokens=400)
    other.restore(first.state())
    assert read(other, 15) == read(first, 15)
    with pytest.raises(ValueError, match="seed=1: the run to resume had 0"):
        build(path, buffer_tokens=400, seed=1).restore(first.state())


def test_ranks_share_no_row_in_an_epoch(path):
    shares = [build(path, batch_tokens=64) for _ in range(2)]
    for rank, source in enumerate(shares):
        source.shard(rank, 2)
    # 900 rows are 15 runs of 64; the first epoch of each rank has about half of them.
    first, second = (set(read(source, 3)) for source in shares)
    assert not first & second


def test_evaluation_takes_pieces_from_all_of_the_rows(path):
    held = build(path, held_out=800).held_out
    rows = [row for batch in held.batches(180) for row in numbers(batch)]
    assert rows == [*range(200, 290), *range(560, 650)]
    assert sum(len(batch.x_NSD) for batch in held.batches(100)) == 100


def test_other_arrays_are_held_out_then(path, tmp_path):
    np.save(tmp_path / "y.npy", np.full((30, WIDTH), 5.0))
    source = build(path, held_out_path=str(tmp_path / "y.npy"))
    assert len(source.trained) == ROWS and len(source.held_out) == 30
    np.save(tmp_path / "y.npy", np.full((30, WIDTH + 1), 5.0))
    with pytest.raises(ValueError, match="held_out_path=.* is 5 wide, and source.path"):
        build(path, held_out_path=str(tmp_path / "y.npy"))


def test_sites_are_named_by_keys_by_names_or_by_their_order():
    x = torch.randn(50, WIDTH)
    by_key = {"mlp_in.0": x, "mlp_out.0": 2 * x, "labels": torch.randn(50, 9)[:, :WIDTH]}
    for arrays, names in (
        (by_key, None),
        ({"a": x.double(), "b": 2 * x}, {"mlp_in.0": "a", "mlp_out.0": "b"}),
        (torch.stack([x, 2 * x], 1), None),
    ):
        with given(arrays):
            batch = build(GIVEN, names=names, **MLP).next_batch()
        torch.testing.assert_close(batch.y_NTD, 2 * batch.x_NSD)
        assert batch.x_NSD.dtype == torch.float32


def test_layers_are_those_that_names_have():
    x = torch.randn(50, WIDTH)
    for arrays, layers in (({"resid_post.7": x}, 8), (x, 1), (torch.stack([x] * 3, 1), 3)):
        with given(arrays):
            assert TensorsSource(path=GIVEN, batch_tokens=8, seed=0).info.n_layers == layers


@pytest.mark.parametrize(
    ("arrays", "options", "sentence"),
    [
        ({"a": (50, 4), "b": (50, 4)}, {}, "has no resid_post.0.*it has a .50, 4. float32, b"),
        ({"resid_post.7": (50, 4)}, {}, "has no resid_post.0"),
        ({"a": (50, 3, 4)}, {}, r"rows of 3 sites, and the dictionary has 1; want \[N, 1, width\]"),
        ({"resid_post.0": (50, 3, 4)}, {}, "want .*positions in N too"),
        ({"mlp_in.0": (50, 4), "mlp_out.0": (49, 4)}, MLP, "several numbers of rows"),
        ({"mlp_in.0": (50, 4), "mlp_out.0": (50, 5)}, MLP, "several widths"),
        ({"a": (50, 4)}, {"names": {"resid_post.0": "b"}}, "has no b; it has a"),
        ({"a": (50, 4)}, {"held_out": 50}, "source.held_out=50: leaves none of 50 rows"),
        ({"a": (1, 4)}, {}, "source.held_out=0.1: leaves none of 1 rows"),
    ],
)
def test_what_is_not_clear_is_refused_in_a_sentence(arrays, options, sentence):
    made = {name: torch.ones(shape) for name, shape in arrays.items()}
    with given(made), pytest.raises(ValueError, match=sentence):
        build(GIVEN, **options)


def test_a_row_that_is_not_finite_is_named(tmp_path):
    x = np.ones((ROWS, WIDTH), np.float16)
    x[123, 2] = np.inf
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match="NaN or Inf in row 123 of x, counted from 0"):
        read(build(str(tmp_path / "x.npy")), 12)


def test_a_number_beyond_float32_is_named_too():
    sentence = "in row 0 of activations, .*finite in float32"
    x = torch.full((50, WIDTH), 1e300, dtype=torch.float64)
    with given(x), pytest.raises(ValueError, match=sentence):
        read(build(GIVEN), 1)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "activations: is a NoneType; want an array"),
        (torch.ones(4, 4).to_sparse(), "activations: is a sparse tensor; want a dense one"),
    ],
)
def test_what_is_no_array_is_refused_from_python(value, sentence):
    with pytest.raises(ValueError, match=sentence):
        dictlearn.train(activations=value)


def test_arrays_of_python_are_there_only_while_they_are_given(path):
    with given(torch.ones(20, WIDTH)):
        build(GIVEN)
    with pytest.raises(ValueError, match=r"no arrays were passed; want dictlearn.train"):
        build(GIVEN)


def test_the_memory_of_the_stream_is_what_is_said(tmp_path):
    """Whatever the size of the file: rows are mapped, and what waits is bounded by the keys."""
    measured = []
    for n in (12_000, 40_000):
        x = np.random.default_rng(0).standard_normal((n, 256), np.float32).astype(np.float16)
        np.save(tmp_path / "x.npy", x)
        with Peak() as peak:
            source = build(str(tmp_path / "x.npy"), buffer_tokens=8192, batch_tokens=256)
            read(source, 60)
        batch = 256 * (256 * 4 + 16)
        assert 0.9 * source.buffer_bytes < peak.most < 1.25 * source.buffer_bytes + 4 * batch
        measured.append(peak.most)
    assert measured[1] < 1.15 * measured[0]

"""The stream from a store is a pure function of its settings, complete, and says what is wrong."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dictlearn.activations import layout
from dictlearn.activations.formats import open_store
from dictlearn.activations.place import LocalPlace
from dictlearn.lm.capture import capture
from dictlearn.sources import row_stream
from dictlearn.sources.cached import CachedSource
from dictlearn.sources.cached_windows import CachedWindowsSource
from dictlearn.sources.part_order import PartOrder
from dictlearn.sources.protocol import NoText, Source
from dictlearn.sources.windows import WindowsSource
from tests.activations.made import SITES, made, model
from tests.sources.test_live import CONTEXT, FIRST_WORD, WIDTH, WINDOWS, WORDS, Numbered, equal

ORDERS = ("shuffled", "windows")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_stream, "LEAST_RUN", 8)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    return {order: made(folder / order, order=order) and folder / order for order in ORDERS}


def build(path: Path, whole: bool = False, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "windows": Numbered(),
        "sources": ("resid_post.0",),
        "targets": ("mlp_out.1",),
        "batch_tokens": 24 if whole else 25,
        "seed": 0,
        "path": str(path),
        "open_shards": 2,
        **({} if whole else {"buffer_tokens": 100}),
    }
    kind = CachedWindowsSource if whole else CachedSource
    return kind(model(), **{**settings, **options})


@pytest.mark.parametrize("order", ORDERS)
def test_rows_of_any_of_the_sites_are_what_the_model_computes(stores, order):
    source = build(stores[order], sources=("mlp_in.1", "resid_post.0"))
    assert isinstance(source, Source) and source.width == WIDTH
    for batch in (source.sample(60), source.next_batch(), source.next_batch()):
        word = batch.tokens_N - FIRST_WORD
        assert torch.equal(word % CONTEXT, batch.positions_N)
        values = capture(model(), Numbered().window_batch(word // CONTEXT), SITES)
        rows = torch.arange(len(word))
        got = torch.cat([batch.x_NSD, batch.y_NTD], 1)
        for s, site in enumerate(("mlp_in.1", "resid_post.0", "mlp_out.1")):
            torch.testing.assert_close(got[:, s], values[site][rows, batch.positions_N])
    own = build(stores[order], sources=("mlp_in.1",), targets=("mlp_in.1",)).next_batch()
    assert own.y_NTD is own.x_NSD


@pytest.mark.parametrize("batch_tokens", [1, 25, 200])
@pytest.mark.parametrize("order", ORDERS)
def test_every_row_of_every_epoch_comes_exactly_once(stores, order, batch_tokens):
    source = build(stores[order], batch_tokens=batch_tokens)
    epochs, late = 6, 2 * 100
    tokens = [source.next_batch().tokens_N for _ in range(epochs * len(WORDS) // batch_tokens)]
    counts = torch.cat(tokens).bincount(minlength=int(WORDS.max()) + 1)
    assert counts.nonzero().squeeze(1).tolist() == WORDS.tolist()
    assert (counts[WORDS] - epochs).abs().sum() <= (late if order == "windows" else batch_tokens)


@pytest.mark.parametrize("cut", [0, 1, 5, 23])
@pytest.mark.parametrize("order", ORDERS)
def test_resume_is_bit_exact(stores, order, cut):
    straight = build(stores[order])
    for _ in range(cut):
        straight.next_batch()
    state = straight.state()
    assert all(type(value) is int for value in state.values())
    resumed = build(stores[order], threads=1)
    resumed.sample(30)
    resumed.restore(state)
    for _ in range(12):
        assert equal(resumed.next_batch(), straight.next_batch())
        assert resumed.state() == straight.state()


def test_a_store_that_grew_gives_a_resumed_run_its_own_stream(tmp_path):
    made(tmp_path / "s", range(3))
    source = build(tmp_path / "s")
    for _ in range(3):
        source.next_batch()
    state, following = source.state(), [source.next_batch() for _ in range(8)]
    made(tmp_path / "s")
    grown = build(tmp_path / "s")
    assert grown.state()["source.rows"] > state["source.rows"]
    grown.restore(state)
    assert all(equal(grown.next_batch(), batch) for batch in following)


@pytest.mark.parametrize("order", ORDERS)
def test_ranks_share_no_row_of_an_epoch(stores, order):
    seen = []
    for rank in range(3):
        source = build(stores[order], batch_tokens=8)
        source.shard(rank, 3)
        n = 5 if order == "shuffled" else 2  # a buffer also emits what is of the next epoch
        seen.append(torch.cat([source.next_batch().tokens_N for _ in range(n)]).tolist())
    together = [token for tokens in seen for token in tokens]
    assert len(set(together)) == len(together)


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_is_the_one_it_was(stores, order):
    """Runs that resume with a later version read on in the same stream."""
    source = build(stores[order])
    tokens = torch.cat([source.next_batch().tokens_N for _ in range(20)])
    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:8]
    assert digest == {"shuffled": "418836e5", "windows": "00639038"}[order]


def test_as_many_shards_are_mixed_at_all_times():
    counts = [30, 0, 40, 20, 50, 30, 30, 40]
    order = PartOrder(counts, seed=1, at_once=3)
    total = sum(counts)
    epochs = [order.span(0, total), order.span(total, 2 * total)]
    for epoch in epochs:
        assert sorted(epoch) == [(s, n) for s, count in enumerate(counts) for n in range(count)]
        mixed = [len({p.shard for p in epoch[i : i + 15]}) for i in range(total - 15)]
        assert min(mixed) >= 3 and max(mixed) <= 5  # one begins as another ends
    assert epochs[0] != epochs[1]
    for number in range(total):
        soon = order.soon(number)
        assert soon[0] == order.at(number).shard and len(soon) <= 6
    opened = [set(order.soon(n)) - set(order.soon(n - 1)) for n in range(1, total)]
    assert all(len(new) <= 1 for new in opened)  # one after the other
    assert sum(map(len, opened)) <= 2 * len(counts)


def test_one_shard_is_an_order_too():
    order = PartOrder([5], seed=0, at_once=8)
    assert sorted(order.span(0, 5)) == [(0, n) for n in range(5)]
    assert order.soon(3) == [0]


def test_a_stream_of_a_few_rows_in_any_shard_goes_on(tmp_path):
    made(tmp_path / "s", range(1))
    source = build(tmp_path / "s", batch_tokens=3)
    assert len({source.next_batch().x_NSD.sum().item() for _ in range(30)}) > 10


# --- damage -----------------------------------------------------------------------------------


def flipped(folder: Path, number: int) -> Path:
    path = folder / layout.data_name(number)
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("how", ["flipped", "truncated", "gone", "no record"])
def test_a_damaged_shard_is_named_or_left_out(tmp_path, order, how, caplog):
    gone = set(made(tmp_path / "s", order=order).shard(1, []).tokens_N.tolist())
    path = flipped(tmp_path / "s", 1)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif how == "gone":
        path.unlink()
    elif how == "no record":
        path = tmp_path / "s" / layout.record_name(1)
        path.unlink()
    with pytest.raises(ValueError, match=f"^source.on_damage=stop: {path}.*skip leaves"):
        source = build(tmp_path / "s")
        for _ in range(30):
            source.next_batch()
    with caplog.at_level(logging.WARNING):
        source = build(tmp_path / "s", on_damage="skip")
        tokens = torch.cat([source.next_batch().tokens_N for _ in range(30)])
    assert sum(str(path) in record.message for record in caplog.records) == 1
    assert set(tokens.tolist()) == set(WORDS.tolist()) - gone


def test_a_store_without_a_whole_shard_is_refused(tmp_path):
    made(tmp_path / "s", range(1))
    flipped(tmp_path / "s", 0)
    source = build(tmp_path / "s", on_damage="skip")
    with pytest.raises(ValueError, match="no shard that can be read has a row"):
        source.next_batch()
    (tmp_path / "s" / layout.record_name(0)).unlink()
    with pytest.raises(ValueError, match="holds no rows yet"):
        build(tmp_path / "s")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sources": ("resid_post.1",)}, "has no resid_post.1; it has resid_post.0"),
        ({"format": "zarr"}, "source.format=zarr: want auto, .*dictlearn"),
    ],
)
def test_what_does_not_fit_is_refused(stores, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(stores["shuffled"], **options)


# --- windows ----------------------------------------------------------------------------------


def test_windows_are_those_of_the_text_with_the_models_values(stores):
    sites: dict[str, Any] = {"sources": ("mlp_in.1",), "targets": ("mlp_out.1",)}
    source = build(stores["windows"], whole=True, **sites)
    text: Any = Numbered()
    live = WindowsSource(model(), text, **sites, batch_tokens=24, seed=0)
    assert isinstance(source, Source) and live.width == source.width
    seen = []
    for _ in range(WINDOWS // 3):
        batch = source.next_batch()
        assert batch.tokens_BP is not None and batch.valid_BP is not None
        assert torch.equal(batch.valid_BP, batch.tokens_BP >= FIRST_WORD)
        assert torch.equal(batch.tokens_N, batch.tokens_BP[batch.valid_BP])
        values = capture(model(), batch.tokens_BP, SITES)
        for site, rows in {"mlp_in.1": batch.x_NSD, "mlp_out.1": batch.y_NTD}.items():
            torch.testing.assert_close(rows[:, 0], values[site][batch.valid_BP])
        seen += batch.tokens_BP[:, 1].tolist()
    assert len(set(seen)) == WINDOWS
    assert len(source.sample(50).x_NSD) == 50


def test_windows_resume_and_are_shared_among_ranks(stores):
    straight = build(stores["windows"], whole=True)
    for _ in range(4):
        straight.next_batch()
    resumed = build(stores["windows"], whole=True)
    resumed.restore(straight.state())
    for _ in range(8):
        for a, b in zip(resumed.next_batch(), straight.next_batch(), strict=True):
            assert a is b is None or torch.equal(a, b)
    seen = []
    for rank in range(2):
        source = build(stores["windows"], whole=True)
        source.shard(rank, 2)
        seen += [n for _ in range(5) for n in source.next_batch().tokens_BP[:, 1].tolist()]
    assert len(set(seen)) == WINDOWS


def test_windows_that_were_not_kept_are_refused(stores):
    with pytest.raises(ValueError, match="not kept in windows of text; want a store made with"):
        build(stores["shuffled"], whole=True)
    with pytest.raises(ValueError, match="batch_tokens=25: the store's windows have 8 tokens"):
        build(stores["windows"], whole=True, batch_tokens=25)


def test_no_text_is_compared_with_none(stores):
    assert build(stores["shuffled"], windows=NoText(8)).next_batch().x_NSD.shape == (25, 1, WIDTH)


# --- norms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
def test_norms_are_those_of_all_rows(stores, whole):
    order = "windows" if whole else "shuffled"
    source = build(stores[order], whole=whole)
    store = open_store(LocalPlace(stores[order]))
    for site in ("resid_post.0", "mlp_out.1"):
        rows = [
            store.shard(n, [site]).rows(site, 0, r) for n, r in enumerate(store.info.shard_rows)
        ]
        norms_N = torch.cat(rows).double().norm(dim=1)
        assert source.norms()[site].mean == pytest.approx(float(norms_N.mean()), rel=1e-9)
        mean_square = float(norms_N.square().mean())
        assert source.norms()[site].mean_square == pytest.approx(mean_square, rel=1e-9)


def test_norms_of_a_store_that_is_not_complete_are_not_known(tmp_path):
    made(tmp_path / "s", range(3))
    assert build(tmp_path / "s").norms() is None
    made(tmp_path / "t")
    (tmp_path / "t" / layout.record_name(4)).unlink()
    assert build(tmp_path / "t", on_damage="skip").norms() is None


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_norms_that_cannot_be_are_refused(tmp_path, norm):
    made(tmp_path / "s")
    path = tmp_path / "s" / layout.STATISTICS
    tensors = {**load_file(path), "mlp_out.1.norm": torch.tensor([norm], dtype=torch.float64)}
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match=f"{path} is damaged: its norm of mlp_out.1 is no positive"
    ):
        build(tmp_path / "s").norms()


@pytest.mark.parametrize("order", ["shuffled", "windows"])
def test_the_memory_of_rows_that_wait_is_bounded_by_the_keys(stores, order):
    sites = len(SITES)
    source = build(stores[order], sources=SITES, targets=SITES, batch_tokens=16, buffer_tokens=64)
    for _ in range(6):
        source.next_batch()
    rows = source._stream._rows
    if order == "windows":
        waiting = [*rows._groups, rows._tokens, rows._positions]
        assert source.buffer_bytes == sum(tensor.nbytes for tensor in waiting)
    else:
        made_ahead = [one.result()[0] for *_, one in rows._coming]
        size = sum(t.nbytes for batch in made_ahead for t in (*batch.groups, *batch[1:]))
        assert 0 < size <= source.buffer_bytes == 2 * 16 * (sites * WIDTH * 4 + 16)

"""The live stream is a pure function of its settings, complete, and says what is wrong."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from dictlearn.lm.capture import capture, capture_inputs
from dictlearn.lm.language_model import Inputs, LanguageModel, freeze
from dictlearn.sources import reader
from dictlearn.sources.live import LiveSource
from dictlearn.sources.protocol import Source
from dictlearn.sources.reader import WindowOrder
from dictlearn.types import Batch

CONTEXT, WINDOWS, WIDTH = 8, 30, 16
ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
BOS, PAD, FIRST_WORD = 1, 0, 10


@dataclass
class Numbered:
    """Windows in which every token id says where it stands: 10 + window * context + position."""

    n_windows: int = WINDOWS
    context: int = CONTEXT

    def __len__(self) -> int:
        return self.n_windows

    def window_batch(self, indices: Tensor) -> Tensor:
        ids = FIRST_WORD + indices[:, None] * self.context + torch.arange(self.context)
        ids[:, 0] = BOS
        ids[indices % 5 == 0, -3:] = PAD
        return ids

    def kept(self, indices: Tensor) -> Tensor:
        return self.window_batch(indices) >= FIRST_WORD


WORDS = (lambda ids: ids[ids >= FIRST_WORD])(Numbered().window_batch(torch.arange(WINDOWS)))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    config = Qwen3Config(
        vocab_size=FIRST_WORD + WINDOWS * CONTEXT,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=CONTEXT,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return freeze(Qwen3ForCausalLM(config))


def build(lm: LanguageModel, **options: Any) -> LiveSource:
    settings: dict[str, Any] = {
        "windows": Numbered(),
        "sources": ("resid_post.0",),
        "targets": ("resid_post.0",),
        "batch_tokens": 25,
        "buffer_tokens": 100,
        "lm_batch_windows": 3,
        "seed": 0,
    }
    return LiveSource(lm, **{**settings, **options})


def equal(a: Batch, b: Batch) -> bool:
    assert a.tokens_BP is None and b.tokens_BP is None  # shuffled: no windows
    assert (a.targets_NTD is None) == (b.targets_NTD is None)
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("x_NSD", "y_NTD", "tokens_N", "positions_N")
    )


def test_it_is_a_source(lm):
    source = build(lm)
    assert isinstance(source, Source)
    assert source.width == WIDTH and source.device == lm.device


def test_rows_are_what_the_model_computes_there(lm):
    batch = build(lm, sources=("mlp_in.0", "mlp_in.1"), targets=("mlp_out.1",)).next_batch()
    assert batch.x_NSD.shape == (25, 2, WIDTH) and batch.y_NTD.shape == (25, 1, WIDTH)
    number = batch.tokens_N - FIRST_WORD
    window, position = number // CONTEXT, number % CONTEXT
    assert torch.equal(position, batch.positions_N)
    sites = ("mlp_in.0", "mlp_in.1", "mlp_out.1")
    values = capture(lm, Numbered().window_batch(window), sites)
    rows = torch.arange(25)
    for s, site in enumerate(sites):
        got = torch.cat([batch.x_NSD, batch.y_NTD], 1)[:, s]
        torch.testing.assert_close(got, values[site][rows, position])


def test_an_autoencoder_reads_what_it_writes(lm):
    batch = build(lm).next_batch()
    assert batch.y_NTD is batch.x_NSD
    other = build(lm, targets=("resid_post.1",)).next_batch()
    assert torch.equal(other.x_NSD, batch.x_NSD) and not torch.equal(other.y_NTD, other.x_NSD)


@pytest.mark.parametrize("batch_tokens", [1, 25, 96])
def test_every_token_of_every_epoch_comes_exactly_once(lm, batch_tokens):
    source = build(lm, batch_tokens=batch_tokens)
    epochs, late = 12, 2 * 100  # what can be waiting in the buffer at the end, or be out early
    tokens = [source.next_batch().tokens_N for _ in range(epochs * len(WORDS) // batch_tokens)]
    counts = torch.cat(tokens).bincount(minlength=int(WORDS.max()) + 1)
    assert counts.nonzero().squeeze(1).tolist() == WORDS.tolist()  # no special token, no pad
    assert counts[WORDS].min() >= epochs - 2 and counts[WORDS].max() <= epochs + 1
    assert (counts[WORDS] - epochs).abs().sum() <= late


def test_windows_are_in_a_new_order_every_epoch():
    order = WindowOrder(7, seed=3)
    epochs = order.span(0, 21).view(3, 7)
    assert torch.equal(epochs.sort().values, torch.arange(7).expand(3, 7))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    assert torch.equal(WindowOrder(7, seed=3).span(5, 18), epochs.flatten()[5:18])
    assert not torch.equal(WindowOrder(7, seed=4).span(0, 21).view(3, 7), epochs)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 4, 9, 23])
def test_resume_is_bit_exact(lm, cut, ahead):
    straight = build(lm, targets=("mlp_out.1",), ahead=ahead)
    for _ in range(cut):
        straight.next_batch()
    state = straight.state()
    assert all(type(value) is int for value in state.values())
    resumed = build(lm, targets=("mlp_out.1",), ahead=not ahead)
    resumed.restore(state)
    for _ in range(15):
        assert equal(resumed.next_batch(), straight.next_batch())
        assert resumed.state() == straight.state()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_A_GPU)])
@pytest.mark.parametrize("nonfinite", ["error", "drop"])
def test_reading_ahead_gives_the_same_batches(lm, device, nonfinite):
    """On a GPU while something else keeps it busy, as the dictionary's step does."""
    lm = replace(lm, model=copy.deepcopy(lm.model).to(device))
    ahead, in_time = (
        build(lm, targets=("mlp_out.1",), ahead=ahead, nonfinite=nonfinite)
        for ahead in (True, False)
    )
    load = torch.randn(2048, 2048, device=device) if device == "cuda" else None
    for _ in range(40):
        ours = ahead.next_batch()
        if load is not None:
            for _ in range(20):
                load = (load @ load).clamp(-1, 1)
        assert equal(ours, in_time.next_batch())
        assert ahead.state() == in_time.state()


@pytest.mark.parametrize(
    "other",
    [
        {"windows": Numbered(n_windows=29)},
        {"windows": Numbered(context=7)},
        {"seed": 1},
        {"lm_batch_windows": 2},
        {"buffer_tokens": 300},
    ],
    ids=str,
)
def test_a_state_of_another_stream_is_refused(lm, other):
    state = build(lm).state()
    with pytest.raises(ValueError, match="the run to resume had"):
        build(lm, **other).restore(state)


def test_ranks_share_an_epoch_between_them(lm, monkeypatch):
    seen: list[Tensor] = []

    def watched(lm: LanguageModel, inputs: Inputs, sites: list[str]) -> dict[str, Tensor]:
        tokens_BP = inputs["input_ids"]
        seen.append(tokens_BP[tokens_BP >= FIRST_WORD])
        return capture_inputs(lm, inputs, sites)

    monkeypatch.setattr(reader, "capture_inputs", watched)
    for rank in range(2):
        half_an_epoch = build(lm, buffer_tokens=2 * 15 * CONTEXT)
        half_an_epoch.shard(rank, 2)
        half_an_epoch.next_batch()
    assert torch.cat(seen).sort().values.tolist() == WORDS.tolist()


def test_a_rank_resumes_its_own_stream(lm):
    straight, resumed = build(lm), build(lm)
    straight.sample(10)  # of all ranks' stream: it must not stay in the buffer
    straight.shard(1, 2)
    for _ in range(5):
        straight.next_batch()
    resumed.restore(straight.state())
    resumed.shard(1, 2)
    for _ in range(5):
        straight.shard(1, 2)
        assert equal(resumed.next_batch(), straight.next_batch())


@pytest.mark.parametrize("entry", ["round", "taken"])
def test_a_changed_state_changes_the_stream(lm, entry):
    source = build(lm)
    for _ in range(6):
        source.next_batch()
    state = source.state()
    changed = build(lm)
    changed.restore({**state, entry: state[entry] + 1})
    assert not equal(changed.next_batch(), source.next_batch())


@pytest.mark.parametrize("n", [5, 40, 150])
def test_a_sample_is_the_beginning_and_moves_nothing(lm, n):
    source, untouched = build(lm), build(lm)
    sample = source.sample(n)
    assert sample.x_NSD.shape == (n, 1, WIDTH) and sample.y_NTD is sample.x_NSD
    for _ in range(7):
        assert equal(source.next_batch(), untouched.next_batch())
    assert equal(source.sample(n), sample)
    assert equal(source.next_batch(), untouched.next_batch())


def test_a_sample_before_training_costs_no_forward(lm, monkeypatch):
    forwards = []
    monkeypatch.setattr(
        reader, "capture_inputs", lambda *args: forwards.append(0) or capture_inputs(*args)
    )
    source = build(lm, batch_tokens=10)
    source.sample(30)
    source.next_batch()
    assert len(forwards) == 100 // 2 // (3 * CONTEXT)


@pytest.mark.parametrize("store", ["model", "float32", "bfloat16"])
@pytest.mark.parametrize("batch", ["model", "float32", "bfloat16"])
def test_dtypes(lm, store, batch):
    got = build(lm, store_dtype=store, batch_dtype=batch).next_batch().x_NSD
    exact = build(lm).next_batch().x_NSD
    rounded = "bfloat16" in (store, batch)
    expected = torch.float32
    if batch == "bfloat16" or (batch, store) == ("model", "bfloat16"):
        expected = torch.bfloat16
    assert got.dtype == expected
    assert torch.equal(got.float(), exact.bfloat16().float() if rounded else exact)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_tokens": 101}, "source.buffer_tokens=100 .* batch_tokens=101"),
        (
            {"lm_batch_windows": 7},
            "source.buffer_tokens=100 .* source.lm_batch_windows=7 of 8 .*112",
        ),
        ({"lm_batch_windows": 0}, "source.lm_batch_windows=0: want 1 or more"),
        ({"windows": Numbered(n_windows=0)}, "no text"),
        ({"nonfinite": "zero"}, "source.nonfinite=zero: want error or drop"),
        ({"ahead": "always"}, "source.ahead=always: want auto, true or false"),
        (
            {"store_dtype": "float8"},
            "source.store_dtype=float8: want one of model, float32, bfloat16",
        ),
        ({"batch_dtype": "half"}, "source.batch_dtype=half"),
        ({"seed": -1}, "seed=-1: want 0 or more"),
        ({"sources": ("resid_post.9",)}, "layers 0 to 1"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_say_so(lm, options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        build(lm, **options)
    assert "\n" not in str(error.value)


def test_a_site_of_another_width_says_so(lm):
    wide = ("model.layers.0.mlp.act_fn:output",)
    with pytest.raises(ValueError, match="act_fn:output is 24 wide.*are 16 wide"):
        build(lm, sources=wide, targets=wide).next_batch()


@pytest.fixture
def broken(monkeypatch) -> list[int]:
    """Makes every site but the first NaN at these token ids."""
    ids = [FIRST_WORD + 2 * CONTEXT + 5, FIRST_WORD + 11 * CONTEXT + 1]

    def capture_broken(lm, inputs, sites):
        values, tokens_BP = capture_inputs(lm, inputs, sites), inputs["input_ids"]
        for site in sites[1:]:
            at = torch.isin(tokens_BP, torch.tensor(ids))
            values[site] = values[site].masked_fill(at[..., None], float("nan"))
        # A special token may hold anything: it never reaches a dictionary.
        special = (tokens_BP == BOS)[..., None]
        return {site: value.masked_fill(special, -torch.inf) for site, value in values.items()}

    monkeypatch.setattr(reader, "capture_inputs", capture_broken)
    return ids


@pytest.mark.parametrize("ahead", [False, True])
def test_nan_is_named_by_site_window_and_position(lm, broken, ahead):
    source = build(lm, targets=("mlp_out.1",), lm_batch_windows=1, ahead=ahead)
    with pytest.raises(ValueError) as error:
        for _ in range(30):
            source.next_batch()
    message = str(error.value)
    assert "NaN or Inf in mlp_out.1 at position 5 of window 2 " in message or (
        "NaN or Inf in mlp_out.1 at position 1 of window 11 " in message
    )
    assert "source.nonfinite=drop" in message


def test_a_special_token_may_hold_anything(lm, broken):
    broken.clear()
    source = build(lm, targets=("mlp_out.1",), ahead=True)
    assert all(source.next_batch().y_NTD.isfinite().all() for _ in range(20))
    assert source.dropped == 0


def test_dropping_nan_drops_those_tokens_only_and_reports(lm, broken, caplog):
    source = build(lm, targets=("mlp_out.1",), nonfinite="drop", batch_tokens=96)
    with caplog.at_level(logging.WARNING):
        batches = [source.next_batch() for _ in range(8 * len(WORDS) // 96)]
    assert all(batch.y_NTD.isfinite().all() for batch in batches)
    seen = set(torch.cat([batch.tokens_N for batch in batches]).tolist())
    assert seen == set(WORDS.tolist()) - set(broken)
    epochs = (source.state()["round"] + 1) * 2 * 3 / WINDOWS
    assert abs(source.dropped - 2 * epochs) <= 2
    assert "2 tokens with NaN or Inf so far" in caplog.text


def test_what_was_dropped_counts_once(lm, broken):
    source = build(lm, targets=("mlp_out.1",), nonfinite="drop", batch_tokens=96)
    for _ in range(10):
        source.next_batch()
    dropped = source.dropped
    source.sample(20)
    source.restore(source.state())
    source.next_batch()
    assert dropped > 0 and source.dropped - dropped <= 2

"""Whole windows, alone and behind a live stream: complete, in order, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel, freeze
from dictlearn.sources.live import LiveSource
from dictlearn.sources.protocol import Source
from dictlearn.sources.staged import StagedSource
from dictlearn.sources.tokens import TokenWindows
from dictlearn.sources.windows import ShorterWindows, WindowsSource
from dictlearn.types import Batch

CONTEXT, N_WINDOWS, FIRST_WORD = 8, 12, 10
PLACE: dict[str, Any] = {
    "sources": ("resid_pre.1",),
    "targets": ("resid_post.0",),
    "batch_tokens": 2 * CONTEXT,
    "seed": 3,
}
LIVE: dict[str, Any] = {"buffer_tokens": 64, "lm_batch_windows": 2}


@dataclass
class Text:
    """Token ids that say where they stand; window 5 is all pads, others begin with a special."""

    context: int = CONTEXT

    def __len__(self) -> int:
        return N_WINDOWS

    def window_batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        indices = torch.as_tensor(indices)
        ids = FIRST_WORD + indices[:, None] * CONTEXT + torch.arange(CONTEXT)
        ids[:, 0] = 1
        ids[indices == 5] = 0
        return ids

    def kept(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self.window_batch(indices) >= FIRST_WORD


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=FIRST_WORD + N_WINDOWS * CONTEXT,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=CONTEXT,
    )
    return freeze(Qwen3ForCausalLM(config))


def windows(lm: LanguageModel, **options: Any) -> WindowsSource:
    return WindowsSource(lm, Text(), **{**PLACE, **options})


def staged(lm: LanguageModel, steps: int = 10, **options: Any) -> StagedSource:
    return StagedSource(lm, Text(), **{**PLACE, "steps": steps, "last": 0.3, **LIVE, **options})


def equal(a: Batch, b: Batch) -> bool:
    def same(x: object, y: object) -> bool:
        if isinstance(x, Batch) and isinstance(y, Batch):
            return equal(x, y)
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return torch.equal(x, y)
        return x is y

    return all(same(x, y) for x, y in zip(a, b, strict=True))


def test_both_are_sources(lm):
    assert isinstance(windows(lm), Source) and isinstance(staged(lm), Source)


def test_rows_are_the_valid_positions_of_the_windows_in_reading_order(lm):
    batch = windows(lm).next_batch()
    assert batch.tokens_BP is not None and batch.valid_BP is not None
    assert batch.tokens_BP.shape == (2, CONTEXT)
    captured = capture(lm, batch.tokens_BP, ["resid_pre.1", "resid_post.0"])
    assert torch.equal(batch.x_NSD[:, 0], captured["resid_pre.1"][batch.valid_BP])
    assert torch.equal(batch.y_NTD[:, 0], captured["resid_post.0"][batch.valid_BP])
    assert torch.equal(batch.tokens_N, batch.tokens_BP[batch.valid_BP])
    assert torch.equal(batch.valid_BP, batch.tokens_BP >= FIRST_WORD)
    position_BP = torch.arange(CONTEXT).expand(2, -1)
    assert torch.equal(batch.positions_N, position_BP[batch.valid_BP])


def test_an_autoencoder_reads_what_it_writes(lm):
    source = windows(lm, targets=("resid_pre.1",))
    for batch in (source.next_batch(), source.sample(20)):
        assert batch.y_NTD is batch.x_NSD


def test_an_epoch_has_every_window_once_in_an_order_of_its_own(lm):
    source = windows(lm)
    orders = []
    for _ in range(2):
        tokens = torch.cat([source.next_batch().tokens_N for _ in range(N_WINDOWS // 2)])
        assert len(tokens.unique()) == len(tokens) == (N_WINDOWS - 1) * (CONTEXT - 1)
        orders.append(tokens)
    assert not torch.equal(*orders)


def test_the_windows_beside_are_of_the_text_that_live_reads(lm):
    source, order = staged(lm, steps=3, last=0.9), windows(lm)  # two windows in a batch, of 12
    beside = [batch for batch in (source.next_batch().beside for _ in range(3)) if batch]
    assert len(beside) == 3
    first = torch.cat([order.next_batch().tokens_N for _ in range(3)])
    assert torch.cat([batch.tokens_N for batch in beside]).sort().values.equal(first.sort().values)


def test_windows_are_cut_into_pieces_that_a_batch_takes_from_all_over(lm):
    source = windows(lm, window_tokens=4)
    batches = [source.next_batch() for _ in range(N_WINDOWS // 2)]
    read = [batch.tokens_BP for batch in batches if batch.tokens_BP is not None]
    pieces = torch.cat(read)  # an epoch, 4 in a batch
    assert pieces.shape == (2 * N_WINDOWS, 4)
    whole = Text().window_batch(torch.arange(N_WINDOWS)).view(-1, 4)
    assert sorted(pieces.tolist()) == sorted(whole.tolist())
    assert any(len((b.tokens_N // CONTEXT).unique()) > 2 for b in batches)  # of more windows
    captured = capture(lm, read[0], ["resid_pre.1"])  # the model reads pieces alone
    assert torch.equal(batches[0].x_NSD[:, 0], captured["resid_pre.1"][batches[0].valid_BP])


def test_pieces_are_the_shorter_windows_of_the_text():
    stream_T = torch.arange(3, 3 + 19, dtype=torch.int32)
    whole, short = (TokenWindows(stream_T, n, frozenset({0}), 0) for n in (CONTEXT, 2))
    pieces = ShorterWindows(whole, 2)  # the last 5 tokens of the last window are pads
    assert len(pieces) == len(short) == 10
    everything = torch.arange(len(short))
    assert torch.equal(pieces.window_batch(everything), short.window_batch(everything))


def test_windows_shorter_than_the_cut_stay_whole(lm):
    assert equal(windows(lm, window_tokens=64).next_batch(), windows(lm).next_batch())


def test_only_the_last_part_is_cut(lm):
    source, live = staged(lm, window_tokens=2), LiveSource(lm, Text(), **PLACE, **LIVE)
    for _ in range(7):
        assert equal(source.next_batch(), live.next_batch())
    batch = source.next_batch()
    assert batch.tokens_BP is None and equal(batch._replace(beside=None), live.next_batch())
    assert batch.beside is not None and batch.beside.tokens_BP is not None
    assert batch.beside.tokens_BP.shape == (8, 2)


def test_batches_without_a_token_are_passed_over_and_not_repeated(lm):
    source = windows(lm, batch_tokens=CONTEXT)
    batches = [source.next_batch() for _ in range(N_WINDOWS - 1)]
    assert all(len(batch.x_NSD) == CONTEXT - 1 for batch in batches)
    assert len(torch.cat([batch.tokens_N for batch in batches]).unique()) == 7 * 11


def test_ranks_share_no_token(lm):
    seen = []
    for rank in range(2):
        source = windows(lm)
        source.shard(rank, 2)
        seen.append(torch.cat([source.next_batch().tokens_N for _ in range(3)]))
    assert not set(seen[0].tolist()) & set(seen[1].tolist())


def test_a_sample_is_of_the_beginning_and_moves_nothing(lm):
    source = windows(lm)
    first = source.next_batch()
    sample = source.sample(20)
    assert len(sample.x_NSD) == 20 and sample.tokens_BP is None
    assert torch.equal(sample.x_NSD[:14], first.x_NSD)
    other = windows(lm)
    other.next_batch()
    assert equal(source.next_batch(), other.next_batch())


@pytest.mark.parametrize("build", [windows, staged])
@pytest.mark.parametrize("cut", [0, 3, 7, 9])
def test_resume_is_bit_exact(lm, build, cut):
    source = build(lm)
    for _ in range(cut):
        source.next_batch()
    state = source.state()
    resumed = build(lm)
    resumed.restore(state)
    for _ in range(10 - cut):
        assert equal(source.next_batch(), resumed.next_batch())
    assert resumed.state() == source.state()


def test_all_is_live_and_the_last_part_has_windows_beside_it(lm):
    source, live = staged(lm, accumulate=2), LiveSource(lm, Text(), **PLACE, **LIVE)
    for number in range(20):
        batch = source.next_batch()
        assert (batch.beside is not None) == (number >= 14)
        assert equal(batch._replace(beside=None), live.next_batch())
    assert equal(source.sample(9), live.sample(9))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda lm: windows(lm, batch_tokens=12), "batch_tokens=12: .* data.context=8"),
        (lambda lm: windows(lm, window_tokens=3), "source.window_tokens=3: .* data.context=8"),
        (
            lambda lm: windows(lm, window_tokens=4, batch_tokens=6),
            "batch_tokens=6: .* source.window_tokens=4",
        ),
        (lambda lm: staged(lm, last=0), "source.last=0: want a fraction between 0 and 1"),
        (lambda lm: staged(lm, last=1.0), "source.last=1.0"),
        (lambda lm: windows(lm, seed=-1), "seed=-1: want 0 or more"),
        (lambda lm: windows(lm, nonfinite="skip"), "source.nonfinite=skip"),
        (lambda lm: windows(lm).restore({**windows(lm).state(), "seed": 4}), "seed=3: .* had 4"),
    ],
)
def test_a_mistake_is_one_sentence(lm, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(lm)

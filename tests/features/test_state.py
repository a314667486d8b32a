"""The state of a pass against plain loops, however the firings are shared out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dictlearn.features.ragged import Firings
from dictlearn.features.settings import Settings
from dictlearn.features.state import State, hash_rank

CONTEXT, WINDOWS, FEATURES = 12, 30, 9
SETTINGS = Settings(
    tokens=1000,
    batch_windows=2,
    examples=5,
    intervals=2,
    per_interval=3,
    before=3,
    after=2,
    bins=4,
    quantiles=(0.5,),
    promoted=3,
    neighbours=2,
    cofiring=2,
    sample_tokens=100,
    sample_firings=1000,
    directions=1,
    buffer=100,
    block=4,
    checkpoint_minutes=5,
)


def activations() -> Tensor:
    """[W, P, F]: silent, rare, frequent and full features; values that repeat."""
    density = torch.tensor([0, 0.003, 0.02, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0])
    values = torch.randint(1, 20, (WINDOWS, CONTEXT, FEATURES)) / 4
    return torch.where(torch.rand(WINDOWS, CONTEXT, FEATURES) < density, values, 0.0)


def firings(values_WPF: Tensor, windows: list[int], first: int = 0) -> Firings:
    feature, window, position = values_WPF[windows].permute(2, 0, 1).nonzero(as_tuple=True)
    real = torch.tensor(windows, dtype=torch.int64)[window]
    return Firings(feature, real * CONTEXT + position, values_WPF[real, position, feature])


def seen(values_WPF: Tensor, parts: list[list[int]], settings: Settings = SETTINGS) -> State:
    state = State.empty(FEATURES, settings)
    for windows in parts:
        state.update(firings(values_WPF, windows), 100, CONTEXT, settings)
    return state


def test_slots_hold_what_loops_would_pick():
    values = activations()
    state = seen(values, [[0, 1, 2], list(range(3, 20)), list(range(20, WINDOWS))])
    flat_NF = values.flatten(0, 1)
    assert torch.equal(state.count, (flat_NF > 0).sum(0))
    assert torch.equal(state.maximum, flat_NF.amax(0))
    assert torch.allclose(state.total, flat_NF.double().sum(0))
    for f in range(FEATURES):
        fired = flat_NF[:, f].nonzero()[:, 0].tolist()
        best: list[int] = []
        for place in sorted(fired, key=lambda p: (-float(flat_NF[p, f]), p)):
            if len(best) < SETTINGS.examples and place // CONTEXT not in [
                p // CONTEXT for p in best
            ]:
                best.append(place)
        assert [p for p in state.top.place[f].tolist() if p >= 0] == best
        ranks = hash_rank(
            torch.full((len(fired),), f + 100), torch.tensor(fired, dtype=torch.int64)
        )
        drawn = [fired[i] for i in ranks.argsort()[: SETTINGS.drawn].tolist()]
        assert [p for p in state.drawn.place[f].tolist() if p >= 0] == drawn


def test_contexts_are_the_activations_around_a_firing():
    values = activations()
    state = seen(values, [list(range(10)), list(range(10, WINDOWS))])
    for slots in (state.top, state.drawn):
        for f in range(FEATURES):
            for k, place in enumerate(slots.place[f].tolist()):
                expected = torch.zeros(SETTINGS.length)
                for i, offset in enumerate(range(-SETTINGS.before, SETTINGS.after + 1)):
                    if place >= 0 and (place + offset) // CONTEXT == place // CONTEXT:
                        expected[i] = values[place // CONTEXT, (place + offset) % CONTEXT, f]
                shown = slots.shares[f, k].float() * slots.scale[f, k]
                assert torch.allclose(shown, expected, rtol=1e-3)
                assert place < 0 or slots.value[f, k] == expected[SETTINGS.before]


@pytest.mark.parametrize("cut", [1, 13, 29])
def test_neither_order_nor_sharing_out_shows(cut: int):
    values = activations()
    whole = seen(values, [list(range(WINDOWS))])
    backwards = seen(values, [list(range(cut, WINDOWS)), list(range(cut))])
    one, other = seen(values, [list(range(cut))]), seen(values, [list(range(cut, WINDOWS))])
    one.merge(other)
    again = State.from_tensors(one.tensors())
    for state in (backwards, one, again):
        for name, tensor in whole.tensors().items():
            assert torch.equal(tensor, state.tensors()[name]), name


def test_hashes_are_uniform_and_differ_between_features():
    place = torch.arange(100_000)
    ranks = torch.stack([hash_rank(torch.full_like(place, f), place) for f in (0, 1, 2**40)])
    assert int(ranks.min()) >= 0 and int(ranks.max()) < 1 << 31
    share = ranks.double() / (1 << 31)
    assert (share.mean(1) - 0.5).abs().max() < 0.005
    assert torch.corrcoef(share).triu(1).abs().max() < 0.02
    quarters = torch.stack([torch.histc(row.float(), 4, 0, 1) for row in share])
    assert (quarters / 25_000 - 1).abs().max() < 0.03


def test_nothing_to_keep_is_fine():
    settings = replace(SETTINGS, intervals=0, examples=1, before=0, after=0)
    state = seen(activations(), [list(range(WINDOWS))], settings)
    assert state.drawn.place.shape == (FEATURES, 0) and state.top.shares.shape == (FEATURES, 1, 1)


def test_quantiles_that_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match=r"quantiles=\[0.5, 0.2\]: want ascending numbers"):
        replace(SETTINGS, quantiles=(0.5, 0.2))

"""The measure of co-occurrence on codes whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from dictlearn.evals.context import EvalContext
from dictlearn.evals.cooccurrence import (
    Cooccurrence,
    Counts,
    choose,
    divergence,
    figures,
    firings_of,
    without_interaction,
)

N = 20_000


def measured(code_of, fired_NF, next_N, **options):
    """All the way from a code, in batches, to the figures."""
    settings = {"n_features": 8, "n_pairs": 28, "n_classes": 8} | options
    parts = [
        firings_of(code_of(fired[:, None].float()), y, torch.ones(len(y), dtype=torch.bool))
        for fired, y in zip(fired_NF.split(3000), next_N.split(3000), strict=True)
    ]
    chosen = choose(parts, **settings)
    assert chosen is not None
    counts = Counts(chosen)
    for part in parts:
        counts.update(part)
    return figures(counts.tables())


def coins(n_features, p=0.5):
    return torch.rand(N, n_features) < p


def test_exclusive_or_is_all_in_the_pair(code_of):
    fired = coins(2)
    found = measured(code_of, fired, (fired[:, 0] ^ fired[:, 1]).long())
    assert found["cooccurrence/share"] == pytest.approx(1.0, abs=0.01)
    assert found["cooccurrence/nats"] == pytest.approx(4 * math.log(2), rel=0.05)  # both: 1 in 4
    assert found["cooccurrence/mutual_information"] == pytest.approx(0.0, abs=1e-3)


def test_features_that_each_say_their_own_have_nothing_in_the_pair(code_of):
    """The next token spells out both features, which also tend to fire together."""
    first = torch.rand(N) < 0.3
    second = torch.rand(N) < torch.where(first, 0.6, 0.1)
    found = measured(code_of, torch.stack([first, second], 1), first.long() + 2 * second.long())
    assert found["cooccurrence/share"] == pytest.approx(0.0, abs=0.002)
    assert found["cooccurrence/mutual_information"] > 0.1


def test_additive_logits_have_nothing_in_the_pairs(code_of):
    """log p(y | features) a sum over two features: I_3 is zero and the bootstrap removes the noise."""
    fired = coins(2, 0.3)
    logits = torch.randn(7) + fired.float() @ (2 * torch.randn(2, 7))
    found = measured(code_of, fired, torch.multinomial(logits.softmax(-1), 1)[:, 0])
    assert found["cooccurrence/share"] == pytest.approx(0.0, abs=0.01)
    meant = logits.clone()
    meant[fired.all(1), 0] += 6  # together they mean a token that neither means
    found = measured(code_of, fired, torch.multinomial(meant.softmax(-1), 1)[:, 0])
    assert found["cooccurrence/share"] > 0.1


def test_noise_has_no_information_whatever_the_tables(code_of):
    found = measured(code_of, coins(8, 0.1), torch.randint(40, (N,)), n_classes=41)
    assert abs(found["cooccurrence/nats"]) < 0.02
    assert found["cooccurrence/pairs"] == 28
    raw = torch.poisson(torch.full((500, 2, 2, 30), 2.0)).double()
    uncorrected = float(divergence(raw, without_interaction(raw)).mean())
    assert uncorrected > 0.04  # what would be reported without the bootstrap, of nothing
    per_firing = 4 * uncorrected  # on a quarter of these tokens both fire
    assert abs(figures(raw)["cooccurrence/nats"]) < 0.25 * per_firing  # with two tokens a cell


def test_fit_keeps_every_pair_marginal_and_adds_no_interaction():
    tables = torch.rand(5, 2, 2, 6, dtype=torch.float64) * 50
    fitted = without_interaction(tables)
    for axis in (1, 2, 3):
        torch.testing.assert_close(fitted.sum(axis), tables.sum(axis), rtol=1e-6, atol=1e-9)
    log = fitted.log()
    interaction = log[:, 1, 1] - log[:, 1, 0] - log[:, 0, 1] + log[:, 0, 0]
    torch.testing.assert_close(interaction, interaction[:, :1].expand_as(interaction))
    torch.testing.assert_close(without_interaction(fitted), fitted)


def test_tables_are_the_counts(code_of):
    fired, y = coins(3, 0.4)[:500], torch.randint(4, (500,))
    part = firings_of(code_of(fired[:, None].float()), y, torch.ones(500, dtype=torch.bool))
    chosen = choose([part], 3, 3, 4)
    assert chosen is not None
    counts = Counts(chosen)
    counts.update(part)
    tables = counts.tables()
    assert sorted(map(tuple, chosen.pairs_2P.T.tolist())) == [(0, 1), (0, 2), (1, 2)]
    for table, (i, j) in zip(tables, chosen.pairs_2P.T.tolist(), strict=True):
        for a in (0, 1):
            for b in (0, 1):
                own = (fired[:, i] == a) & (fired[:, j] == b)
                expected = [int((own & (chosen.class_of(y) == k)).sum()) for k in range(4)]
                assert table[a, b].tolist() == expected


def test_the_most_frequent_and_those_that_fire_together_are_chosen(code_of):
    fired = torch.zeros(100, 6, dtype=torch.bool)
    fired[:90, 4] = fired[:50, 1] = fired[40:80, 2] = fired[:3, 0] = True
    y = torch.tensor([7] * 60 + [5] * 30 + [9] * 10)
    part = firings_of(code_of(fired[:, None].float()), y, torch.ones(100, dtype=torch.bool))
    chosen = choose([part], n_features=3, n_pairs=2, n_classes=3)
    assert chosen is not None
    assert chosen.features_M.tolist() == [1, 2, 4]
    assert chosen.pairs_2P.T.tolist() == [[0, 2], [1, 2]]
    assert chosen.classes.tolist() == [5, 7]
    assert chosen.class_of(torch.tensor([5, 6, 7, 9])).tolist() == [0, 2, 1, 2]


def test_only_tokens_with_a_known_next_one_count(code_of):
    fired, y = coins(2)[:6], torch.arange(6)
    keep = torch.tensor([1, 0, 1, 1, 0, 0]).bool()
    part = firings_of(code_of(fired[:, None].float()), y, keep)
    assert part.next_token.tolist() == [0, 2, 3]
    rows = torch.zeros(3, 2).index_put((part.token, part.feature), torch.ones(len(part.token)))
    assert torch.equal(rows.bool(), fired[keep])


def test_in_an_evaluation(deep_lm, layers_of, windows):
    context = EvalContext(layers_of(4), deep_lm, windows)
    measure = Cooccurrence(features=20, pairs=30, classes=8, pilot_tokens=50)
    found = measure(context).figures
    assert found.keys() == {
        f"cooccurrence/{k}" for k in ("share", "nats", "mutual_information", "pairs")
    }
    assert found == measure(context).figures
    silent = layers_of(4)
    silent.encoder.W_enc.zero_()
    silent.encoder.b_enc.fill_(-1.0)
    assert measure(EvalContext(silent, deep_lm, windows)).figures == {}

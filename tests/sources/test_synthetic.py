"""The synthetic truth is what its settings say, and every row is a function of its number."""

from __future__ import annotations

import itertools

import pytest
import torch

from dictlearn.sources.protocol import Source
from dictlearn.sources.synthetic import (
    BLOCK,
    CHILDREN,
    Firing,
    Magnitudes,
    SyntheticSource,
    Trees,
    spread,
    zipf,
)

MANY = 40 * BLOCK


FOREST = {"trees__roots": 4, "trees__branching": 3, "trees__depth": 2}
GROUPS = {"firing": Firing, "trees": Trees, "magnitudes": Magnitudes}


def build(**options) -> SyntheticSource:
    """`options` of the groups stand as `trees__roots`."""
    groups: dict[str, dict] = {name: {} for name in GROUPS}
    for key in [key for key in options if "__" in key]:
        group, _, name = key.partition("__")
        groups[group][name] = options.pop(key)
    made = {name: GROUPS[name](**given) for name, given in groups.items()}
    return SyntheticSource(**{"batch_tokens": 300, "seed": 0, **made, **options})


def true_code(source: SyntheticSource, n: int) -> torch.Tensor:
    """Magnitudes of the true features in the rows of `sample(n)`, 0 where silent: [n, F]."""
    blocks = [source._draw(number)[0] for number in range(-(n // -BLOCK))]
    return torch.cat(blocks)[:n]


def fired(source: SyntheticSource) -> torch.Tensor:
    return true_code(source, MANY) > 0


def test_it_is_a_source_without_a_model():
    source = build()
    assert isinstance(source, Source)
    assert source.sources == source.targets == ("synthetic",)
    batch = source.next_batch()
    assert batch.x_NSD.shape == (300, 1, 32) and batch.x_NSD.dtype == torch.float32
    assert batch.y_NTD is batch.x_NSD
    assert batch.tokens_N.shape == batch.positions_N.shape == (300,)
    assert source.info.width == source.width == source.truth.shape[1]


def test_rows_are_true_features_bias_and_noise():
    source, still = build(bias=2.0, noise=0.5), build(bias=0.0, noise=0.0)
    clean = true_code(still, MANY) @ still.truth
    torch.testing.assert_close(still.sample(MANY).x_NSD[:, 0], clean)
    rest = source.sample(MANY).x_NSD[:, 0] - true_code(source, MANY) @ source.truth
    assert rest.mean(0).norm() == pytest.approx(2.0, rel=0.02)
    assert rest.std(0).mean() == pytest.approx(0.5, rel=0.02)


def test_truth_is_unit_features_spread_apart():
    truth = build().truth
    torch.testing.assert_close(truth.norm(dim=1), torch.ones(64))
    n, d = truth.shape
    mean_square = ((truth @ truth.T).square().sum() - n) / (n * (n - 1))
    assert mean_square == pytest.approx((n - d) / (d * (n - 1)), rel=0.01)  # Welch's bound
    few = spread(torch.randn(8, 32), 100)
    torch.testing.assert_close(few @ few.T, torch.eye(8), atol=0.01, rtol=0)


def test_firing_falls_as_zipf_does():
    shape = zipf(100, 0.4, 0.001, 0.5)
    assert shape[0] == pytest.approx(0.4) and shape[-1] == pytest.approx(0.001)
    ranks = torch.arange(1, 101, dtype=torch.float64)
    torch.testing.assert_close(
        (shape - 0.001) / (0.4 - 0.001), (ranks**-0.5 - 0.1) / 0.9, atol=1e-12, rtol=0
    )
    assert (shape.diff() < 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"firing__correlation": 0.0},
        {"firing__correlation": 0.6},
        {"firing__correlation": 0.0, "trees__roots": 4, "trees__branching": 3, "trees__depth": 2},
        {
            "firing__correlation": 0.0,
            "trees__roots": 4,
            "trees__branching": 3,
            "trees__depth": 2,
            "trees__exclusive": False,
        },
    ],
    ids=str,
)
def test_features_fire_as_often_as_they_should(options):
    source = build(**options)
    wanted = source.probability_F
    # Standard error of independent rows, times five.
    allowed = 5 * (wanted * (1 - wanted) / MANY).sqrt()
    assert ((fired(source).double().mean(0) - wanted).abs() < allowed).all()


def test_zipf_holds_under_trees_unless_a_parent_would_never_be_alone():
    wanted = zipf(64, 0.3, 0.01, 0.5)
    roomy = build(trees__roots=4, trees__branching=1, trees__depth=2)
    torch.testing.assert_close(roomy.probability_F, wanted)
    crowded = build(trees__roots=4, trees__branching=4, trees__depth=1)
    together = crowded.probability_F[4:20].view(4, 4).sum(1)
    torch.testing.assert_close(together, CHILDREN * wanted[:4])


def test_correlation_couples_features():
    def coupling(correlation: float) -> float:
        together = torch.corrcoef(fired(build(firing__correlation=correlation)).float().T)
        return float(together.fill_diagonal_(0).abs().mean())

    assert coupling(0.0) < 0.006 < 0.03 < coupling(0.6)


@pytest.mark.parametrize("exclusive", [True, False])
def test_children_fire_only_with_their_parent(exclusive):
    source = build(trees__roots=4, trees__branching=3, trees__depth=2, trees__exclusive=exclusive)
    fires = fired(source)
    child = 4
    for parent in range(4 + 12):  # level after level, siblings side by side
        children = fires[:, child : child + 3]
        assert children.any(0).all()
        assert not (children & ~fires[:, parent, None]).any()
        assert (fires[:, parent] & ~children.any(1)).any()  # a parent alone
        assert (children.sum(1).max() > 1) == (not exclusive) or parent >= 4
        child += 3
    if exclusive:
        assert fires[:, 4:52].view(-1, 16, 3).sum(2).max() == 1


def test_magnitudes_are_positive_and_scale_with_the_parent():
    source = build(
        magnitudes__first=5.0, magnitudes__last=1.0, magnitudes__std=0.3, firing__correlation=0.0
    )
    code = true_code(source, MANY)
    means = code.sum(0) / (code > 0).sum(0)
    assert (code >= 0).all()
    torch.testing.assert_close(means, torch.linspace(5, 1, 64), atol=0.2, rtol=0)

    def with_parent(scale: bool) -> float:
        code = true_code(
            build(
                trees__roots=1,
                trees__branching=1,
                trees__depth=1,
                n_features=2,
                trees__scale_children=scale,
            ),
            MANY,
        )
        parent, child = code[code[:, 1] > 0].T
        return float(torch.corrcoef(torch.stack([parent, child]))[0, 1])

    assert abs(with_parent(False)) < 0.08 < 0.2 < with_parent(True)


@pytest.mark.parametrize("batch_tokens", [1, 300, BLOCK, 2500])
def test_the_batch_size_changes_nothing(batch_tokens):
    source = build(batch_tokens=batch_tokens)
    n = -(-3000 // batch_tokens)
    stream = torch.cat([source.next_batch().x_NSD for _ in range(n)])[:3000]
    assert torch.equal(stream, build().sample(3000).x_NSD)


def test_a_sample_moves_nothing():
    source, untouched = build(), build()
    for _ in range(5):
        source.sample(2000)
        assert torch.equal(source.next_batch().x_NSD, untouched.next_batch().x_NSD)


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 11])
def test_resume_is_bit_exact(cut):
    straight, resumed = build(), build()
    for _ in range(cut):
        straight.next_batch()
    resumed.restore(straight.state())
    for _ in range(5):
        assert torch.equal(resumed.next_batch().x_NSD, straight.next_batch().x_NSD)
    assert resumed.state() == straight.state()


def test_no_block_repeats():
    rows = build(noise=0.0).sample(20 * BLOCK).x_NSD.view(20, BLOCK, 32)
    for one, other in itertools.combinations(rows, 2):
        assert not torch.equal(one, other)


def test_seeds_differ_and_a_state_of_another_is_refused():
    one, other = build(seed=0), build(seed=1)
    assert not torch.equal(one.truth, other.truth)
    with pytest.raises(ValueError, match="seed=1: the run to resume had 0"):
        other.restore(one.state())


def test_ranks_share_no_row():
    ranks = [build(batch_tokens=4 * BLOCK) for _ in range(2)]
    for rank, source in enumerate(ranks):
        source.next_batch()  # what was drawn before must not be taken for the rank's own
        source.restore({**source.state(), "position": 0})
        source.shard(rank, 2)
    both = torch.stack([source.next_batch().x_NSD.view(4, BLOCK, 32) for source in ranks], 1)
    assert torch.equal(both.view(-1, 1, 32), build().sample(8 * BLOCK).x_NSD)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"trees__roots": 10, "trees__branching": 4, "trees__depth": 2},
            "source.n_features=64 .* source.trees.roots=10 .*210",
        ),
        ({"firing__last": 0.5}, "source.firing.last=0.5: want 0 < last <= first < 1"),
        ({"firing__correlation": 1.0}, "source.firing.correlation=1.0: want 0 <= correlation < 1"),
        ({"seed": -1}, "seed=-1"),
        (
            {"sources": ("mlp_in.0",), "targets": ("mlp_out.0",)},
            "reads mlp_in.0 and writes mlp_out.0",
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_work_say_so(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(**options)

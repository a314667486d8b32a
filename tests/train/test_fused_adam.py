"""The fused optimiser takes torch's Adam's steps, without the gradients."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from dictlearn_kernels.fused_adam import compiled, cpu
from dictlearn_kernels.fused_adam.moments import FORMS

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.objectives.auxk import AuxK
from dictlearn.objectives.gated import GateL1, GateReconstruction
from dictlearn.objectives.objective import Objective
from dictlearn.objectives.protocol import Term
from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.train import fused_adam
from dictlearn.train.fused_adam import FusedAdam
from dictlearn.train.groups import parameter_groups
from dictlearn.train.module import DictionaryTraining
from dictlearn.train.schedules import Trapezoid
from dictlearn.train.trainee import Trainee
from dictlearn.types import Batch
from tests.dictionaries import SPARSITIES, shaped
from tests.train.test_module import fit

LAYERS, WIDTH, FEATURES, TOKENS = 3, 8, 32, 64
SITES = tuple(f"mlp_in.{layer}" for layer in range(LAYERS))
WRITTEN = tuple(f"mlp_out.{layer}" for layer in range(LAYERS))
shape_of = partial(shaped, width=WIDTH, n_features=FEATURES, k=4)
SHAPES = {
    "sae": shape_of("sae", SITES[:1], SITES[:1], centre=True),
    "free": shape_of("sae", SITES[:1], SITES[:1], unit_norm=False),
    "plt": shape_of("plt", SITES, WRITTEN),
    "clt": shape_of("clt", SITES, WRITTEN, link="lower"),
    "skip": shape_of("clt", SITES, WRITTEN, link="lower", skip=True, window=2),
    "tied": shape_of("clt", SITES, WRITTEN, link="lower", tied=True),
    "concat": shape_of("crosscoder", SITES, SITES, link="shared"),
    "sum": shape_of("crosscoder", SITES, SITES, link="shared", norm="sum"),
    "nested": shape_of("clt", SITES, WRITTEN, link="lower", prefixes=(8, 32)),
    "molt": shape_of(
        "molt", SITES[:1], WRITTEN[:1], link="transforms", ranks=(2,) * 4, n_features=4, k=2
    ),
    "free molt": shape_of(
        "molt",
        SITES[:1],
        WRITTEN[:1],
        link="transforms",
        ranks=(3,) * 2 + (2,) * 30,
        k=2,
        unit_norm=False,
    ),
}


@pytest.fixture(autouse=True)
def _rows_of_any_size(monkeypatch):
    monkeypatch.setattr(fused_adam, "SMALLEST", 0)
    monkeypatch.setattr(cpu, "BLOCK", 100)  # 12 rows: blocks that don't fit


def batches(shape: Shape, n: int, scale: float = 1.0) -> list[Batch]:
    draws = torch.Generator().manual_seed(1)
    made = []
    for _ in range(n):
        x = scale * torch.randn(TOKENS, len(shape.sources), WIDTH, generator=draws)
        same = shape.sources == shape.targets
        y = (
            None
            if same
            else scale * torch.randn(TOKENS, len(shape.targets), WIDTH, generator=draws)
        )
        made.append(Batch(x, y, torch.zeros(TOKENS, dtype=torch.int64), torch.zeros(TOKENS)))
    return made


def training(shape: Shape, optimiser, sparsity: str = "topk", **options) -> DictionaryTraining:
    torch.manual_seed(3)
    dictionary = Dictionary(shape, SPARSITIES[sparsity])
    terms: dict[str, Term | None] = {"reconstruction": Reconstruction(0.7), "auxk": AuxK(k_aux=4)}
    if sparsity == "gated":  # nothing else trains the gate's bias: its gradient would be noise
        terms |= {"gate_l1": GateL1(0.1), "gate_reconstruction": GateReconstruction(1.0)}
    objective = Objective(terms)
    trainee = Trainee(dictionary, objective, "sqrt_width", dead_after=256)
    trainee.begin(batches(shape, 1)[0])
    made = {"dictionary": trainee, **options.pop("more", {})}
    return DictionaryTraining(made, optimiser, Trapezoid(0.1, 0.2), 10, **options)


TORCH = partial(torch.optim.Adam, lr=1e-2, fused=True)
OURS = partial(FusedAdam, lr=1e-2)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_run_ends_where_torchs_adam_ends(kind, clip_norm):
    shape = SHAPES[kind]
    runs = [training(shape, optimiser, clip_norm=clip_norm) for optimiser in (TORCH, OURS)]
    for run in runs:
        fit(run, batches(shape, 10))
    theirs, ours = (run.trainee().dictionary.state_dict() for run in runs)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_every_sparsity_trains_as_with_torchs_adam(sparsity):
    shape = SHAPES["sae"]
    runs = [training(shape, optimiser, sparsity) for optimiser in (TORCH, OURS)]
    for run in runs:
        fit(run, batches(shape, 10))
    theirs, ours = (run.trainee().state_dict() for run in runs)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("kind, matrices", [("clt", LAYERS), ("free molt", 4)])
def test_no_gradient_of_a_row_ever_exists_in_its_place(kind, matrices, monkeypatch):
    shape = SHAPES[kind]
    run = training(shape, OURS)
    seen = []
    measure = FusedAdam.measure

    def watched(self, name):
        dictionary = run.trainee().dictionary
        rows = [
            dictionary.encoder.W_enc,
            *(p for p in dictionary.decoder.parameters() if p.ndim > 2),
        ]
        seen.append([p.grad is None for p in rows])
        return measure(self, name)

    monkeypatch.setattr(FusedAdam, "measure", watched)
    fit(run, batches(shape, 3))
    assert seen == [[True] * (1 + matrices)] * 3


@pytest.mark.parametrize("kind", ["clt", "free molt"])
def test_accumulated_batches_add_up(kind):
    shape = SHAPES[kind]
    runs = [training(shape, optimiser) for optimiser in (TORCH, OURS)]
    for run in runs:
        fit(run, batches(shape, 9), accumulate=3)
    theirs, ours = (run.trainee().dictionary.state_dict() for run in runs)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("kind", ["clt", "free molt"])
def test_a_refused_step_leaves_nothing_behind(kind):
    shape = SHAPES[kind]
    good = batches(shape, 6)
    bad = batches(shape, 1, scale=float("inf"))
    without, with_one = training(shape, OURS), training(shape, OURS)
    with_one.schedule = without.schedule = lambda step, steps: 1.0  # type: ignore[assignment]
    fit(without, good)
    fit(with_one, [*good[:3], *bad, *good[3:]])
    assert int(with_one.refused) == 1
    for name, expected in without.trainee().dictionary.state_dict().items():
        assert torch.equal(with_one.trainee().dictionary.state_dict()[name], expected), name


def test_one_in_company_trains_as_alone():
    shape = SHAPES["clt"]
    alone = training(shape, OURS, clip_norm=0.5)
    torch.manual_seed(9)
    other = Trainee(
        Dictionary(SHAPES["plt"], SPARSITIES["topk"]),
        Objective({"reconstruction": Reconstruction(50.0)}),
        "sqrt_width",
        256,
    )
    other.begin(batches(shape, 1)[0])
    together = training(shape, OURS, clip_norm=0.5, more={"plt": other})
    for run in (alone, together):
        fit(run, batches(shape, 6))
    for name, expected in alone.trainee().dictionary.state_dict().items():
        assert torch.equal(together.trainee().dictionary.state_dict()[name], expected), name


@pytest.mark.parametrize("moments", FORMS)
def test_the_state_is_saved_and_goes_on(moments):
    shape = SHAPES["clt"]
    run = training(shape, partial(FusedAdam, lr=1e-2, moments=moments))
    optimiser = FusedAdam(parameter_groups(run), lr=1e-2, moments=moments)
    for p in run.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    optimiser.step()
    kept = copy.deepcopy(optimiser.state_dict())
    again = FusedAdam(parameter_groups(run), lr=1e-2, moments=moments)
    again.load_state_dict(kept)
    for p, state in optimiser.state.items():
        assert state.keys() == again.state[p].keys()
        for name, tensor in state.items():
            assert torch.equal(tensor, again.state[p][name])
            assert tensor.dtype == again.state[p][name].dtype
    before = [p.detach().clone() for p in run.parameters()]
    optimiser.step()
    after = [p.detach().clone() for p in run.parameters()]
    for p, kept_p in zip(run.parameters(), before, strict=True):
        p.data.copy_(kept_p)
    again.step()
    for p, expected in zip(run.parameters(), after, strict=True):
        assert torch.equal(p, expected)


@pytest.mark.parametrize("loops", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("moments, bound", [("bfloat16", 0.02), ("8bit", 0.1)])
def test_low_moments_follow_full_ones(moments, bound, loops, monkeypatch):
    """300 steps on one noisy gradient; the update's error is small on average and has no drift."""
    monkeypatch.setattr(compiled, "serves", lambda features: loops)
    draws = torch.Generator().manual_seed(0)
    drift = torch.randn(1, 20, 64, generator=draws)
    ends = {}
    for form in ("float32", moments):
        p = torch.nn.Parameter(torch.zeros(1, 20, 64))
        optimiser = FusedAdam([p], lr=1e-3, moments=form)
        noise = torch.Generator().manual_seed(1)
        for _ in range(300):
            p.grad = drift * (0.3 + torch.rand(1, 20, 64, generator=noise))
            optimiser.step()
        ends[form] = p.detach()
        stored = optimiser.state[p]["exp_avg"]
        assert stored.element_size() == {"float32": 4, "bfloat16": 2, "8bit": 1}[form]
    error = (ends[moments] - ends["float32"]) / ends["float32"].abs().mean()
    assert error.abs().mean() < bound
    assert abs(error.mean()) < bound / 5


def test_small_dictionaries_keep_their_gradients(monkeypatch):
    monkeypatch.setattr(fused_adam, "SMALLEST", 10**6)
    run = training(SHAPES["clt"], OURS)
    fit(run, batches(SHAPES["clt"], 1))
    assert not run.gradients.in_factors

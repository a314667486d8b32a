"""Muon and schedule-free signum: the libraries' own updates, resumed to the bit."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dictlearn.train.callbacks.ema import EMACallback
from dictlearn.train.groups import parameter_groups
from dictlearn.train.muon import Muon
from dictlearn.train.signum import Signum
from tests.train.test_fused_adam import SHAPES, batches, training
from tests.train.test_module import fit

OPTIMISERS = {"muon": partial(Muon, lr=1e-2), "signum": partial(Signum, lr=3e-3)}


def stepped(optimiser, parameters, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    optimiser.step()


def test_muon_updates_every_matrix_of_a_stack_by_itself():
    torch.manual_seed(0)
    stack, bias = torch.nn.Parameter(torch.randn(3, 6, 4)), torch.nn.Parameter(torch.randn(3, 6))
    matrices = [torch.nn.Parameter(matrix.detach().clone()) for matrix in stack]
    ours = Muon([{"params": [stack]}, {"params": [bias]}], lr=0.1)
    options = {"lr": 0.1, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    theirs = torch.optim.Muon(matrices, **options)
    copy = torch.nn.Parameter(bias.detach().clone())
    adam = torch.optim.Adam([copy], lr=0.1, fused=True)
    for step in range(4):
        stepped(ours, [stack, bias], step)
        assert stack.grad is not None
        for i, matrix in enumerate(matrices):
            matrix.grad = stack.grad[i]
        copy.grad = bias.grad
        theirs.step()
        adam.step()
    assert torch.equal(stack.detach(), torch.stack([m.detach() for m in matrices]))
    assert torch.equal(bias, copy)


def test_signum_moves_every_number_by_the_rate_and_ends_at_the_average():
    """With gradients of one sign z goes down by the rate a step; x is the mean of what it was."""
    p = torch.nn.Parameter(torch.zeros(1, 2, 3))
    optimiser = Signum([p], lr=0.1, momentum=0.9)
    optimiser.train()
    for _ in range(4):
        p.grad = torch.rand(1, 2, 3) + 0.1
        optimiser.step()
    z = optimiser.state[p]["z"]
    torch.testing.assert_close(z, torch.full_like(z, -0.4))
    mean = -(0.1 + 0.2 + 0.3 + 0.4) / 4
    torch.testing.assert_close(p.detach(), torch.full_like(z, 0.9 * mean + 0.1 * -0.4))
    optimiser.eval()
    torch.testing.assert_close(p.detach(), torch.full_like(z, mean))
    optimiser.train()
    torch.testing.assert_close(p.detach(), torch.full_like(z, 0.9 * mean + 0.1 * -0.4))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_another_that_takes_the_state_over_goes_on_to_the_bit(name):
    def made():
        torch.manual_seed(1)
        parameters = [torch.nn.Parameter(torch.randn(s)) for s in [(2, 5, 4), (2, 5)]]
        optimiser = OPTIMISERS[name](parameters)
        if isinstance(optimiser, Signum):
            optimiser.train()
        return parameters, optimiser

    (whole, one), (cut, two) = made(), made()
    for step in range(6):
        stepped(one, whole, step)
    for step in range(3):
        stepped(two, cut, step)
    parameters, three = made()
    with torch.no_grad():
        for p, q in zip(parameters, cut, strict=True):
            p.copy_(q)
    three.load_state_dict(two.state_dict())
    if isinstance(three, Signum):
        three.train()  # as the module does at the start of a resumed run
    for step in range(3, 6):
        stepped(three, parameters, step)
    for p, q in zip(parameters, whole, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_kind_learns(name, kind):
    run = training(SHAPES[kind], OPTIMISERS[name])
    (batch,) = batches(SHAPES[kind], 1)
    before = run.trainee()(batch, 1.0).loss.detach()
    fit(run, [batch] * 10)
    assert run.trainee()(batch, 1.0).loss < 0.98 * before


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_refused_step_changes_nothing(name):
    run = training(SHAPES["sae"], OPTIMISERS[name])
    optimiser = run.optimiser(parameter_groups(run))
    before = [p.detach().clone() for p in run.parameters()]
    if isinstance(optimiser, Signum):
        optimiser.train()
    optimiser.step()  # there is no gradient
    for p, q in zip(run.parameters(), before, strict=True):
        assert torch.equal(p, q)


def test_one_average_of_the_weights_is_enough():
    run = training(SHAPES["sae"], OPTIMISERS["signum"])
    with pytest.raises(ValueError, match="optim=signum saves an average of its own"):
        fit(run, batches(SHAPES["sae"], 1), callbacks=[EMACallback()])

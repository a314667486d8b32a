"""The estimate from a stored head and samples, against the exact KL and its exact gradient."""

from __future__ import annotations

import pytest
import torch

from dictlearn.objectives.sparse_targets import SparseTargets, draw_targets, sparse_kl
from tests.formulas import kl_per_token

VOCAB, HEAD, SAMPLES = 60, 4, 6


def pair(noise: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    teacher = 2 * torch.randn(3, VOCAB, dtype=torch.float64)
    student = (teacher + noise * torch.randn(3, VOCAB, dtype=torch.float64)).requires_grad_()
    return teacher.log_softmax(-1), student


def estimate(log_p, student, seed: int, clip: float = 1e9):
    generator = torch.Generator().manual_seed(seed)
    value, _ = sparse_kl(draw_targets(log_p, HEAD, SAMPLES, generator), student, clip)
    return value, torch.autograd.grad(value.sum(), student)[0]


def test_value_and_gradient_are_unbiased():
    log_p, student = pair()
    exact = kl_per_token(log_p, student)
    (gradient,) = torch.autograd.grad(exact.sum(), student)
    drawn = [estimate(log_p, student, seed) for seed in range(3000)]
    for number, truth in enumerate((exact.detach(), gradient)):
        samples = torch.stack([pair[number].detach() for pair in drawn])
        error = (samples.mean(0) - truth).abs()
        allowed = 4.5 * samples.std(0) / len(drawn) ** 0.5 + 1e-7
        assert (error <= allowed).all()
        assert (samples.std(0) > 0).any()


def test_the_head_is_exact_and_without_a_tail_all_is():
    log_p, student = pair()
    (gradient,) = torch.autograd.grad(kl_per_token(log_p, student).sum(), student)
    targets = draw_targets(log_p, HEAD, SAMPLES, torch.Generator().manual_seed(0))
    _, found = estimate(log_p, student, 0)
    head = targets.head_ids_NK.long()
    torch.testing.assert_close(
        found.gather(1, head), gradient.gather(1, head), rtol=1e-5, atol=1e-7
    )
    whole = draw_targets(log_p, VOCAB, 1, torch.Generator().manual_seed(0))
    value, _ = sparse_kl(whole, student, 20.0)
    torch.testing.assert_close(
        value.detach(), kl_per_token(log_p, student).detach(), rtol=1e-5, atol=1e-7
    )
    assert whole.tail_mass_N.abs().max() < 1e-12


def test_a_student_that_agrees_gets_no_gradient_from_any_draw():
    log_p, _ = pair()
    student = log_p.clone().requires_grad_()
    for seed in range(20):
        value, gradient = estimate(log_p, student, seed)
        assert value.detach().abs().max() < 1e-6 and gradient.abs().max() < 1e-6


def test_a_ratio_past_the_clip_is_clipped_and_counted():
    log_p, student = pair(noise=3.0)
    targets = draw_targets(log_p, HEAD, SAMPLES, torch.Generator().manual_seed(0))
    log_q = student.log_softmax(-1).detach()
    ratio = (log_q.gather(1, targets.tail_ids_NM.long()) - targets.tail_log_p_NM).exp()
    _, clipped = sparse_kl(targets, student, 1.5)
    assert 0 < float(clipped) == pytest.approx(float((ratio > 1.5).double().mean()))
    _, gradient = estimate(log_p, student, 0, clip=1.5)
    largest = targets.tail_mass_N[:, None] * 0.5 + 1e-6  # of a sample, all of them on one id
    tail = gradient.scatter(1, targets.head_ids_NK.long(), 0.0)
    assert (tail <= largest).all()


def test_rows():
    targets = draw_targets(pair()[0], HEAD, SAMPLES, torch.Generator().manual_seed(0))
    part = targets.rows(slice(1, 3))
    assert isinstance(part, SparseTargets)
    assert torch.equal(part.tail_ids_NM, targets.tail_ids_NM[1:])

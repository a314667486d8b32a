"""Cross-entropy of the next token as the bad example of a target, against the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dictlearn.lm.patch import patched
from dictlearn.objectives.ce import NextToken
from dictlearn.objectives.kl import KLToTeacher
from dictlearn.objectives.protocol import Forward
from dictlearn.objectives.stand_in import teacher_forced
from tests.objectives.test_kl import (
    TOKENS,
    VALID,
    autoencoder,
    forward_of,
    gradients,
    plain,
    tiny,
)


def term_for(forward: Forward, **options) -> KLToTeacher:
    term = KLToTeacher(**options)
    term.connect(tiny(), NextToken(tiny()), forward.dictionary)
    return term


def pairs() -> list[tuple[int, int]]:
    """Where a valid token is followed by a valid one."""
    b, p = VALID.shape
    return [(i, j) for i in range(b) for j in range(p - 1) if VALID[i, j] and VALID[i, j + 1]]


def cross_entropy(logits_BPV: Tensor) -> Tensor:
    return torch.stack(
        [-logits_BPV[i, j].log_softmax(-1)[TOKENS[i, j + 1]] for i, j in pairs()]
    ).mean()


def with_dictionary(forward: Forward) -> Tensor:
    windows = forward.windows
    assert windows is not None
    stand_in = teacher_forced(
        forward.dictionary, forward.y_hat_NTD, windows.output_scale_T, VALID, [0]
    )
    with patched(tiny(), stand_in, mask_BP=VALID):
        return tiny().logits(TOKENS)


@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_value_and_gradients_are_those_of_the_plain_formula(chunk):
    dictionary = autoencoder()
    forward = forward_of(dictionary)
    assert 0 < len(pairs()) < int(VALID.sum()) - len(VALID)  # some are followed by a masked token
    term = term_for(forward, balance=False, chunk_tokens=chunk)
    value, expected = term(forward), cross_entropy(with_dictionary(forward))
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(
        gradients(value, dictionary), gradients(expected, dictionary), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_the_record_has_the_kl_too_and_it_gives_the_ratio():
    forward = forward_of(autoencoder())
    term = term_for(forward)
    value, figures = term(forward), term.figures()
    kl = float(plain(forward).detach())
    clean, ce = (cross_entropy(x) for x in (tiny().logits(TOKENS), with_dictionary(forward)))
    assert figures["kl"] == pytest.approx(kl, rel=1e-4)
    assert figures["ce_increase"] == pytest.approx(float((ce - clean).detach()), rel=1e-3)
    squared = float(forward.reduce(forward.residual_NTD))
    assert figures["kl_ratio"] == pytest.approx(squared / kl, rel=1e-4)
    torch.testing.assert_close(value.double(), squared / kl * ce, rtol=1e-3, atol=0)


def test_it_pays_for_what_the_model_does_not_know():
    """Descent from the exact reconstruction, where a KL to the model has no gradient at all."""
    forward = forward_of(autoencoder())

    def ce(y_hat_NTD: Tensor) -> Tensor:
        forward.__dict__["y_hats"] = [y_hat_NTD]
        return term_for(forward, balance=False)(forward)

    exact = forward.y_NTD.clone().requires_grad_()
    value = ce(exact)
    (gradient,) = torch.autograd.grad(value, exact)
    assert gradient.norm() > 1e-3
    better = ce((exact - 0.1 * gradient / gradient.norm()).detach())
    assert better < value.detach() - 1e-4


def test_windows_in_which_no_valid_token_follows_another_have_no_loss():
    targets = NextToken(tiny()).targets(
        TOKENS, torch.zeros_like(VALID).index_fill(1, torch.tensor([8]), True)
    )
    logits = torch.randn(2, 50, requires_grad=True)
    value = targets.kl(slice(0, 2), logits).sum()
    assert value == 0
    assert not torch.autograd.grad(value, logits)[0].any()

"""What a training step of a cross-layer transcoder holds at once, in bytes of tensors."""

from __future__ import annotations

import torch

from dictlearn.dicts.clt import clt
from dictlearn.objectives.protocol import Forward
from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.types import ModelInfo
from tests.dictionaries import SPARSITIES
from tests.peak import Peak

N, D, F = 1024, 512, 8
ONE_TARGET = N * D * 4


def peak_of_a_step(n_layers: int, plain: bool = False) -> int:
    info = ModelInfo("tiny", None, "qwen3", n_layers, D, 100, 64)
    dictionary = clt(info, SPARSITIES["topk"], n_features=F, k=4)
    x, y = torch.randn(2, N, n_layers, D)
    dead = torch.zeros(n_layers, F, dtype=torch.bool)
    with Peak() as peak:
        encoding = dictionary.encode_training(x)
        if plain:
            (dictionary.decode(encoding.code) - y).square().mean().backward()
        else:
            forward = Forward(dictionary, x, y, encoding, dead, 1.0, 1.0)
            Reconstruction()(forward).backward()
    return peak.most


def test_of_a_target_nothing_lives_on_but_what_is_left_of_it():
    """From 2 layers to 6: codes (12 numbers an entry, say), gradients, and y - y_hat of 4 more."""
    codes = 4 * N * 4 * 12 * 8
    gradients = 4 * (6 * 7 // 2 + 6) * F * D
    grown = peak_of_a_step(6) - peak_of_a_step(2)
    assert grown < 4 * ONE_TARGET + codes + gradients + ONE_TARGET
    assert peak_of_a_step(6, plain=True) - peak_of_a_step(2, plain=True) > 8 * ONE_TARGET


def test_auxk_holds_no_gradient_until_the_backward_pass():
    """Then its gradients add up with those of the reconstruction, and are the plain ones."""
    info = ModelInfo("tiny", None, "qwen3", 4, D, 100, 64)
    many = 256
    dictionary = clt(info, SPARSITIES["topk"], n_features=many, k=4)
    x, y = torch.randn(2, 64, 4, D)
    with torch.no_grad():
        code = dictionary.encode(x)
    few = code.where(code.features < many // 8)
    decoder = dictionary.decoder.W_dec
    with Peak() as peak:
        error, left = dictionary.squared_error(few, x, y, [0.5], only_features=True)
        held = peak.alive
    assert held < sum(W.nbytes for W in decoder) / 4
    assert torch.stack(list(left), 1).shape == y.shape
    whole, _ = dictionary.squared_error(code, x, y, [1.0])
    (3 * error + whole).backward()
    found = [W.grad.clone() for W in decoder]
    dictionary.zero_grad()
    dense = dictionary.decoder.without_bias(few)
    plain = 3 * 0.5 * (y - dense).square().sum() + (y - dictionary.decode(code)).square().sum()
    plain.backward()
    for one, W in zip(found, decoder, strict=True):
        torch.testing.assert_close(one, W.grad)

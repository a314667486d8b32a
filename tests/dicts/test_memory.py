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


def peak_of_a_step(n_layers: int, streamed: bool) -> int:
    info = ModelInfo("tiny", None, "qwen3", n_layers, D, 100, 64)
    dictionary = clt(info, SPARSITIES["topk"], n_features=F, k=4)
    x, y = torch.randn(2, N, n_layers, D)
    dead = torch.zeros(n_layers, F, dtype=torch.bool)
    with Peak() as peak:
        encoding = dictionary.encode_training(x)
        if streamed:
            forward = Forward(dictionary, x, y, encoding, dead, 1.0, 1.0)
            Reconstruction()(forward).backward()
        else:
            (dictionary.decode(encoding.code) - y).square().mean().backward()
    return peak.most


def test_memory_does_not_grow_with_the_number_of_targets():
    """From 2 layers to 6: only codes (12 numbers an entry, say) and gradients may."""
    codes = 4 * N * 4 * 12 * 8
    gradients = 4 * (6 * 7 // 2 + 6) * F * D
    grown = peak_of_a_step(6, streamed=True) - peak_of_a_step(2, streamed=True)
    assert grown < codes + gradients + ONE_TARGET / 2
    plain = peak_of_a_step(6, streamed=False) - peak_of_a_step(2, streamed=False)
    assert plain > 8 * ONE_TARGET > 2 * grown  # the measure does see activations


def test_gradients_of_few_features_take_few_bytes():
    """AuxK's, beside those of the reconstruction: rows of the dead alone, and the same numbers."""
    info = ModelInfo("tiny", None, "qwen3", 4, D, 100, 64)
    many = 256
    dictionary = clt(info, SPARSITIES["topk"], n_features=many, k=4)
    x, y = torch.randn(2, 64, 4, D)
    with torch.no_grad():
        code = dictionary.encode(x)
    few = code.where(code.features < many // 8)
    decoder = dictionary.decoder.W_dec
    with Peak() as peak:
        error = dictionary.squared_error(few, x, y, [0.5], only_features=True)
        held = peak.alive
    assert held < sum(W.nbytes for W in decoder) / 4
    whole = dictionary.squared_error(code, x, y, [1.0])
    (3 * error + whole).backward()
    found = [W.grad.clone() for W in decoder]
    dictionary.zero_grad()
    dense = dictionary.decoder.without_bias(few)
    plain = 3 * 0.5 * (y - dense).square().sum() + (y - dictionary.decode(code)).square().sum()
    plain.backward()
    for one, W in zip(found, decoder, strict=True):
        assert one.layout == torch.strided
        torch.testing.assert_close(one, W.grad)

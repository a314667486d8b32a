"""Sparsities turned into JumpReLU, and how two dictionaries are compared."""

from __future__ import annotations

import pytest
import torch

from dictlearn.export.calibrate import as_jumprelu
from dictlearn.export.compare import difference
from dictlearn.sparsity.jumprelu import JumpReLU
from tests.dictionaries import activations, small_dictionary


@pytest.mark.parametrize("sparsity", ["gated", "relu"])
def test_gated_and_relu_are_jumprelu_exactly(sparsity):
    dictionary, x = small_dictionary(sparsity, sites=2).eval(), activations(300, 2)
    converted, exact = as_jumprelu(dictionary, lambda: [])
    assert exact and converted.sparsity.name == "jumprelu"
    assert len(dictionary.encode(x).values) > 100
    found = difference(dictionary, converted, [x])
    assert found.small and found.flipped == 0
    assert dictionary.sparsity.name == sparsity  # the one given is as it was


def test_topk_keeps_its_l0_and_each_source_its_own_threshold():
    dictionary, x = small_dictionary("topk", sites=2).eval(), activations(2000, 2)
    dictionary.encoder.W_enc.data[1] *= 5
    dictionary.encoder.b_enc.data[1] *= 5
    converted, exact = as_jumprelu(dictionary, lambda: x.split(300))
    assert not exact
    l0 = converted.encode(x).l0_NS.double().mean(0)
    torch.testing.assert_close(l0, torch.full((2,), 4.0).double(), atol=0.01, rtol=0)
    assert isinstance(converted.sparsity, JumpReLU)
    first, second = converted.sparsity.threshold_SF[:, 0]
    assert second > 3 * first


def test_a_difference_is_seen_in_codes_and_in_reconstructions():
    dictionary, x = small_dictionary("relu").eval().requires_grad_(False), [activations()]
    assert difference(dictionary, dictionary, x) == (0, 0, 0)
    for name, field in {"encoder.W_enc": "encode", "decoder.W_dec": "decode"}.items():
        other = small_dictionary("relu").eval().requires_grad_(False)
        other.load_state_dict(dictionary.state_dict())
        other.get_parameter(name).mul_(1 + 1e-4)
        found = difference(dictionary, other, x)
        assert not found.small and getattr(found, field) > 2e-5
    other.load_state_dict(dictionary.state_dict())
    other.encoder.b_enc.fill_(-100)  # nothing fires: no value differs
    found = difference(dictionary, other, x)
    assert found.flipped == 1 and found.encode == 0 and not found.small
    other.decoder.b_dec.fill_(float("nan"))
    assert not difference(dictionary, other, x).small

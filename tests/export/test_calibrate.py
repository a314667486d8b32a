"""Sparsities turned into JumpReLU, and how two dictionaries are compared."""

from __future__ import annotations

import pytest
import torch

from dictlearn.export.calibrate import as_jumprelu, thresholds_of_equal_rates
from dictlearn.export.compare import difference
from dictlearn.sparsity.topk import TopK
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


@pytest.mark.parametrize("across_layers", [False, True])
def test_a_topk_feature_fires_as_often_as_before(across_layers):
    dictionary, x = small_dictionary("topk", sites=2).eval(), activations(2000, 2)
    assert isinstance(dictionary.sparsity, TopK)
    dictionary.sparsity.across_layers = across_layers
    dictionary.encoder.b_enc.data[0, :3] = -9  # these never fire
    before = (dictionary.encode(x).dense() > 0).sum(0)
    converted, exact = as_jumprelu(dictionary, lambda: x.split(300))
    assert not exact and int((before == 0).sum()) >= 3
    assert torch.equal((converted.encode(x).dense() > 0).sum(0), before)


def test_thresholds_of_equal_rates_are_those_of_sorting_everything():
    dictionary, x = small_dictionary("topk").eval(), activations(500)
    count_F = (dictionary.encode(x).dense() > 0).sum((0, 1))
    pre_NF = dictionary.encoder.pre(dictionary.read(x)).sort(0, descending=True).values
    theta_F = thresholds_of_equal_rates(dictionary, lambda: x.split(64))[0]
    for f, count in enumerate(count_F.tolist()):
        low, high = pre_NF[count, f], pre_NF[max(count - 1, 0), f]
        assert low <= theta_F[f] <= high or (count and 0.9 * high < theta_F[f] < high)


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

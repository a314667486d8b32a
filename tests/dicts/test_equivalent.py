"""Other parameters, the same function."""

from __future__ import annotations

import pytest
import torch

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import parts, recentred, renormed, together
from tests.dictionaries import activations, small_dictionary

INFERENCE = ["relu", "topk", "jumprelu", "gated"]


def stretched(sparsity: str, **shape) -> Dictionary:
    """Decoder norms from 0.5 to 2."""
    dictionary = small_dictionary(sparsity, **shape).eval()
    with torch.no_grad():
        dictionary.decoder.W_dec.mul_(torch.linspace(0.5, 2, dictionary.n_features)[:, None])
        for name, parameter in dictionary.sparsity.named_parameters():
            parameter.uniform_(0.1, 0.5) if "threshold" in name else parameter.normal_(std=0.3)
    return dictionary


def assert_same(a: Dictionary, b: Dictionary, sites: int = 1) -> None:
    x_NSD = activations(sites=sites)
    assert a.encode(x_NSD).values.numel() > 20
    torch.testing.assert_close(a(x_NSD), b(x_NSD))
    assert torch.equal(a.encode(x_NSD).features, b.encode(x_NSD).features)


@pytest.mark.parametrize("sparsity", INFERENCE)
@pytest.mark.parametrize("centre", [True, False])
def test_a_bias_moves_between_input_and_encoder(sparsity, centre):
    dictionary = stretched(sparsity, centre=centre)
    moved = recentred(dictionary, not centre)
    assert moved.shape.centre is not centre
    assert_same(dictionary, moved)
    x_NSD = activations()
    torch.testing.assert_close(dictionary.encode(x_NSD).dense(), moved.encode(x_NSD).dense())


def test_a_bias_moves_where_a_code_is_shared():
    dictionary = small_dictionary(sites=3, link="shared").eval()
    assert_same(dictionary, recentred(dictionary, False), sites=3)


@pytest.mark.parametrize("sparsity", ["relu", "jumprelu", "gated"])
def test_features_of_norm_one_are_the_same_features(sparsity):
    dictionary = stretched(sparsity, sites=2)
    unit = renormed(dictionary)
    torch.testing.assert_close(unit.decoder.norms(), torch.ones_like(unit.decoder.norms()))
    assert_same(dictionary, unit, sites=2)


def test_equal_norms_can_become_one_under_topk_and_others_are_refused():
    dictionary = small_dictionary("topk").eval()
    dictionary.decoder.W_dec.data.mul_(3)
    assert_same(dictionary, renormed(dictionary))
    with pytest.raises(ValueError, match=r"from 0\.5 to 2 cannot become 1 .* topk takes"):
        renormed(stretched("topk"))


@pytest.mark.parametrize("sparsity", INFERENCE)
def test_parts_of_layers_put_together_are_the_whole(sparsity):
    names = {"kind": "plt", "centre": False, "skip": True}
    dictionary = stretched(sparsity, sites=3, **names)
    layers = parts(dictionary)
    assert [layer.sources for layer in layers] == [(f"resid_post.{i}",) for i in range(3)]
    assert layers[0].kind == "sae"
    x_NSD = activations(sites=3)
    alone = torch.cat([layer(x_NSD[:, i : i + 1]) for i, layer in enumerate(layers)], dim=1)
    torch.testing.assert_close(alone, dictionary(x_NSD))
    assert_same(dictionary, together(layers, "plt"), sites=3)

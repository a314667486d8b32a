"""Activations and codes in the shapes of a notebook: what goes in comes out."""

from __future__ import annotations

import pytest
import torch

from dictlearn.types import Code
from tests.dictionaries import activations, small_dictionary

KINDS = {
    "sae": {},
    "transcoder": {"centre": False, "targets": ("mlp_out.0",), "skip": True},
    "molt": {"centre": False, "link": "transforms", "ranks": (2,) * 40, "unit_norm": False},
    "crosscoder": {"centre": False, "link": "shared", "targets": ("resid_post.0", "resid_post.1")},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(12,), (3, 4), (2, 3, 2), (12, 1)], ids=str)
def test_one_site_takes_any_leading_shape_and_gives_it_back(kind, leading):
    dictionary = small_dictionary(kind=kind, **KINDS[kind])
    x_NSD = activations(12)
    plain = dictionary.encode(x_NSD)
    expected = dictionary.decode(plain, x_NSD)
    x = x_NSD.reshape(*leading, 16)
    code = dictionary.encode(x)
    y = dictionary.decode(code, x)
    targets = expected.shape[1:] if dictionary.n_targets > 1 else (16,)
    if leading == (12, 1):  # that is [tokens, sites]: the axis is one of sites as ever
        assert y.shape == expected.shape and code.dense().shape == (12, 1, 40)
    else:
        assert y.shape == (*leading, *targets) and code.dense().shape == (*leading, 40)
        assert code.padded()[0].shape[:-1] == leading
    assert torch.equal(y.reshape(expected.shape), expected)
    assert torch.equal(dictionary(x), y)
    assert torch.equal(code.values, plain.values) and code.n_tokens == 12


def test_what_is_no_tensor_is_refused():
    with pytest.raises(ValueError, match="activations of type ndarray: want a torch.Tensor"):
        small_dictionary().encode(torch.zeros(2, 1, 8).numpy())  # pyright: ignore[reportArgumentType]


def test_one_vector_is_a_token():
    dictionary, x = small_dictionary(), activations(1)
    assert torch.equal(dictionary(x[0, 0]), dictionary(x)[0, 0])


def test_what_is_made_of_a_code_keeps_its_shape():
    code = small_dictionary().encode(activations(6).view(2, 3, 16))
    strong = code.where(code.values > code.values.median())
    assert strong.leading == code.with_values(2 * code.values).leading == (2, 3)
    assert strong.dense().shape == (2, 3, 40)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(12,), (3, 4), (12, 1)], ids=str)
def test_a_dense_code_decodes_as_the_sparse_one(kind, leading):
    dictionary = small_dictionary(kind=kind, **KINDS[kind])
    x_NSD = activations(12)
    code = dictionary.encode(x_NSD)
    expected = dictionary.decode(code, x_NSD)
    y = dictionary.decode(code.dense().reshape(*leading, 40), x_NSD)
    assert y.shape[:-1] == leading or dictionary.n_targets > 1
    torch.testing.assert_close(y.reshape(expected.shape), expected)


def test_a_dense_code_of_several_sources_and_of_any_sign():
    dictionary = small_dictionary(sites=2)
    dense = torch.randn(5, 2, 40, dtype=torch.float64)
    expected = torch.einsum("nsf,sfd->nsd", dense, dictionary.W_dec) + dictionary.b_dec
    torch.testing.assert_close(dictionary.decode(dense), expected)


def test_every_entry_of_a_dense_code_gets_its_gradient():
    dictionary = small_dictionary()
    dense = dictionary.encode(activations(7)[:, 0]).dense().detach().requires_grad_()
    dictionary.decode(dense).sum().backward()
    torch.testing.assert_close(dense.grad, dictionary.W_dec.sum(1).expand(7, 40))


def test_pre_activations_are_a_product_with_the_weights():
    """What `W_enc`, `b_enc` and `b_dec` promise, of one site and of several."""
    one, several = small_dictionary(), small_dictionary(sites=3)
    assert one.W_enc.shape == one.W_dec.shape == (40, 16)
    assert one.b_enc.shape == (40,) and one.b_dec.shape == (16,)
    x = activations(9)
    pre = (x[:, 0] - one.b_dec) @ one.W_enc.T + one.b_enc
    torch.testing.assert_close(one.encoder.pre(one.read(x)), pre)

    assert several.W_enc.shape == several.W_dec.shape == (3, 40, 16)
    assert several.b_enc.shape == (3, 40) and several.b_dec.shape == (3, 16)
    x = activations(9, sites=3)
    pre = torch.einsum("nsd,sfd->nsf", x - several.b_dec, several.W_enc) + several.b_enc
    torch.testing.assert_close(several.encoder.pre(several.read(x)).view(9, 3, 40), pre)


def test_weights_of_a_crosscoder():
    dictionary = small_dictionary(sites=3, kind="crosscoder", link="shared")
    x = activations(9, sites=3)
    pre = torch.einsum("nsd,sfd->nf", x - dictionary.b_dec, dictionary.W_enc) + dictionary.b_enc
    torch.testing.assert_close(dictionary.encoder.pre(dictionary.read(x)), pre)
    code = dictionary.encode(x)
    y = torch.einsum("nf,tfd->ntd", code.dense()[:, 0], dictionary.W_dec) + dictionary.b_dec
    torch.testing.assert_close(dictionary.decode(code), y)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_a_cross_layer_transcoder(tied):
    targets = tuple(f"mlp_out.{i}" for i in range(3))
    dictionary = small_dictionary(
        sites=3, kind="clt", targets=targets, centre=False, link="lower", tied=tied
    )
    x = activations(9, sites=3)
    dense = dictionary.encode(x).dense()
    for t in range(3):
        if tied:
            W_SFD = dictionary.W_dec[: t + 1]
        else:
            W_SFD = dictionary.W_dec[t]
            assert W_SFD.shape == (len(dictionary.reads(t)), 40, 16)
        y_ND = torch.einsum("nsf,sfd->nd", dense[:, : t + 1], W_SFD) + dictionary.b_dec[t]
        torch.testing.assert_close(dictionary(x)[:, t], y_ND)


def test_weights_can_be_written_through():
    dictionary = small_dictionary()
    with torch.no_grad():
        dictionary.W_dec[7] = 0
        dictionary.W_enc[7] = 0
    assert not dictionary.decoder.W_dec[0, 7].any() and not dictionary.encoder.W_enc[0, 7].any()


def test_a_molt_says_where_its_maps_are():
    dictionary = small_dictionary(kind="molt", **KINDS["molt"])
    with pytest.raises(ValueError, match="no fixed decoder vectors; decoder.U and decoder.V"):
        _ = dictionary.W_dec


@pytest.mark.parametrize(
    ("sites", "shape", "message"),
    [
        (1, (5, 15), r"of shape \(5, 15\): this sae reads \[tokens, width 16\] or \[batch, pos"),
        (1, (5, 2, 15), r"reads \[tokens, width 16\]"),
        (1, (5, 1, 15), r"reads \[tokens, width 16\]"),
        (1, (), r"of shape \(\)"),
        (2, (5, 16), r"reads \[tokens, 2 sites, width 16\]"),
        (2, (5, 3, 16), r"reads \[tokens, 2 sites, width 16\]"),
    ],
    ids=str,
)
def test_other_shapes_are_refused(sites, shape, message):
    with pytest.raises(ValueError, match=message):
        small_dictionary(sites=sites).encode(torch.zeros(shape, dtype=torch.float64))


def test_codes_that_do_not_fit_are_refused():
    one, two = small_dictionary(), small_dictionary(sites=2)
    with pytest.raises(ValueError, match=r"of shape \(5, 39\): this sae decodes \[..., 40 feat"):
        one.decode(torch.zeros(5, 39))
    with pytest.raises(ValueError, match=r"decodes \[tokens, 2 sources, 40 features\]"):
        two.decode(torch.zeros(5, 40))
    with pytest.raises(ValueError, match="a code of 2 sources of 40 features: this sae has 1"):
        one.decode(two.encode(activations(3, sites=2)))
    skip = small_dictionary(kind="transcoder", **KINDS["transcoder"])
    with pytest.raises(ValueError, match="activations of 4 tokens for a code of 3"):
        skip.decode(skip.encode(activations(3)), activations(4))


def test_a_dictionary_prints_what_it_is():
    dictionary = small_dictionary(sites=2, n_features=4000)
    assert repr(dictionary).splitlines() == [
        "Dictionary: sae",
        "  reads      resid_post.0, resid_post.1",
        "  writes     resid_post.0, resid_post.1",
        "  features   4,000 for each of 2 sources, width 16",
        "  sparsity   topk, k = 4",
        "  held out   no figures were saved with it; dictlearn.evaluate() computes them",
    ]
    dictionary.provenance = {
        "model": "pico",
        "tokens": 1_000_000,
        "sparsity": {"_target_": "dictlearn.sparsity.batchtopk.BatchTopK", "k": 4},
    }
    dictionary.figures = {"fvu": 0.0686, "l0": 3.98, "dead": 0.0186, "tokens": 65523}
    text = repr(dictionary)
    assert "Dictionary: sae of pico" in text
    assert "topk (trained as batchtopk), L0 3.98 per token, k = 4" in text
    assert "FVU 0.0686, 1.86% of features never fired (65,523 tokens)" in text
    assert "trained on 1,000,000 tokens" in text


def test_k_is_printed_where_something_aimed_at_it():
    dictionary = small_dictionary("relu")
    assert "  sparsity   relu\n" in repr(dictionary)
    for terms, said in (
        ({"l0_target": {"k": 4}}, "relu, k = 4"),
        ({"l1": {"coefficient": 1}}, "relu"),
    ):
        dictionary.provenance = {"objective": {"terms": terms}}
        assert f"  sparsity   {said}\n" in repr(dictionary)


def test_what_a_stranger_wrote_is_printed_as_text():
    dictionary = small_dictionary(kind="sae\x1b[31m")
    dictionary.provenance = {"model": "m\x1b]0;title\x07\nline", "tokens": "1", "sparsity": 3}
    assert "\x1b" not in repr(dictionary) and "\x07" not in repr(dictionary)
    assert len(repr(dictionary).splitlines()) == 6
    assert isinstance(dictionary.encode(activations(2)), Code)

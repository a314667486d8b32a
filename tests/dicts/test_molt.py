"""Mixtures of linear transforms: identities, units, constraints, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dictlearn.dicts.description import from_json
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.molt import mixture, molt
from dictlearn.objectives.auxk import AuxK
from dictlearn.objectives.l1 import L1
from dictlearn.objectives.protocol import Forward
from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.objectives.tanh_l0 import TanhL0
from dictlearn.sparsity.relu import ReLU
from dictlearn.types import Code, ModelInfo
from tests.dictionaries import SPARSITIES, activations

INFO = ModelInfo("toy", None, "qwen3", n_layers=4, width=16, vocab_size=50, context_length=32)
RANKS = (5, 3, 3, 2, 2, 2, 1, 1, 1, 1)


def small_molt(sparsity: str = "topk", **options) -> Dictionary:
    """Float64, random everywhere that a gradient should reach."""
    dictionary = molt(INFO, SPARSITIES[sparsity], ranks=RANKS, k=4, **options).double()
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name.endswith(("b_dec", "r_SF", "b_mag_SF")):
                parameter.normal_(std=0.3)
    return dictionary


def maps(dictionary: Dictionary) -> torch.Tensor:
    """U_t V_t as dense [F, D out, D in]."""
    pairs = zip(dictionary.decoder.U, dictionary.decoder.V, strict=True)  # type: ignore
    return torch.cat([torch.einsum("nkd,nke->nde", U, V) for U, V in pairs])


def forward_of(dictionary: Dictionary, dead=()) -> Forward:
    x, y = activations(), activations()
    dead_SF = torch.zeros(1, dictionary.n_features, dtype=torch.bool)
    dead_SF[:, list(dead)] = True
    encoding = dictionary.encode_training(x)
    return Forward(dictionary, x, y, encoding, dead_SF=dead_SF, progress=1.0, loss_scale=1.0)


def same_gradients(dictionary: Dictionary, ours: torch.Tensor, plain: torch.Tensor) -> None:
    torch.testing.assert_close(ours, plain)
    parameters = [*dictionary.parameters()]
    grad = partial(torch.autograd.grad, inputs=parameters, retain_graph=True, allow_unused=True)
    for mine, theirs in zip(
        grad(ours, materialize_grads=True), grad(plain, materialize_grads=True), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_it_is_the_sum_of_gated_maps_of_the_input(sparsity):
    dictionary = small_molt(sparsity)
    x = activations()
    support = dictionary.encode_training(x).support
    ours = dictionary.decode(support, x)
    plain = torch.einsum("nsf,fde,nse->nsd", support.dense(), maps(dictionary), x)
    plain = plain + dictionary.decoder.b_dec
    weights = torch.randn_like(ours)
    same_gradients(dictionary, (ours * weights).sum(), (plain * weights).sum())


def test_with_every_gate_at_one_it_is_one_linear_map():
    dictionary = small_molt()
    x, n = activations(), dictionary.n_features
    everything = torch.arange(n).repeat(len(x))
    ones = torch.ones(len(x) * n, dtype=torch.float64)
    code = Code(torch.arange(0, len(x) * n + 1, n), everything, ones, 1, n)
    expected = x @ maps(dictionary).sum(0).T + dictionary.decoder.b_dec
    torch.testing.assert_close(dictionary.decode(code, x), expected)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_folding_changes_units_and_nothing_else(sparsity):
    """Degree two: the gate and what it gates both grow with the input."""
    dictionary = small_molt(sparsity).eval()
    a, o = (torch.tensor([s], dtype=torch.float64) for s in (0.25, 7.0))
    raw = activations()
    if sparsity == "batchtopk":
        dictionary = dictionary.inference_form(lambda: [raw * a])
    folded = dictionary.folded(a, o)
    torch.testing.assert_close(folded(raw), dictionary(raw * a) / o)
    torch.testing.assert_close(folded.encode(raw).values, dictionary.encode(raw * a).values / a)
    assert torch.equal(folded.encoder.W_enc, dictionary.encoder.W_enc)


@pytest.mark.parametrize("sparsity", ["topk", "jumprelu"])
def test_layer_by_layer_is_all_at_once(sparsity):
    dictionary = small_molt(sparsity)
    x = activations()
    code = dictionary.encode_source(x[:, 0], 0).code
    y_hat = dictionary.decode_target(0, {0: code}, {0: x[:, 0]})
    torch.testing.assert_close(y_hat, dictionary(x)[:, 0])
    assert dictionary.layerwise and list(dictionary.reads(0)) == [0]


def test_norms_are_those_of_the_maps():
    dictionary = small_molt()
    plain = torch.linalg.matrix_norm(maps(dictionary))
    torch.testing.assert_close(dictionary.decoder.norms()[0], plain)
    torch.testing.assert_close(dictionary.decoder.norms_by_target(), plain.mean()[None, None])


@pytest.mark.parametrize("sparsity", ["relu", "jumprelu"])
def test_penalties_weigh_each_gate_by_the_norm_of_its_map(sparsity):
    dictionary = small_molt(sparsity)
    forward = forward_of(dictionary)
    norms = torch.linalg.matrix_norm(maps(dictionary))
    weighted = forward.encoding.support.dense()[:, 0] * norms
    same_gradients(dictionary, L1(1.0)(forward), weighted.sum(1).mean())
    tanh = torch.tanh(0.7 * weighted).sum(1).mean()
    same_gradients(dictionary, TanhL0(1.0, warmup=0.0, scale=0.7)(forward), tanh)


def test_auxk_teaches_dead_transforms_the_residual():
    dead = [0, 3, 7]
    dictionary = small_molt()
    forward = forward_of(dictionary, dead=dead)
    x = forward.x_NSD[:, 0]
    pre = x @ dictionary.encoder.W_enc[0].T + dictionary.encoder.b_enc[0]
    gates = pre[:, dead].relu()
    gates = gates * torch.zeros_like(gates).scatter(1, pre[:, dead].topk(2).indices, 1.0)
    e_hat = torch.einsum("nf,fde,ne->nd", gates, maps(dictionary)[dead], x)
    residual = forward.residual_NTD[:, 0]
    plain = (residual - e_hat).square().sum() / len(x)
    same_gradients(dictionary, AuxK(1.0, k_aux=2)(forward), plain)


def test_reconstruction_is_the_squared_error():
    dictionary = small_molt()
    forward = forward_of(dictionary)
    plain = (forward.y_NTD - dictionary(forward.x_NSD)).square().sum((1, 2)).mean()
    same_gradients(dictionary, Reconstruction()(forward), plain)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_plain_json_rebuilds_the_same_dictionary(sparsity):
    dictionary = small_molt(sparsity)
    twin = from_json(dictionary.to_json()).double()
    twin.load_state_dict(dictionary.state_dict())
    x = activations()
    assert torch.equal(twin(x), dictionary(x))


def test_maps_start_small_and_gates_open():
    dictionary = molt(INFO, ReLU, n=2, k=4)
    x = torch.randn(500, 1, 16)
    norms = dictionary.decoder.norms()
    torch.testing.assert_close(norms, norms[:, :1].expand_as(norms))
    torch.testing.assert_close(dictionary.encoder.W_enc.norm(dim=-1), torch.ones(1, 62))
    assert dictionary.encode(x).l0_NS.double().mean() > 0.8 * 62
    assert dictionary(x).square().sum(-1).mean() < x.square().sum(-1).mean()


def test_maps_stay_at_norm_one_if_asked():
    dictionary = molt(INFO, SPARSITIES["topk"], ranks=RANKS, k=4, unit_norm=True)
    optimiser = torch.optim.Adam(dictionary.parameters(), lr=0.05)
    for _ in range(5):
        x = activations().float()
        (dictionary(x) - x).square().sum().backward()
        dictionary.decoder.project_gradient()
        pairs = zip(dictionary.decoder.U, dictionary.decoder.V, strict=True)  # type: ignore
        for U, V in pairs:
            assert ((U * U.grad + V * V.grad).sum((1, 2)).abs() < 1e-4).all()
        optimiser.step()
        optimiser.zero_grad()
        dictionary.after_step()
        assert (dictionary.decoder.norms() - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("width", "expected"),
    [(2560, (512, 256, 128, 64, 32)), (256, (128, 64, 32, 16, 8)), (16, (8, 4, 2, 1, 1))],
    ids=str,
)
def test_ranks_halve_as_their_number_doubles(width, expected):
    ranks = mixture(3, width)
    assert len(ranks) == 31 * 3
    assert [ranks.count(rank) for rank in expected[:3]] == [3, 6, 12]
    assert set(ranks) == set(expected) and list(ranks) == sorted(ranks, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 36}, "dict.layer=36: toy has layers 0 to 3"),
        ({"n": 0}, "dict.n=0: want at least 1; there are 31 transforms for each"),
        ({"k": 125}, "dict.k=125: want more than 0 and at most dict.n_features=124"),
        ({"ranks": [4, 0], "k": 1}, r"dict.ranks=\[4, 0\]: want a rank of 1 or more for each of t"),
    ],
    ids=str,
)
def test_bad_options_get_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        molt(INFO, ReLU, **options)


def test_decoding_without_the_input_is_refused():
    dictionary = small_molt()
    with pytest.raises(ValueError, match=r"a molt decodes from its input too: decode\(code, x\)"):
        dictionary.decode(dictionary.encode(activations()))

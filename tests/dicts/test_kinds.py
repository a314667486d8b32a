"""Kinds are one another in their special cases: outputs, losses and every gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dictlearn.dicts.clt import clt
from dictlearn.dicts.crosscoder import crosscoder
from dictlearn.dicts.description import from_json
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.plt import plt
from dictlearn.dicts.sae import sae
from dictlearn.dicts.transcoder import transcoder
from dictlearn.objectives.auxk import AuxK
from dictlearn.objectives.l1 import L1
from dictlearn.objectives.protocol import Forward
from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.objectives.tanh_l0 import TanhL0
from dictlearn.sparsity.batchtopk import BatchTopK
from dictlearn.sparsity.topk import TopK
from dictlearn.types import ModelInfo
from tests.dictionaries import SPARSITIES

INFO = ModelInfo("tiny", None, "qwen3", 4, 12, 100, 64)
TERMS = {"reconstruction": Reconstruction(), "auxk": AuxK(k_aux=3), "l1": L1(), "tanh": TanhL0()}


def randomised(dictionary: Dictionary) -> Dictionary:
    """Float64, with every parameter away from where it starts."""
    dictionary = dictionary.double()
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name.endswith(("b_enc", "b_dec", "W_skip", "r_SF", "b_mag_SF")):
                parameter.normal_(std=0.3)
    return dictionary


def activations(sites: int, n: int = 50) -> torch.Tensor:
    return torch.randn(n, sites, INFO.width, dtype=torch.float64)


def losses(dictionary: Dictionary, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every term's value, a third of the features counting as dead."""
    dead = torch.zeros(dictionary.code_sources, dictionary.n_features, dtype=torch.bool)
    dead[:, ::3] = True
    forward = Forward(dictionary, x, y, dictionary.encode_training(x), dead, 1.0, 1.7)
    return {name: term(forward) for name, term in TERMS.items()}


def gradients(dictionary: Dictionary, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients of the sum of all terms, by parameter; a decoder of one target counts as whole."""
    dictionary.zero_grad()
    torch.stack(list(losses(dictionary, x, y).values())).sum().backward()
    found = {name: p.grad for name, p in dictionary.named_parameters() if p.grad is not None}
    return {name.replace("W_dec.0", "W_dec"): g for name, g in found.items()}


def assert_same(one: Dictionary, other: Dictionary, n_sites: int) -> None:
    """`other` gets the parameters of `one`, and must then do the same with them."""
    values = {name.replace("W_dec.0", "W_dec"): v for name, v in one.state_dict().items()}
    other.load_state_dict(
        {
            name: values[name.replace("W_dec.0", "W_dec")].reshape(tensor.shape)
            for name, tensor in other.state_dict().items()
        }
    )
    x, y = activations(n_sites), activations(n_sites)
    torch.testing.assert_close(one(x), other(x))
    torch.testing.assert_close(losses(one, x, y), losses(other, x, y))
    torch.testing.assert_close(one.decoder.norms(), other.decoder.norms())
    ours, theirs = gradients(one, x, y), gradients(other, x, y)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient.reshape(theirs[name].shape), theirs[name], msg=name)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("skip", [False, True])
def test_a_clt_of_one_layer_is_a_transcoder(sparsity, skip):
    make = {"n_features": 20, "k": 4, "skip": skip}
    one = transcoder(INFO, SPARSITIES[sparsity], layer=2, **make)
    assert_same(randomised(one), clt(INFO, SPARSITIES[sparsity], layers=[2], **make).double(), 1)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_a_plt_of_one_layer_is_a_transcoder(sparsity):
    make = {"n_features": 20, "k": 4, "prefixes": [0.25, 1.0]}
    one = transcoder(INFO, SPARSITIES[sparsity], layer=2, **make)
    assert_same(randomised(one), plt(INFO, SPARSITIES[sparsity], layers=[2], **make).double(), 1)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("options", [{}, {"skip": True}, {"prefixes": [0.25, 0.5, 1.0]}], ids=str)
def test_a_clt_of_window_one_is_a_plt(sparsity, options):
    """The diagonal decodes all at once, the other target by target: parameters must be dealt out."""
    make = {"n_features": 20, "k": 4, **options}
    one = randomised(plt(INFO, SPARSITIES[sparsity], **make))
    other = clt(INFO, SPARSITIES[sparsity], window=1, **make).double()
    state = dict(one.state_dict())
    for t, W_FD in enumerate(state.pop("decoder.W_dec")):
        state[f"decoder.W_dec.{t}"] = W_FD[None]
    other.load_state_dict(state)
    x, y = activations(4), activations(4)
    torch.testing.assert_close(one(x), other(x))
    torch.testing.assert_close(losses(one, x, y), losses(other, x, y))
    ours, theirs = gradients(one, x, y), gradients(other, x, y)
    dealt = [theirs.pop("decoder.W_dec" if t == 0 else f"decoder.W_dec.{t}") for t in range(4)]
    torch.testing.assert_close(ours.pop("decoder.W_dec"), torch.cat(dealt))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("norm", ["concat", "sum"])
def test_a_crosscoder_of_one_site_is_an_autoencoder(sparsity, norm):
    one = sae(INFO, SPARSITIES[sparsity], layer=1, n_features=20, k=4)
    options = {"sites": ["resid_post.1"], "n_features": 20, "k": 4, "norm": norm}
    assert_same(randomised(one), crosscoder(INFO, SPARSITIES[sparsity], **options).double(), 1)


def test_an_autoencoder_is_a_transcoder_whose_target_is_its_source():
    one = sae(INFO, SPARSITIES["topk"], site="mlp_in", layer=1, n_features=20, k=4)
    other = transcoder(INFO, SPARSITIES["topk"], layer=1, n_features=20, k=4).double()
    one = randomised(one)
    with torch.no_grad():
        one.decoder.b_dec.zero_()  # which an autoencoder also subtracts from its input
    x = activations(1)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(x), other(x))


def test_a_clt_decodes_as_its_equation_says():
    """y_t = sum over s <= t within the window of f_s W_dec[s -> t] + b_t, written densely."""
    dictionary = randomised(clt(INFO, SPARSITIES["jumprelu"], n_features=20, k=4, window=3))
    x = activations(4)
    code_NSF = dictionary.encode(x).dense()
    y = dictionary(x)
    for t, W_SFD in enumerate(dictionary.decoder.W_dec):
        sources = range(max(0, t - 2), t + 1)
        assert dictionary.reads(t) == sources
        expected = dictionary.decoder.b_dec[t]
        for s, W_FD in zip(sources, W_SFD, strict=True):
            expected = expected + code_NSF[:, s] @ W_FD
        torch.testing.assert_close(y[:, t], expected)


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"skip": True}, {"prefixes": [0.5, 1.0]}])
def test_the_squared_error_has_every_gradient_of_the_plain_one(options):
    dictionary = randomised(clt(INFO, SPARSITIES["topk"], n_features=20, k=4, **options))
    x, y = activations(4).requires_grad_(), activations(4)
    weights = [0.3, 0.7][: max(1, len(dictionary.shape.prefixes))]
    code = dictionary.encode(x)
    error, left = dictionary.squared_error(code, x, y, weights)
    outputs = dictionary.decode_prefixes(code, x)
    errors = [w * (y - y_hat).square().sum() for w, y_hat in zip(weights, outputs, strict=True)]
    plain = torch.stack(errors).sum()
    torch.testing.assert_close(error, plain)
    torch.testing.assert_close(torch.stack(list(left), 1), (y - outputs[-1]).detach())
    inputs = [code.values, *dictionary.decoder.parameters()]
    ours = torch.autograd.grad(3 * error, inputs, retain_graph=True)
    for one, other in zip(ours, torch.autograd.grad(3 * plain, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_a_tied_clt_is_the_clt_with_its_vectors_copied():
    tied = randomised(clt(INFO, SPARSITIES["topk"], n_features=20, k=4, window=3, tied=True))
    free = clt(INFO, SPARSITIES["topk"], n_features=20, k=4, window=3).double()
    state = dict(tied.state_dict())
    del state["decoder.links_TS"]
    W_SFD = state.pop("decoder.W_dec")
    for t in range(4):
        sources = free.reads(t)
        state[f"decoder.W_dec.{t}"] = W_SFD[sources.start : sources.stop]
    free.load_state_dict(state)
    x = activations(4)
    torch.testing.assert_close(tied(x), free(x))
    torch.testing.assert_close(tied.decoder.norms(), free.decoder.norms())
    torch.testing.assert_close(tied.decoder.norms_by_target(), free.decoder.norms_by_target())


def test_norms_put_together_are_the_root_of_the_sum_of_squares():
    decoder = clt(INFO, SPARSITIES["topk"], n_features=20, k=4, unit_norm=False).decoder
    source_1 = torch.cat([decoder.W_dec[t][1] for t in (1, 2, 3)], dim=-1)
    torch.testing.assert_close(decoder.norms()[1], source_1.norm(dim=-1))
    table = decoder.norms_by_target()
    assert table.shape == (4, 4) and torch.equal(table, table.triu())
    torch.testing.assert_close(table[1, 3], decoder.W_dec[3][1].norm(dim=-1).mean())


MULTI = {
    "plt": partial(plt, skip=True),
    "clt": partial(clt, skip=True),
    "windowed clt": partial(clt, window=2),
    "tied clt": partial(clt, tied=True),
    "crosscoder": partial(crosscoder, targets=["mlp_out.0", "mlp_out.3"]),
    "crosscoder, sum": partial(crosscoder, norm="sum"),
}


@pytest.mark.parametrize("kind", MULTI)
def test_unit_norms_stay_and_the_gradient_leaves_them_alone(kind):
    dictionary = MULTI[kind](INFO, SPARSITIES["topk"], n_features=20, k=4).double()
    dictionary.after_step()
    ones = torch.ones_like(dictionary.decoder.norms())
    torch.testing.assert_close(dictionary.decoder.norms(), ones)
    x, y = activations(dictionary.n_sources), activations(dictionary.n_targets)
    (dictionary(x) - y).square().sum().backward()

    def slope() -> float:
        """How fast norms change along the gradient."""
        norms = []
        for step in (1e-6, -2e-6, 1e-6):
            with torch.no_grad():
                for parameter in dictionary.decoder.parameters():
                    assert parameter.grad is not None
                    parameter.add_(parameter.grad, alpha=step)
            norms.append(dictionary.decoder.norms().detach())
        return float((norms[0] - norms[1]).abs().max() / 2e-6)

    before = slope()
    dictionary.decoder.project_gradient()
    assert before > 1 and slope() < 1e-4 * before
    with torch.no_grad():
        for parameter in dictionary.decoder.parameters():
            parameter.mul_(1.5)
    dictionary.after_step()
    torch.testing.assert_close(dictionary.decoder.norms(), ones)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("kind", MULTI)
def test_folding_gives_the_same_function_of_raw_activations(kind, sparsity):
    dictionary = randomised(MULTI[kind](INFO, SPARSITIES[sparsity], n_features=20, k=4)).eval()
    scale_S = torch.rand(dictionary.n_sources).double() + 0.2
    scale_T = torch.rand(dictionary.n_targets).double() + 0.2
    if dictionary.shape.centre:
        scale_T = scale_S
    if sparsity == "batchtopk":  # which has no form without a batch
        x = activations(dictionary.n_sources)
        dictionary = dictionary.inference_form(lambda: [x])
    folded = dictionary.folded(scale_S, scale_T)
    x = activations(dictionary.n_sources)
    expected = dictionary(x * scale_S[:, None]) / scale_T[:, None]
    torch.testing.assert_close(folded(x), expected)
    again = from_json(folded.to_json()).double()
    again.load_state_dict(folded.state_dict())
    torch.testing.assert_close(again.eval()(x), expected)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("kind", ["plt", "clt", "windowed clt", "tied clt"])
def test_layer_by_layer_is_all_at_once(kind, sparsity):
    dictionary = randomised(MULTI[kind](INFO, SPARSITIES[sparsity], n_features=20, k=4))
    x = activations(4)
    parts = [dictionary.encode_source(x[:, s], s) for s in range(4)]
    whole = dictionary.encode_training(x)
    of_support = whole.support.with_values(whole.pre).dense()
    for s, part in enumerate(parts):
        assert torch.equal(whole.code.l0_NS[:, s], part.code.l0_NS[:, 0])
        assert torch.equal(whole.support.l0_NS[:, s], part.support.l0_NS[:, 0])
        torch.testing.assert_close(whole.code.dense()[:, s], part.code.dense()[:, 0])
        torch.testing.assert_close(whole.support.dense()[:, s], part.support.dense()[:, 0])
        of_part = part.support.with_values(part.pre).dense()
        torch.testing.assert_close(of_support[:, s], of_part[:, 0])
    codes = {s: part.code for s, part in enumerate(parts)}
    y_hat = [dictionary.decode_target(t, codes, dict(enumerate(x.unbind(1)))) for t in range(4)]
    torch.testing.assert_close(torch.stack(y_hat, dim=1), dictionary(x))
    inputs = list(dictionary.parameters())
    ours = torch.autograd.grad(torch.stack(y_hat).square().sum(), inputs, allow_unused=True)
    theirs = torch.autograd.grad(dictionary(x).square().sum(), inputs, allow_unused=True)
    for (name, _), one, other in zip(dictionary.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize("sparsity", [TopK, BatchTopK])
def test_budgets_are_each_layers_or_everybodys(sparsity):
    x = activations(4)
    x[:, 2] *= 10  # one loud layer
    layers = clt(INFO, partial(sparsity, k=3), n_features=20, k=3).double().encode(x).l0_NS
    assert (layers.sum(0) == 150).all()
    shared = clt(INFO, partial(sparsity, k=3, across_layers=True), n_features=20, k=3).double()
    l0_NS = shared.encode(x).l0_NS
    assert l0_NS.sum() == 600 and (l0_NS[:, 2] > l0_NS[:, 0]).all()
    if sparsity is TopK:
        assert (l0_NS.sum(1) == 12).all()
    with pytest.raises(ValueError, match="sparsity.across_layers=true: .* want false"):
        shared.encode_source(x[:, 0], 0)


def test_batchtopk_calibrates_a_threshold_for_each_layer():
    dictionary = clt(INFO, partial(BatchTopK, k=3), n_features=20, k=3).double()
    x = activations(4, n=400)
    x[:, 2] *= 10
    frozen = dictionary.inference_form(lambda: x.split(100))
    torch.testing.assert_close(
        frozen.encode(x).l0_NS.double().mean(0), torch.full((4,), 3.0).double()
    )


def test_a_crosscoder_reads_all_sites_for_one_code():
    dictionary = randomised(crosscoder(INFO, SPARSITIES["relu"], n_features=20, k=4))
    x = activations(4)
    W_enc = dictionary.encoder.W_enc[0].view(20, 4, 12)
    pre = torch.einsum("fsd,nsd->nf", W_enc, x - dictionary.decoder.b_dec)
    code = (pre + dictionary.encoder.b_enc[0]).relu()
    y = torch.stack([code @ W[0] for W in dictionary.decoder.W_dec], 1) + dictionary.decoder.b_dec
    torch.testing.assert_close(dictionary(x), y)
    with pytest.raises(ValueError, match="one code for all its sites"):
        dictionary.encode_source(x[:, 0], 0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            partial(clt, layers=[0, 9]),
            r"dict.layers=\[0, 9\]: want ascending layers of tiny, from 0 to 3",
        ),
        (partial(plt, layers=[2, 1]), r"dict.layers=\[2, 1\]"),
        (partial(clt, window=0), "dict.window=0: want at least 1"),
        (partial(crosscoder, norm="max"), "dict.norm=max: want concat or sum"),  # pyright: ignore
        (partial(crosscoder, sites=["a.b", "a.b"]), "want each site once"),
    ],
)
def test_what_cannot_be_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(INFO, SPARSITIES["topk"], n_features=20, k=4)


@pytest.mark.parametrize("kind", [clt, plt, transcoder])
def test_transcoders_read_before_or_after_the_gain_of_the_norm(kind):
    before = kind(INFO, partial(TopK, k=4), n_features=20, k=4, reads="mlp_norm")
    after = kind(INFO, partial(TopK, k=4), n_features=20, k=4)
    assert after.sources == tuple(s.replace("mlp_norm", "mlp_in") for s in before.sources)
    assert all(site.startswith("mlp_norm.") for site in before.sources)
    assert before.targets == after.targets

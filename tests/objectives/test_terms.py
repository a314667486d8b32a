"""Every term against a plain dense formula, its gradients included."""

from __future__ import annotations

import pytest
import torch

from dictlearn.objectives.auxk import AuxK
from dictlearn.objectives.gated import GateL1, GateReconstruction
from dictlearn.objectives.l0_target import L0Target
from dictlearn.objectives.l1 import L1
from dictlearn.objectives.multi_topk import MultiTopK
from dictlearn.objectives.objective import Objective
from dictlearn.objectives.pre_activation import PreActivation
from dictlearn.objectives.protocol import Forward
from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.objectives.tanh_l0 import TanhL0
from tests.dictionaries import activations, small_dictionary


def forward_of(dictionary, dead=(), loss_scale=1.0, progress=1.0) -> Forward:
    x = activations(sites=dictionary.n_sources)
    y = activations(sites=dictionary.n_sources)
    encoding = dictionary.encode_training(x)
    dead_SF = torch.zeros(dictionary.n_sources, dictionary.n_features, dtype=torch.bool)
    dead_SF[:, list(dead)] = True
    return Forward(dictionary, x, y, encoding, dead_SF, progress, loss_scale)


def assert_same(dictionary, ours: torch.Tensor, plain: torch.Tensor) -> None:
    torch.testing.assert_close(ours, plain)
    parameters = [*dictionary.parameters()]
    gradients = [
        torch.autograd.grad(v, parameters, allow_unused=True, retain_graph=True)
        for v in (ours, plain)
    ]
    for (name, _), mine, theirs in zip(dictionary.named_parameters(), *gradients, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            zero if mine is None else mine.sum(),
            zero.to(mine or zero) if theirs is None else theirs.sum(),
            msg=name,
            check_dtype=False,
        )
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, msg=name)


def dense_pre(dictionary, x):
    pre = torch.einsum("nsd,sfd->nsf", dictionary.read(x), dictionary.encoder.W_enc)
    return pre + dictionary.encoder.b_enc


@pytest.mark.parametrize("sites", [1, 2])
def test_auxk_matches_dense_autograd_and_trains_the_encoder(sites):
    dictionary = small_dictionary(sites=sites)
    dead = range(3, 33, 2)  # 15 features a source
    forward = forward_of(dictionary, dead=dead)
    term = AuxK(coefficient=1.0, k_aux=6)

    pre = dense_pre(dictionary, forward.x_NSD)[..., list(dead)]
    top = pre.relu() * torch.zeros_like(pre).scatter(-1, pre.topk(6).indices, 1.0)
    e_hat = torch.einsum("nsf,sfd->nsd", top, dictionary.decoder.W_dec[:, list(dead)])
    residual = (forward.y_NTD - forward.y_hat_NTD).detach()  # b_dec is in y_hat: once, not twice
    plain = (residual - e_hat).square().sum() / len(pre)

    assert_same(dictionary, term(forward), plain)
    term(forward).backward()
    reached = dictionary.encoder.W_enc.grad.abs().sum(-1) > 0  # type: ignore
    assert reached[:, list(dead)].any() and not reached[forward.dead_SF.logical_not()].any()


def test_auxk_is_zero_with_nothing_dead_and_fades_in():
    dictionary = small_dictionary()
    assert AuxK()(forward_of(dictionary)) == 0
    few = forward_of(dictionary, dead=[1, 2])
    full, faded = AuxK(1.0, k_aux=2)(few), AuxK(1.0, k_aux=8)(few)
    torch.testing.assert_close(faded, full / 4)


def test_reduction_scales_reconstruction_and_auxk_alike():
    dictionary = small_dictionary()
    torch.manual_seed(1)
    one = forward_of(dictionary, dead=range(10))
    torch.manual_seed(1)
    other = forward_of(dictionary, dead=range(10), loss_scale=8.0)
    for term in (Reconstruction(), AuxK(k_aux=4)):
        torch.testing.assert_close(term(one), 8 * term(other))


def test_reconstruction_is_the_squared_error_per_token():
    dictionary = small_dictionary()
    forward = forward_of(dictionary)
    plain = (forward.y_NTD - dictionary(forward.x_NSD)).square().sum(-1).mean()
    assert_same(dictionary, Reconstruction()(forward), plain)


def test_nested_reconstruction_averages_or_weighs_its_prefixes():
    dictionary = small_dictionary(prefixes=(10, 40))
    forward = forward_of(dictionary)
    each = [(forward.y_NTD - y_hat).square().sum(-1).mean() for y_hat in forward.y_hats]
    torch.testing.assert_close(Reconstruction()(forward), (each[0] + each[1]) / 2)
    weighted = Reconstruction(prefix_weights=[0.25, 1.0])
    torch.testing.assert_close(weighted(forward), each[0] / 4 + each[1])
    with pytest.raises(ValueError, match="want 2 numbers, one for each of dict.prefixes"):
        Reconstruction(prefix_weights=[1.0]).check(dictionary)


def test_l1_weighs_by_decoder_norms():
    dictionary = small_dictionary("relu", unit_norm=False)
    forward = forward_of(dictionary)
    code = dense_pre(dictionary, forward.x_NSD).relu()
    plain = (code * dictionary.decoder.norms()).sum(-1).mean()
    assert_same(dictionary, L1()(forward), plain)


def test_tanh_l0_counts_smoothly():
    dictionary = small_dictionary("relu", unit_norm=False)
    forward = forward_of(dictionary)
    code = dense_pre(dictionary, forward.x_NSD).relu()
    plain = torch.tanh(4 * code * dictionary.decoder.norms()).sum(-1).mean()
    assert_same(dictionary, TanhL0(coefficient=1.0, warmup=0.0)(forward), plain)


def test_l0_target_moves_thresholds_towards_it():
    dictionary = small_dictionary("jumprelu")
    forward = forward_of(dictionary)
    l0 = forward.encoding.code.l0_NS.double().mean()
    term = L0Target(k=float(l0) / 2)
    torch.testing.assert_close(term(forward), torch.ones((), dtype=torch.float64))
    term(forward).backward()
    assert (dictionary.sparsity.raw_threshold_SF.grad <= 0).all()  # descent raises thresholds  # type: ignore
    assert dictionary.sparsity.raw_threshold_SF.grad.any()  # type: ignore


@pytest.mark.parametrize("over", ["all", "dead"])
def test_pre_activation_reads_pre_activations_not_the_code(over):
    dictionary = small_dictionary("jumprelu")
    forward = forward_of(dictionary, dead=[0, 5, 9])
    theta = dictionary.sparsity.threshold_SF
    short = torch.relu(theta - dense_pre(dictionary, forward.x_NSD)) * dictionary.decoder.norms()  # type: ignore
    if over == "dead":
        short = short[..., [0, 5, 9]]
    term = PreActivation(coefficient=1.0, over=over)
    assert_same(dictionary, term(forward), short.sum(-1).mean())


def test_gate_terms_match_the_paper():
    dictionary = small_dictionary("gated")
    forward = forward_of(dictionary)
    gate = dense_pre(dictionary, forward.x_NSD).relu()
    assert_same(dictionary, GateL1()(forward), gate.sum(-1).mean())
    frozen = gate @ dictionary.decoder.W_dec[0].detach() + dictionary.decoder.b_dec.detach()
    plain = (forward.y_NTD - frozen).square().sum(-1).mean()
    assert_same(dictionary, GateReconstruction()(forward), plain)


def test_multi_topk_uses_the_wider_code():
    dictionary = small_dictionary("topk")
    dictionary.sparsity.wide = 4  # type: ignore
    forward = forward_of(dictionary)
    pre = dense_pre(dictionary, forward.x_NSD)
    code = pre.relu() * torch.zeros_like(pre).scatter(-1, pre.topk(16).indices, 1.0)
    y_hat = code @ dictionary.decoder.W_dec[0] + dictionary.decoder.b_dec
    plain = (forward.y_NTD - y_hat).square().sum(-1).mean() / 8
    assert_same(dictionary, MultiTopK()(forward), plain)


def test_coefficients_warm_up_linearly():
    forwards = [forward_of(small_dictionary("relu"), progress=p) for p in (0.0, 0.05, 0.1, 1.0)]
    term = L1(coefficient=2.0, warmup=0.1)
    ratios = [(term(f) / term.value(f)).item() for f in forwards]
    assert ratios == pytest.approx([0.0, 1.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("term", "sparsity", "message"),
    [
        (L0Target(k=4), "topk", "sparsity=jumprelu, not sparsity=topk"),
        (PreActivation(), "relu", "sparsity=jumprelu, not sparsity=relu"),
        (GateL1(), "relu", "sparsity=gated, not sparsity=relu"),
        (GateReconstruction(), "topk", "sparsity=gated, not sparsity=topk"),
        (MultiTopK(), "relu", "sparsity=topk, not sparsity=relu"),
        (MultiTopK(), "topk", "sparsity.wide of 2 or more"),
    ],
    ids=["l0_target", "pre_activation", "gate_l1", "gate_reconstruction", "multi_topk", "wide"],
)
def test_a_term_without_meaning_is_refused_before_work(term, sparsity, message):
    with pytest.raises(ValueError, match=rf"objective.terms.\w+: wants {message}"):
        Objective({"term": term}).check(small_dictionary(sparsity))


def test_reductions():
    y = activations(1000)
    scales = {
        r: Objective({"r": Reconstruction()}, r).loss_scale(y) for r in ("sum", "mean", "fvu")
    }
    assert scales["sum"] == 1 and scales["mean"] == 16
    assert scales["fvu"] == pytest.approx(float(y.var(0, correction=0).sum()))
    with pytest.raises(ValueError, match="want at least one term"):
        Objective({"r": None})

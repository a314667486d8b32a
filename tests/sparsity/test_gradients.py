"""The sparse path of every sparsity has the loss and the gradients of a dense one written plainly."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels import bounds

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.sparsity.protocol import threshold_for
from tests.dictionaries import SPARSITIES, activations, small_dictionary

WHOLE_ROWS = ("abstopk", "sparsemax")  # they look at whole rows, always in full precision


def dense_forward(dictionary: Dictionary, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(code [N, S, F], y_hat) with nothing but dense torch operations and autograd."""
    encoder, decoder = dictionary.encoder, dictionary.decoder
    centred = x - decoder.b_dec if dictionary.shape.centre else x
    pre = torch.einsum("nsd,sfd->nsf", centred, encoder.W_enc) + encoder.b_enc
    code = dense_code(dictionary.sparsity, pre, encoder.b_enc)
    y_hat = torch.einsum("nsf,sfd->nsd", code, decoder.W_dec) + decoder.b_dec
    if dictionary.W_skip is not None:
        y_hat = y_hat + torch.einsum("sod,nsd->nso", dictionary.W_skip, x)
    return code, y_hat


def dense_code(sparsity, pre, b_enc) -> torch.Tensor:
    flat = pre.flatten(0, 1)
    match sparsity.name:
        case "relu":
            return pre.relu()
        case "topk":
            kept = torch.zeros_like(flat).scatter(1, flat.topk(4).indices, 1.0)
            return (flat.relu() * kept).view_as(pre)
        case "batchtopk":
            kept = torch.zeros_like(pre)
            for source in range(pre.shape[1]):
                mask = torch.zeros(pre[:, source].numel(), dtype=flat.dtype)
                mask[pre[:, source].flatten().topk(4 * len(pre)).indices] = 1.0
                kept[:, source] = mask.view_as(pre[:, source])
            return pre.relu() * kept
        case "jumprelu":
            theta, eps = sparsity.threshold_SF, sparsity.bandwidth
            jump = torch.where(pre > theta, pre, 0)
            window = ((pre - theta).abs() < eps / 2).detach()
            slope = (-(theta / eps) * window).detach()  # the published pseudo-derivative
            return jump + slope * (theta - theta.detach())
        case "gated":
            u = pre - b_enc
            return (pre > 0) * torch.relu(sparsity.r_SF.exp() * u + sparsity.b_mag_SF)
        case "abstopk":
            kept = torch.zeros_like(flat).scatter(1, flat.abs().topk(4).indices, 1.0)
            return (flat * kept).view_as(pre)
        case "sparsemax":
            return simplex(pre, sparsity.total_S1)
    pytest.skip(f"{sparsity.name} is not written plainly here; the next test needs no such thing")


def simplex(pre: torch.Tensor, total_S1: torch.Tensor) -> torch.Tensor:
    """Sparsemax by bisection for tau, whose gradient is that of its support's mean."""
    low = pre.detach().amax(-1, keepdim=True) - total_S1
    high = low + total_S1
    for _ in range(100):
        middle = (low + high) / 2
        fits = (pre.detach() - middle).relu().sum(-1, keepdim=True) > total_S1
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    support = (pre.detach() > high).to(pre.dtype)
    tau = ((pre * support).sum(-1, keepdim=True) - total_S1) / support.sum(-1, keepdim=True)
    return (pre - tau) * support


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize(("sites", "skip"), [(1, False), (1, True), (3, False)])
def test_loss_and_every_gradient_match_a_dense_model(sparsity, sites, skip):
    dictionary = small_dictionary(sparsity, sites=sites, skip=skip)
    x = activations(sites=sites).requires_grad_()
    y = activations(sites=sites)
    inputs = [x, *dictionary.parameters()]

    encoding = dictionary.encode_training(x)
    sparse = (dictionary.decode(encoding.support, x) - y).square().sum()
    code, y_hat = dense_forward(dictionary, x)
    plain = (y_hat - y).square().sum()

    torch.testing.assert_close(encoding.code.dense(), code)
    torch.testing.assert_close(sparse, plain)
    gradients = [torch.autograd.grad(loss, inputs, allow_unused=True) for loss in (sparse, plain)]
    names = ["x", *(name for name, _ in dictionary.named_parameters())]
    for name, ours, reference in zip(names, *gradients, strict=True):
        torch.testing.assert_close(ours, reference, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_every_gradient_is_the_slope_of_the_loss(sparsity):
    """Along random directions, by finite differences. Thresholds have a pseudo-derivative instead."""
    dictionary, x, y = (
        small_dictionary(sparsity, sites=2),
        activations(sites=2),
        activations(sites=2),
    )
    inputs = {"x": x.requires_grad_(), **dict(dictionary.named_parameters())}
    inputs.pop("sparsity.raw_threshold_SF", None)

    def loss() -> torch.Tensor:
        support = dictionary.encode_training(x).support
        return (dictionary.decode(support, x) - y).square().sum()

    gradients = torch.autograd.grad(loss(), list(inputs.values()))
    for (name, tensor), gradient in zip(inputs.items(), gradients, strict=True):
        step = 1e-6 * torch.nn.functional.normalize(torch.randn_like(tensor), dim=-1)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.add_(sign * step)
                ends.append(loss())
                tensor.sub_(sign * step)
        slope = (ends[0] - ends[1]) / 2
        torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-4, atol=1e-10, msg=name)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_a_code_has_the_signs_it_may_and_ascends(sparsity):
    dictionary = small_dictionary(sparsity, sites=2)
    code = dictionary.encode(activations(sites=2))
    signed = dictionary.sparsity.signed
    assert (code.values != 0).all() and bool((code.values < 0).any()) == signed
    within_row = code.rows[1:] == code.rows[:-1]
    assert (code.features.diff()[within_row] > 0).all()
    assert code.l0_NS.sum() == len(code.values)


def test_anomaly_mode_notices_a_negative_value_of_a_sparsity_that_says_it_has_none(monkeypatch):
    dictionary = small_dictionary("abstopk")
    with torch.autograd.set_detect_anomaly(True):
        dictionary.encode(activations())
        monkeypatch.setattr(type(dictionary.sparsity), "signed", False)
        with pytest.raises(AssertionError, match="abstopk gave a feature that is not positive"):
            dictionary.encode(activations())
    dictionary.encode(activations())


def test_a_pick_at_zero_gets_no_gradient():
    dictionary = small_dictionary("topk")
    with torch.no_grad():
        dictionary.encoder.b_enc.fill_(-100.0)  # no pre-activation is positive
    code = dictionary.encode(activations())
    assert len(code.values) == 0
    dictionary.decode(code).sum().backward()
    assert dictionary.encoder.W_enc.grad is None or not dictionary.encoder.W_enc.grad.any()


def test_jumprelu_threshold_gradient_matches_the_closed_form():
    """d/d theta of sum H(pre - theta) is -(1/eps) times the number of pre-activations in the window."""
    dictionary = small_dictionary("jumprelu")
    x = activations(400)
    encoding = dictionary.encode_training(x)
    dictionary.sparsity.fires(encoding).sum().backward()  # type: ignore
    pre = torch.einsum("nsd,sfd->nsf", dictionary.read(x), dictionary.encoder.W_enc)
    pre = pre + dictionary.encoder.b_enc
    window = (pre - 0.3).abs() < 0.2  # both sides of the threshold: pre, not the code
    expected = -window.sum(0).double() / 0.4
    torch.testing.assert_close(dictionary.sparsity.raw_threshold_SF.grad, expected)


def test_log_threshold_follows_the_chain_rule():
    direct, log = (small_dictionary("jumprelu") for _ in range(2))
    log.load_state_dict(direct.state_dict())
    log.sparsity.log_threshold = True  # type: ignore
    log.sparsity.raw_threshold_SF.data.log_()  # type: ignore
    x = activations()
    for dictionary in (direct, log):
        encoding = dictionary.encode_training(x)
        dictionary.decode(encoding.support, x).square().sum().backward()
    theta = direct.sparsity.threshold_SF
    torch.testing.assert_close(
        log.sparsity.raw_threshold_SF.grad,
        direct.sparsity.raw_threshold_SF.grad * theta,  # type: ignore
    )


def test_batchtopk_threshold_gives_k_on_unseen_activations():
    dictionary = small_dictionary("batchtopk", n_features=60)
    held_out = [activations(4096) for _ in range(16)]
    frozen = dictionary.inference_form(lambda: held_out)
    l0 = frozen.encode(activations(65536)).l0_NS.double().mean()
    assert abs(l0 - 4) < 0.02 * 4
    l0_seen = frozen.encode(torch.cat(held_out)).l0_NS.double().mean()
    assert abs(l0_seen - 4) < 1e-3  # and exactly so where it was measured


def test_k_anneals_from_its_start_to_its_end():
    dictionary = small_dictionary("topk")
    dictionary.sparsity.k_start, dictionary.sparsity.anneal_for = 12, 0.5  # type: ignore
    x = activations()
    seen = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        dictionary.sparsity.anneal(progress)
        seen.append(int(dictionary.encode(x).l0_NS.max()))
    assert seen == [12, 8, 4, 4]


def test_a_threshold_is_exact_when_one_batch_holds_most_of_the_large_values():
    batches = [torch.full((10, 100), 0.5), *(torch.rand(90, 100) * 0.1 for _ in range(3))]
    batches[0] += torch.rand(10, 100)
    everything = torch.cat([batch.flatten() for batch in batches]).sort(descending=True).values
    threshold = threshold_for(lambda: batches, active_per_row=3)
    assert int((everything > threshold).sum()) == 3 * 280


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_a_bfloat16_matmul_selects_the_same_code(sparsity, monkeypatch):
    dictionary = small_dictionary(sparsity, width=64, n_features=400).float()
    x = activations(256, width=64).float()
    exact = dictionary.encode(x)
    dictionary.encoder.matmul_dtype = torch.bfloat16
    dtypes = []
    upper_bounds = bounds.upper_bounds

    def noted(x, W, b, dtype):
        dtypes.append(dtype)
        return upper_bounds(x, W, b, dtype)

    monkeypatch.setattr(bounds, "upper_bounds", noted)
    rough = dictionary.encode(x)
    assert set(dtypes) == (set() if sparsity in WHOLE_ROWS else {torch.bfloat16})
    assert torch.equal(rough.row_starts, exact.row_starts)
    assert torch.equal(rough.features, exact.features)
    torch.testing.assert_close(rough.values, exact.values)

"""The gated low-rank maps equal a dense einsum: outputs and every gradient, on both routes."""

from __future__ import annotations

import math

import dictlearn_kernels.transforms as op
import pytest
import torch
from dictlearn_kernels import dispatch
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.transforms import reference
from dictlearn_kernels.weight_grad import Collector

# rows, width, [(transforms, rank)], share of pairs stored
CASES = [
    (1, 1, [(1, 1)], 1.0),
    (7, 5, [(2, 3), (1, 7), (4, 1)], 0.4),
    (33, 17, [(1, 16), (3, 5), (9, 2)], 0.15),
    (6, 4, [(2, 2)], 0.0),
]


@pytest.fixture(params=["grouped", "dense"])
def route(request, monkeypatch):
    monkeypatch.setattr(op, "DENSE_ABOVE", {"grouped": 1.0, "dense": -1.0}[request.param])
    return request.param


def random_pattern(n: int, c: int, share: float) -> Pattern:
    """The last row and the second transform are empty where there are several."""
    mask = torch.rand(n, c) < share
    mask[-1, :] &= n == 1
    mask[:, 1:2] = False
    rows, columns = mask.nonzero(as_tuple=True)
    starts = torch.zeros(n + 1, dtype=torch.int64)
    starts[1:] = mask.sum(1).cumsum(0)
    return Pattern(starts, columns, c)


def maps(groups, d: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    U, V = (
        [torch.randn(n, r, d, dtype=torch.float64, requires_grad=True) for n, r in groups]
        for _ in range(2)
    )
    return U, V


def problem(n, d, groups, share):
    pattern = random_pattern(n, sum(count for count, _ in groups), share)
    values = torch.randn(len(pattern.columns), dtype=torch.float64)
    values[::3] = 0.0  # stored zeros get their gradient too
    x = torch.randn(n, d, dtype=torch.float64)
    return pattern, values.requires_grad_(), x.requires_grad_(), *maps(groups, d)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("n", "d", "groups", "share"), CASES, ids=str)
def test_outputs_and_every_gradient_match_the_reference(route, recompute, n, d, groups, share):
    pattern, values, x, U, V = problem(n, d, groups, share)
    ours = op.transform(pattern, values, x, U, V, recompute)
    plain = reference.transform(pattern, values, x, U, V)
    torch.testing.assert_close(ours, plain)
    weights = torch.randn_like(ours)
    inputs = (values, x, *U, *V)
    gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, plain)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_transforms_without_tokens_get_no_gradient(route):
    pattern, values, x, U, V = problem(*CASES[2])
    op.transform(pattern, torch.ones_like(values), x, U, V).sum().backward()
    silent = torch.bincount(pattern.columns, minlength=pattern.n_columns) == 0
    assert silent.any()
    for maps_g in (U, V):
        reached = torch.cat([m.grad.abs().sum((1, 2)) > 0 for m in maps_g])  # type: ignore
        assert torch.equal(reached, ~silent)


def test_an_input_without_a_gradient_changes_no_other(route):
    pattern, values, x, U, V = problem(*CASES[2])
    inputs = (values, *U, *V)
    gradients = [
        torch.autograd.grad(op.transform(pattern, values, given, U, V).square().sum(), inputs)
        for given in (x, x.detach())
    ]
    for with_x, without in zip(*gradients, strict=True):
        assert torch.equal(with_x, without)


def test_a_collector_has_what_the_maps_would_have_got(route):
    pattern, values, x, U, V = problem(*CASES[2])
    weights = torch.randn_like(x)

    def backward() -> None:
        for scale in (1.0, 2.0):  # two uses of the maps in one step add up
            (op.transform(pattern, scale * values, x, U, V) * weights).sum().backward()

    inputs = (values, x, *U, *V)
    backward()
    plain = [t.grad for t in inputs]
    for t in inputs:
        t.grad = None
    collector = Collector([*U, *V])
    collector.start()
    try:
        backward()
    finally:
        collector.stop()
    assert all(p.grad is None for p in (*U, *V))
    for t, expected in zip((values, x), plain[:2], strict=True):
        torch.testing.assert_close(t.grad, expected)
    for p, expected in zip((*U, *V), plain[2:], strict=True):
        gradient = collector.gradient(p)
        assert gradient is not None and gradient.dense_RD is not None
        torch.testing.assert_close(gradient.dense_RD.view_as(p), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_transforms(threads):
    pattern, values, x, U, V = problem(64, 24, [(2, 8), (16, 2)], 0.15)
    weights = torch.randn_like(x)
    inputs = (values, x, *U, *V)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = op.transform(pattern, values, x, U, V)
        gradients = torch.autograd.grad((y * weights).sum(), inputs)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    plain = reference.transform(pattern, values, x, U, V)
    torch.testing.assert_close(y, plain)
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_two_runs_agree_to_the_bit(route):
    pattern, values, x, U, V = problem(64, 24, [(2, 8), (16, 2)], 0.3)
    results = []
    for _ in range(2):
        inputs = [t.detach().float().requires_grad_() for t in (values, x, *U, *V)]
        fresh = Pattern(pattern.row_starts, pattern.columns, pattern.n_columns)
        y = op.transform(fresh, inputs[0], inputs[1], inputs[2:4], inputs[4:])
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_hidden_ranks_are_kept_or_computed_again(route):
    """What the graph holds besides its inputs: V x, or nothing."""
    problem_ = problem(40, 8, [(4, 6)], 0.3)
    kept: list[int] = []
    for recompute in (False, True):
        y = op.transform(*problem_, recompute=recompute)
        saved = {t.data_ptr(): t for t in y.grad_fn.saved_tensors}  # type: ignore
        given = {t.data_ptr() for t in (*problem_[1:3], *problem_[3], *problem_[4])}
        kept.append(
            sum(t.numel() for p, t in saved.items() if p not in given and t.is_floating_point())
        )
    pairs = 40 * 4 if route == "dense" else len(problem_[0].columns)
    assert kept == [6 * pairs, 0]


# --- compiled loops -----------------------------------------------------------------------------

# As CASES, of widths that panels divide: ranks of all remainders, transforms of one token and of many.
LOOPED = [
    (1, 32, [(1, 1)], 1.0),
    (50, 64, [(2, 7), (3, 1), (2, 8), (2, 17)], 0.2),
    (70, 96, [(1, 5), (4, 24)], 0.25),
    (400, 160, [(2, 40), (8, 9)], 0.2),
    (6, 32, [(2, 2)], 0.0),
]


def single(case):
    """The problem in float32 and float64: (pattern, [values, x, *U, *V]) twice."""
    pattern, values, x, U, V = problem(*case)
    inputs = [t.detach().float().requires_grad_() for t in (values, x, *U, *V)]
    return pattern, inputs, [t.detach().double().requires_grad_() for t in inputs]


def applied(pattern: Pattern, inputs, transform=op.transform, **options):
    n = (len(inputs) - 2) // 2
    return transform(pattern, *inputs[:2], inputs[2 : 2 + n], inputs[2 + n :], **options)


def assert_near(found: torch.Tensor, exact: torch.Tensor) -> None:
    """As near as float32's sums come, whatever cancels in them."""
    most = float(exact.detach().abs().max()) if exact.numel() else 0.0
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=3e-6 * most)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", LOOPED, ids=str)
def test_loops_match_the_reference_in_double_precision(case, recompute, threads, monkeypatch):
    monkeypatch.setattr(op, "DENSE_ABOVE_LOOPS", 1.0)
    pattern, inputs, exact = single(case)
    dispatch.forget()
    ours = applied(pattern, inputs, recompute=recompute)
    assert dispatch.summary() == {"transforms": "compiled loops on cpu"}
    plain = applied(pattern, exact, reference.transform)
    assert_near(ours, plain)
    weights = torch.randn_like(ours)
    mine = torch.autograd.grad((ours * weights).sum(), inputs)
    theirs = torch.autograd.grad((plain * weights).sum(), exact)
    for a, b in zip(mine, theirs, strict=True):
        assert_near(a, b)


def test_loops_give_the_same_bits_on_any_number_of_threads():
    pattern, inputs, _ = single(LOOPED[3])
    before, results = torch.get_num_threads(), []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        y = applied(pattern, inputs)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_loops_write_all_of_a_gradient(monkeypatch):
    """Whatever was in memory before: here numbers that would spoil it."""
    pattern, inputs, _ = single(LOOPED[1])
    empty = torch.Tensor.new_empty
    expected = torch.autograd.grad(applied(pattern, inputs).square().sum(), inputs)

    def poisoned(self, *size, **options):
        made = empty(self, *size, **options)
        return made.fill_(math.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    found = torch.autograd.grad(applied(pattern, inputs).square().sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_what_loops_do_not_serve_torch_does():
    for make in (lambda t: t[..., :17], lambda t: t.double()):
        pattern, inputs, _ = single(LOOPED[2])
        given = [inputs[0], *(make(t.detach()).contiguous() for t in inputs[1:])]
        given[0] = given[0].to(given[1].dtype)
        dispatch.forget()
        ours = applied(pattern, given)
        assert dispatch.summary() == {"transforms": "torch on cpu"}
        plain = applied(pattern, given, reference.transform)
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


# --- norms ----------------------------------------------------------------------------------------


def test_norms_are_those_of_the_maps_with_their_gradients():
    U, V = maps([(2, 3), (1, 7), (4, 1)], 5)
    ours, plain = op.gram_norms(U, V), reference.gram_norms(U, V)
    torch.testing.assert_close(ours, plain)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((n * weights).sum(), (*U, *V)) for n in (ours, plain)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_norm_of_a_zero_map_has_a_finite_gradient():
    U, V = maps([(2, 3)], 4)
    with torch.no_grad():
        U[0][0] = 0
    norms = op.gram_norms(U, V)
    assert norms[0] < 1e-100
    norms.sum().backward()
    assert U[0].grad.isfinite().all() and (U[0].grad[0] == 0).all()  # type: ignore


@pytest.mark.parametrize("case", [CASES[1], CASES[3]], ids=str)
def test_the_operation_is_well_formed(route, case):
    pattern, values, x, U, V = problem(*case)
    order, starts = (None, None) if route == "dense" else pattern.by_column
    place = pattern.row_starts, pattern.columns, order, starts
    chosen = "dense" if route == "dense" else "cpu"
    for keep in (True, False):
        torch.library.opcheck(op._forward, (values, x, U, V, *place, chosen, keep))


def test_compiles_whole(route):
    pattern, values, x, U, V = problem(*CASES[1])
    inputs = (values, x, *U, *V)

    def loss(values, x, U, V):
        return op.transform(pattern, values, x, U, V, recompute=True).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(f(values, x, U, V), inputs) for f in (loss, compiled)]
    for eager, ours in zip(*gradients, strict=True):
        assert torch.equal(eager, ours)


def test_reference_is_differentiated_right():
    pattern, values, x, U, V = problem(3, 2, [(1, 2), (2, 1)], 0.8)
    assert torch.autograd.gradcheck(
        lambda values, x, *maps: reference.transform(pattern, values, x, maps[:2], maps[2:]),
        (values, x, *U, *V),
    )

"""The largest entries of every row are those of a full sort, whatever the matmul's precision."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from dictlearn_kernels import bounds, dispatch, rounded
from dictlearn_kernels import topk_encode as op
from dictlearn_kernels.topk_encode import cpu, reference
from dictlearn_kernels.topk_encode.groups import LAYOUTS, layout

from dictlearn import config
from dictlearn.lm.capture import capture
from dictlearn.verbs.build import build_model
from tests.kernels.selections import Operands, assert_same, identity, operands

LOW = [torch.bfloat16, torch.float16]
ALL = [None, *LOW, torch.int16]
SHAPES = [(1, 1, 1, 1), (7, 130, 33, 130), (33, 513, 48, 7), (5, 40, 3, 1), (16, 2304, 24, 32)]


@pytest.fixture(autouse=True)
def _counted_from_zero():
    op.forget()


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize(("rows", "columns", "width", "k"), SHAPES, ids=str)
def test_matches_a_full_sort(rows, columns, width, k, dtype):
    x, W, b = operands(rows, columns, width)
    assert_same(op.topk_encode(x, W, b, k, dtype), reference.topk_encode(x, W, b, k))
    assert op.flagged()[1] == (rows if dtype in LOW else 0)


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_what_is_not_positive_is_left_out(dtype):
    x, W, b = operands(40, 200, 16, shift=-2.0)
    expected = reference.topk_encode(x, W, b, 32)
    assert 0 < len(expected[1]) < 40 * 32
    assert_same(op.topk_encode(x, W, b, 32, dtype), expected)
    none = op.topk_encode(x, W, b - 100, 32, dtype)
    assert none[0].tolist() == [0] * 41
    assert len(none[1]) == len(none[2]) == 0


@pytest.mark.parametrize(("rows", "columns", "k"), [(0, 40, 3), (5, 40, 0), (0, 0, 0)])
def test_nothing_is_selected_from_nothing(rows, columns, k):
    starts, found, values = op.topk_encode(*operands(rows, columns, 8), k, torch.bfloat16)
    assert starts.tolist() == [0] * (rows + 1)
    assert len(found) == len(values) == 0


def test_equal_entries_fill_a_row_whichever_are_taken():
    pre = torch.tensor([[2.0, 1.0, 1.0, 1.0, 3.0, 1.0]]).repeat(3, 1)
    for dtype in ALL:
        starts, columns, values = op.topk_encode(*identity(pre), 4, dtype)
        assert starts.tolist() == [0, 4, 8, 12]
        assert values.view(3, 4).sort(dim=1).values.tolist() == [[1.0, 1.0, 2.0, 3.0]] * 3
        assert (columns.view(3, 4).diff(dim=1) > 0).all()


@pytest.mark.parametrize("repeats", [1, 6])
def test_grouped_search_finds_the_same_values_as_a_plain_one(repeats, monkeypatch):
    pre = torch.randn(20, 4096)
    pre[:, : 64 * repeats] = pre[:, :64].repeat(1, repeats)  # ties within and between groups
    pre[3] = 1.0
    values, columns = cpu.largest(pre, 48)
    assert torch.equal(values, pre.gather(1, columns))
    assert all(len(set(row)) == 48 for row in columns.tolist())
    monkeypatch.setattr(cpu, "GROUPED_FROM", math.inf)
    assert torch.equal(values, cpu.largest(pre, 48)[0])


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e5])
def test_no_entry_exceeds_its_upper_bound(dtype, scale):
    x, W, b = operands(64, 300, 50)
    x[0] *= 1e-3
    W[3] *= 100
    x, b = x * scale, b * scale
    upper = bounds.upper_bounds(x, W, b, dtype).double()
    exact = x.double() @ W.double().T + b.double()
    assert (upper >= exact).all()
    fits = dtype == torch.bfloat16 or scale < 1e5
    assert upper.isfinite().all() == fits  # and where numbers don't fit, it says nothing
    if scale == 1.0:
        assert (upper - exact).mean() < 20 * torch.finfo(dtype).eps * x.norm(dim=1).mean()


def test_a_row_that_low_precision_cannot_settle_is_computed_in_full():
    """Entries that bfloat16 makes equal: no over-selection can tell which are largest."""
    pre = 1 + 1e-3 * torch.rand(6, 400)
    pre[2:] = torch.randn(4, 400)
    x, W, b = identity(pre)
    assert_same(op.topk_encode(x, W, b, 5, torch.bfloat16), reference.topk_encode(x, W, b, 5))
    n_flagged, n_rows = op.flagged()
    assert 2 <= n_flagged < n_rows == 6


def test_without_the_certificate_the_selection_would_be_wrong(monkeypatch):
    """The test above can fail: bounds of zero let wrong rows pass."""
    for module in (bounds, rounded):
        monkeypatch.setattr(module, "SLACK", 0.0)
    pre = 1 + 1e-3 * torch.rand(6, 400)
    ours = op.topk_encode(*identity(pre), 5, torch.bfloat16)
    assert op.flagged()[0] == 0
    assert not torch.equal(ours[1], reference.topk_encode(*identity(pre), 5)[1])


def test_a_batch_that_is_not_a_number_selects_what_full_precision_does():
    x, W, b = operands(6, 300, 20)
    x[1, 3], x[2, 0], x[4] = math.nan, math.inf, 1e30
    expected = op.topk_encode(x, W, b, 4)
    for dtype in (*LOW, torch.int16):
        ours = op.topk_encode(x, W, b, 4, dtype)
        assert torch.equal(ours[0], expected[0])
        torch.testing.assert_close(ours[2], expected[2])  # equals, where half a row is infinite


@pytest.fixture(scope="module")
def pico() -> Operands:
    """x, W and b of pico's middle layer on a file of source; features are directions of its tokens."""
    lm = build_model(config.compose("train", ["trainer=cpu"]))
    assert lm is not None
    text = Path(dispatch.__file__).read_text()
    assert lm.tokenizer is not None
    tokens = torch.tensor(lm.tokenizer(text)["input_ids"][:512])[None]
    x_ND = capture(lm, tokens, ["resid_post.1"])["resid_post.1"][0, 1:].float()
    x_ND = x_ND - x_ND.mean(0)
    x_ND = x_ND * (x_ND.shape[1] ** 0.5 / x_ND.norm(dim=1).mean())
    mixed = x_ND[torch.randint(len(x_ND), (3072,))] - x_ND[torch.randint(len(x_ND), (3072,))]
    W_CD = torch.nn.functional.normalize(mixed + 0.1 * torch.randn_like(mixed), dim=1)
    return x_ND, W_CD, torch.full((3072,), -0.5)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_on_real_activations_the_set_is_that_of_float32(pico: Operands, dtype):
    ours, expected = op.topk_encode(*pico, 32, dtype), op.topk_encode(*pico, 32)
    assert torch.equal(ours[1], expected[1])
    torch.testing.assert_close(ours[2], expected[2], rtol=1e-4, atol=1e-4)
    n_flagged, n_rows = op.flagged()
    assert n_rows == len(pico[0])
    assert n_flagged < 0.1 * n_rows
    x, W, b = pico
    rough = torch.addmm(b.to(dtype), x.to(dtype), W.to(dtype).T).topk(32, dim=1).indices
    assert not torch.equal(rough.sort(dim=1).values.flatten(), expected[1])  # why any of this


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_compiles_whole_and_passes_the_checks_of_an_operator(dtype):
    arguments = (*operands(9, 70, 12), 8, dtype, "cpu")
    torch.library.opcheck(op.candidates, arguments)
    compiled = torch.compile(lambda *a: op.candidates(*a), fullgraph=True, backend="eager")
    for ours, plain in zip(compiled(*arguments), op.candidates(*arguments), strict=True):
        assert torch.equal(ours, plain)


def test_a_layout_holds_the_candidates_or_there_is_none():
    for m in (1, 8, 48, 72, 500):
        for n_columns in (1, 64, 2304, 24576, 131072):
            found = layout(m, n_columns)
            assert found is None or found in LAYOUTS
            assert found is None or -(-n_columns // found.group) * found.kept >= m
    assert layout(48, 24576) == LAYOUTS[0]
    assert layout(2000, 2304) is None


def test_the_reference_can_be_asked_for():
    x, W, b = operands(8, 100, 10)
    with dispatch.using("reference"):
        ours = op.topk_encode(x, W, b, 5, torch.bfloat16)
    assert all(map(torch.equal, ours, reference.topk_encode(x, W, b, 5)))
    assert op.flagged() == (0, 0)

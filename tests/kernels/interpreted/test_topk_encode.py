"""The kernel that keeps a few of each group selects what a full sort does."""

from __future__ import annotations

import math

import pytest
import torch
from dictlearn_kernels import dispatch
from dictlearn_kernels import topk_encode as op
from dictlearn_kernels.topk_encode import groups, reference, triton
from dictlearn_kernels.topk_encode.groups import Layout

from tests.kernels.selections import assert_same, identity, on, operands

DTYPES = [None, torch.float16]
SHAPES = [(1, 1, 1, 1), (1, 90, 1, 3), (7, 513, 33, 8), (130, 300, 20, 5), (70, 700, 65, 24)]


@pytest.fixture(autouse=True)
def _forced(monkeypatch):
    op.forget()
    monkeypatch.setattr(groups, "LOST", math.inf)  # small matrices: crowded groups are the point
    with dispatch.using("triton"):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns", "width", "k"), SHAPES, ids=str)
def test_matches_a_full_sort(device, rows, columns, width, k, dtype):
    x, W, b = on(device, operands(rows, columns, width))
    expected = reference.topk_encode(x, W, b, k)
    ours = op.topk_encode(x, W, b, k, dtype)
    assert_same(ours, expected)
    assert op.flagged()[1] == rows
    assert all(map(torch.equal, ours, op.topk_encode(x, W, b, k, dtype)))


@pytest.mark.parametrize("found", groups.LAYOUTS, ids=str)
def test_no_entry_left_out_exceeds_the_bound(device, found, monkeypatch):
    monkeypatch.setattr(triton, "layout", lambda m, n_columns: found)
    x, W, b = on(device, operands(20, 700, 24))
    for dtype in (torch.float32, torch.float16):
        columns, left_out = triton.candidates(x, W, b, 20, dtype)
        pre = torch.addmm(b, x, W.T)
        assert all(len(set(row)) == 20 for row in columns.tolist())
        others = pre.scatter(1, columns, -math.inf).amax(1)
        assert (others <= left_out).all()
        # A group that could keep no more than it has winners hides the largest, and few do.
        assert (left_out <= pre.amax(1) + 0.1).all()


def test_a_group_with_more_winners_than_it_keeps_flags_its_rows(device):
    pre = torch.rand(8, 600, device=device)
    pre[:3, 64 : 64 + 12] += 5  # twelve of the sixteen largest in one group
    x, W, b = on(device, identity(pre.cpu()))
    ours = op.topk_encode(x, W, b, 16)
    assert_same(ours, reference.topk_encode(x, W, b, 16))
    assert op.flagged()[0] >= 3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the interpreter
def test_columns_are_found_where_bounds_are_negative_or_no_numbers(device):
    x, W, b = on(device, operands(9, 200, 16, shift=-3.0))
    x[2, 1], x[4] = math.nan, 1e30
    expected = reference.topk_encode(x, W, b, 6)
    for dtype in DTYPES:
        ours = op.topk_encode(x, W, b, 6, dtype)
        assert torch.equal(ours[0], expected[0])
        assert torch.equal(ours[1], expected[1])


def test_every_key_is_written(device, monkeypatch):
    """The largest integers stand where the kernel has yet to write: left there, they would be chosen."""
    x, W, b = on(device, operands(3, 65, 5))
    expected = reference.topk_encode(x, W, b, 4)
    empty = torch.empty

    def poisoned(*size, dtype=None, **options):
        made = empty(*size, dtype=dtype, **options)
        return made.fill_(2**31 - 1) if dtype == torch.int32 else made

    monkeypatch.setattr(triton.torch, "empty", poisoned)
    assert_same(op.topk_encode(x, W, b, 4), expected)
    assert op.flagged()[0] == 0


def test_everything_shipped_names_every_argument():
    for variant in triton.shipped():
        assert {*variant.signature, *variant.constants} == set(variant.kernel.arg_names)
        assert Layout(variant.constants["GROUP"], variant.constants["KEPT"]) in groups.LAYOUTS

"""The kernel that rounds a matrix in one pass gives what a cast, a difference and two norms give."""

from __future__ import annotations

import math

import pytest
import torch
from dictlearn_kernels import bounds, dispatch
from dictlearn_kernels.rounded import SLACK, reference, rounded, triton

from tests.kernels.interpreted.conftest import INTERPRETED
from tests.pretend_gpu import pretend_gpu

SHAPES = [(1, 1), (3, 16), (7, 33), (40, 64), (4, 1024), (2, 1025), (3, 2500)]


@pytest.fixture(autouse=True)
def _forced():
    with dispatch.using("triton"):
        yield


def matrix(rows: int, width: int, device: torch.device) -> torch.Tensor:
    """Rows of every size, the first of zeros."""
    x_RD = torch.randn(rows, width) * 10.0 ** torch.linspace(-4, 2, rows)[:, None]
    x_RD[0] *= rows == 1
    return x_RD.to(device)


@pytest.mark.parametrize(("rows", "width"), SHAPES, ids=str)
def test_matches_torchs_calls(device, rows, width):
    x = matrix(rows, width, device)
    low, norm, error = rounded(x, torch.float16)
    expected = reference.rounded(x, torch.float16, SLACK)
    assert low.dtype == torch.float16 and low.is_contiguous()
    assert torch.equal(low, expected[0])
    torch.testing.assert_close(norm, expected[1], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(error, expected[2], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norms_are_no_smaller_than_the_true_ones_nor_much_larger(device, dtype):
    """Whatever the copy is: the interpreter cuts bfloat16 off where a GPU rounds it."""
    x = matrix(30, 1500, device)
    low, norm, error = rounded(x, dtype)
    last_place = torch.finfo(dtype).eps * x.abs() + torch.finfo(dtype).smallest_normal
    assert ((low.float() - x).abs() <= last_place).all()
    for ours, rows in ((norm, x.double()), (error, x.double() - low.double())):
        true = torch.linalg.vector_norm(rows, dim=1)
        assert (ours >= true).all()
        assert (ours <= true * (1 + 2.0**-9)).all()


def test_rows_and_numbers_that_lie_apart(device):
    x_RSD = torch.randn(9, 3, 40, device=device)
    for x in (
        x_RSD[:, 1],
        x_RSD[:, 1, ::2],
        x_RSD[:, 0].T,
        x_RSD[::4, 2],
        x_RSD[:1, 0].expand(5, 40),
    ):
        low, norm, error = rounded(x, torch.float16)
        expected = reference.rounded(x, torch.float16, SLACK)
        assert low.is_contiguous() and torch.equal(low, expected[0])
        torch.testing.assert_close(norm, expected[1])
        torch.testing.assert_close(error, expected[2])


def test_no_rows_and_nothing_to_round(device):
    assert [len(t) for t in rounded(torch.empty(0, 24, device=device), torch.float16)] == [0, 0, 0]
    x = matrix(5, 20, device)
    low, norm, error = rounded(x, torch.float32)
    assert low is x and not error.any()
    torch.testing.assert_close(norm, SLACK * x.norm(dim=1))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the interpreter
def test_rows_that_cannot_be_rounded_have_no_finite_error(device):
    x = torch.randn(6, 1200, device=device)
    x[1, 1100], x[2, 3], x[3, 1199], x[4, 0], x[5, 7] = 7e4, math.inf, math.nan, -1e30, 65504.0
    low, norm, error = rounded(x, torch.float16)
    expected = reference.rounded(x, torch.float16, SLACK)
    torch.testing.assert_close(low, expected[0], equal_nan=True)
    torch.testing.assert_close(norm, expected[1], equal_nan=True)
    torch.testing.assert_close(error, expected[2], equal_nan=True)
    assert error.isfinite().tolist() == [True, False, False, False, False, True]
    assert error[1] == math.inf == error[4]
    # Of numbers beyond the square root of float32's largest the norm is infinite too.
    assert norm.isfinite().tolist() == [True, True, False, False, False, True]


def test_what_no_kernel_rounds_is_said(device):
    with pytest.raises(
        ValueError, match="rounded has no kernel for torch.float32 of torch.float64"
    ):
        rounded(torch.zeros(2, 3, device=device, dtype=torch.float64), torch.float32)


def test_a_gpu_reads_each_matrix_once():
    if not INTERPRETED:
        pytest.skip("about the pretended GPU")
    with dispatch.using("auto"), pretend_gpu() as gpu:
        x, W, b = (torch.randn(size, device="cuda") for size in ((8, 24), (32, 24), (32,)))
        gpu.forget()
        terms = bounds.terms(x, W, b, torch.float16)
        assert terms.W_CD.dtype == torch.float16 and terms.W_CD.is_cuda
        assert gpu.launches.count("rounded_kernel") == 2
        whole = {"_to_copy", "linalg_vector_norm", "sub", "copy_", "clone"}
        assert not whole & set(gpu.launches), gpu.launches


def test_everything_shipped_names_every_argument():
    for variant in triton.shipped():
        assert {*variant.signature, *variant.constants} == set(variant.kernel.arg_names)

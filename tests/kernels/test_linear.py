"""Memory that selections pass through is used again, and nothing that they return lies in it."""

from __future__ import annotations

import threading

import pytest
import torch
from dictlearn_kernels import linear, memory
from dictlearn_kernels.batchtopk_encode import batchtopk_encode
from dictlearn_kernels.batchtopk_encode import reference as batch_reference
from dictlearn_kernels.threshold_encode import reference as threshold_reference
from dictlearn_kernels.threshold_encode import threshold_encode
from dictlearn_kernels.topk_encode import reference as topk_reference
from dictlearn_kernels.topk_encode import topk_encode

from tests.kernels.selections import assert_same, operands


@pytest.fixture(autouse=True)
def _every_size_is_kept(monkeypatch):
    monkeypatch.setattr(memory, "RETURNED", 0)
    monkeypatch.setattr(memory, "_kept", memory._Kept())


def per_source(rows: int, columns: int, dtype: torch.dtype = torch.float32):
    made = [operands(rows, columns, 16) for _ in range(2)]
    x, W, b = (torch.stack(parts).to(dtype) for parts in zip(*made, strict=True))
    return x.transpose(0, 1), W, b


def selections(rows: int, columns: int, dtype: torch.dtype):
    """(what the fast paths find, what the references find) in fresh operands."""
    x_RSD, W_SCD, b_SC = per_source(rows, columns, dtype)
    x, W, b = x_RSD[:, 0], W_SCD[0], b_SC[0]
    found = [
        topk_encode(x, W, b, 5),
        topk_encode(x, W, b, 5, torch.int16),
        threshold_encode(x, W, b, 0.5),
        batchtopk_encode(x_RSD, W_SCD, b_SC, 3 * rows),
    ]
    expected = [
        topk_reference.topk_encode(x, W, b, 5),
        topk_reference.topk_encode(x, W, b, 5),
        threshold_reference.threshold_encode(x, W, b, 0.5),
        batch_reference.batchtopk_encode(x_RSD, W_SCD, b_SC, 3 * rows),
    ]
    return found, expected


def test_what_was_selected_outlives_the_next_call():
    sizes = [(40, 64, torch.float32), (7, 30, torch.float32), (40, 4096, torch.float32)]
    sizes += [(9, 64, torch.float64), (40, 64, torch.float32)]
    made = [selections(*size) for size in sizes]
    for found, expected in made:
        for one, wanted in zip(found, expected, strict=True):
            assert_same(one, wanted)


def test_memory_is_used_again_by_the_same_thread_alone():
    given = per_source(20, 50)
    first, other = linear.passing(*given), []
    thread = threading.Thread(target=lambda: other.append(linear.passing(*given)))
    thread.start()
    thread.join()
    assert linear.passing(*given).data_ptr() == first.data_ptr() != other[0].data_ptr()
    assert torch.equal(other[0], linear.pre_activations(*given))


def test_small_matrices_have_memory_of_their_own(monkeypatch):
    monkeypatch.setattr(memory, "RETURNED", 2**25)
    given = per_source(20, 50)
    first, second = (linear.passing(*given) for _ in range(2))
    assert first.data_ptr() != second.data_ptr()

"""What tests of loops share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=[1, 3], ids=["one_thread", "three_threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)

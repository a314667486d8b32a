"""After restore, every generator draws what it would have drawn."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from dictlearn.ckpt import rng
from dictlearn.ckpt.codec import read_state, write_state


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
        float(torch.nn.functional.dropout(torch.ones(50)).sum()),
    ]


@pytest.mark.parametrize("drawn", range(3))  # gaussians come in pairs: half of one may be waiting
def test_the_same_numbers_come_again_also_through_a_file(tmp_path, drawn):
    for _ in range(drawn):
        random.gauss(0, 1)
        np.random.randn()
    write_state(tmp_path, rng.collect())
    expected = [draw() for _ in range(3)]
    rng.restore(read_state(tmp_path))
    assert [draw() for _ in range(3)] == expected


@pytest.mark.parametrize(
    "damage",
    [
        lambda states: states.pop("numpy"),
        lambda states: states["python"].update(version=2**40),
        lambda states: states["python"].update(words=torch.zeros(3, dtype=torch.int64)),
        lambda states: states["numpy"].update(kind="PCG64"),
        lambda states: states["numpy"].update(keys=np.zeros(3, dtype=np.uint32)),
        lambda states: states.update(torch=torch.zeros(3, dtype=torch.uint8)),
        lambda states: states.update(torch=[1]),
    ],
    ids=range(7),
)
def test_a_state_of_another_kind_is_a_value_error(damage):
    states = rng.collect()
    damage(states)
    with pytest.raises(ValueError, match="the checkpoint's random number states cannot be set"):
        rng.restore(states)

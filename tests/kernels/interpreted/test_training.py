"""Whole training steps through the kernels, against the references: every kind."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels import dispatch, topk_encode
from dictlearn_kernels.topk_encode import groups

from dictlearn.train import fused_adam
from dictlearn.types import Batch
from tests.train.test_fused_adam import OURS, SHAPES, batches, training
from tests.train.test_module import fit

KINDS = [kind for kind in SHAPES if kind != "molt"]  # whose few gates no kernel selects from


def first(batch: Batch, n: int) -> Batch:
    return batch.rows(0, n)


def trained(kind: str, mode: str, device: torch.device) -> dict[str, torch.Tensor]:
    shape = SHAPES[kind]
    run = training(shape, OURS, clip_norm=0.5)
    small = [first(batch, 8) for batch in batches(shape, 2)]
    dispatch.forget()
    with dispatch.using(mode):
        fit(run, small, accelerator="cuda" if device.type == "cuda" else "cpu")
    assert set(dispatch.summary().values()) == {mode}
    return {name: t.cpu() for name, t in run.trainee().dictionary.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_the_kernels_are_those_of_the_references(kind, device, monkeypatch):
    monkeypatch.setattr(fused_adam, "SMALLEST", 0)
    # So few features crowd in one group: let more rows be computed again than pays.
    monkeypatch.setattr(topk_encode, "taken", lambda k, dtype: k + 2)
    monkeypatch.setattr(groups, "LOST", 1.0)
    kernels, references = (trained(kind, mode, device) for mode in ("triton", "reference"))
    for name, expected in references.items():
        torch.testing.assert_close(kernels[name], expected, rtol=1e-4, atol=1e-5, msg=name)

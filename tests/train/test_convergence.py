"""A run with kernels goes where a run with the plain references goes, for every kind and sparsity."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from dictlearn_kernels import dispatch

from dictlearn.train import fused_adam
from dictlearn.train.fused_adam import FusedAdam
from tests.dictionaries import SPARSITIES
from tests.train.test_fused_adam import SHAPES, batches, training
from tests.train.test_module import fit

STEPS = 50


def trained(kind: str, sparsity: str, mode: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    shape = SHAPES[kind]
    run = training(shape, partial(FusedAdam, lr=1e-3), sparsity)
    losses = []
    step = run.training_step

    def noted(batch, batch_idx):
        loss = step(batch, batch_idx)
        losses.append(float(loss.detach()))
        return loss

    run.training_step = noted  # type: ignore[method-assign]
    dispatch.forget()
    with dispatch.using(mode):
        fit(run, batches(shape, STEPS))
    ran = {note for notes in dispatch.summary().values() for note in notes.split("; ")}
    fast = {"compiled loops on cpu", "torch on cpu"}
    assert ran == {"reference"} if mode == "reference" else ran <= fast and ran
    return losses, run.trainee().dictionary.state_dict()


@pytest.mark.parametrize(
    "kind, sparsity",
    [*((kind, "topk") for kind in SHAPES), *(("sae", sparsity) for sparsity in SPARSITIES)],
)
def test_fifty_steps_with_kernels_and_with_references(kind, sparsity, monkeypatch):
    monkeypatch.setattr(fused_adam, "SMALLEST", 0)
    kernels, references = (trained(kind, sparsity, mode) for mode in ("auto", "reference"))
    assert kernels[0] == pytest.approx(references[0], rel=1e-4)
    for name, expected in references[1].items():
        torch.testing.assert_close(kernels[1][name], expected, rtol=1e-3, atol=1e-4, msg=name)

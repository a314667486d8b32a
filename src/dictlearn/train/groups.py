"""The parameters in groups, as optimisers take them."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Matrices and vectors (biases, thresholds) apart; every trained parameter exactly once."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 2]
    vectors = [p for p in trained if p.ndim <= 2]
    assert {id(p) for p in matrices + vectors} == {id(p) for p in trained}
    assert len(matrices) + len(vectors) == len(trained)
    return [{"params": matrices, "name": "matrices"}, {"params": vectors, "name": "vectors"}]

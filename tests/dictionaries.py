"""Small dictionaries of every sparsity, for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from dictlearn.dicts.description import shape_from_json
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.sparsity.batchtopk import BatchTopK
from dictlearn.sparsity.gated import Gated
from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.sparsity.relu import ReLU
from dictlearn.sparsity.topk import TopK

SPARSITIES = {
    "relu": ReLU,
    "topk": partial(TopK, k=4),
    "batchtopk": partial(BatchTopK, k=4),
    "jumprelu": partial(JumpReLU, init_threshold=0.3, bandwidth=0.4),
    "gated": Gated,
}


def shaped(kind: str, sources: Sequence[str], targets: Sequence[str], **options: Any) -> Shape:
    """As a description says it: the link by its name, its options among the others."""
    described = {"kind": "x", "sources": sources, "targets": targets, **options}
    return replace(shape_from_json(described), kind=kind)


def small_dictionary(
    sparsity: str = "topk", *, sites: int = 1, width: int = 16, n_features: int = 40, **shape
) -> Dictionary:
    """Float64, random everywhere that a gradient should reach."""
    names = tuple(f"resid_post.{i}" for i in range(sites))
    options = {"kind": "sae", "sources": names, "targets": names, "k": 4.0, "centre": True, **shape}
    shape = shaped(width=width, n_features=n_features, **options)
    dictionary = Dictionary(shape, SPARSITIES[sparsity])
    dictionary = dictionary.double()
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name.endswith(("b_enc", "b_dec", "W_skip", "r_SF", "b_mag_SF")):
                parameter.normal_(std=0.3)
    return dictionary


def activations(n: int = 50, sites: int = 1, width: int = 16) -> torch.Tensor:
    return torch.randn(n, sites, width, dtype=torch.float64)

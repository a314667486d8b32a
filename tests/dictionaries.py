"""Small dictionaries of every sparsity, for the tests."""

from __future__ import annotations

from functools import partial

import torch

from dictlearn.dicts.dictionary import Dictionary, Shape
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


def small_dictionary(
    sparsity: str = "topk", *, sites: int = 1, width: int = 16, n_features: int = 40, **shape
) -> Dictionary:
    """Float64, random everywhere that a gradient should reach."""
    names = tuple(f"resid_post.{i}" for i in range(sites))
    options = {"kind": "sae", "sources": names, "targets": names, "k": 4.0, "centre": True, **shape}
    dictionary = Dictionary(
        Shape(width=width, n_features=n_features, **options), SPARSITIES[sparsity]
    )
    dictionary = dictionary.double()
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name.endswith(("b_enc", "b_dec", "W_skip", "r_SF", "b_mag_SF")):
                parameter.normal_(std=0.3)
    return dictionary


def activations(n: int = 50, sites: int = 1, width: int = 16) -> torch.Tensor:
    return torch.randn(n, sites, width, dtype=torch.float64)

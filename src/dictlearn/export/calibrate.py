"""Other sparsities as JumpReLU, which most tools can load."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.sparsity.batchtopk import BatchTopK
from dictlearn.sparsity.gated import Gated
from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.sparsity.relu import ReLU
from dictlearn.sparsity.topk import TopK

BECOME_JUMPRELU = ("topk", "gated", "relu")  # batchtopk already has, in its inference form


@torch.no_grad()
def as_jumprelu(
    dictionary: Dictionary, x_NSD: Callable[[], Iterable[Tensor]]
) -> tuple[Dictionary, bool]:
    """(the dictionary with JumpReLU features, whether it is the same function).

    ReLU is JumpReLU with thresholds 0. Gated is too, exactly: with u = W x it fires where
    u + b_gate > 0 at strength exp(r) u + b_mag, so where that strength is above
    b_mag - exp(r) b_gate. TopK is not: as with BatchTopK, it gets the one threshold for each source
    that gives k features per token on the held-out activations `x_NSD()`.
    """
    converted = copy.deepcopy(dictionary)
    sparsity, encoder = converted.sparsity, converted.encoder
    jumprelu = JumpReLU(encoder.n_sources, encoder.n_features, init_threshold=0.0)
    exact = True
    if isinstance(sparsity, Gated):
        scale_SF, b_gate_SF = sparsity.r_SF.exp(), encoder.b_enc.clone()
        threshold_SF = (sparsity.b_mag_SF - scale_SF * b_gate_SF).clamp_min(0)
        encoder.W_enc.mul_(scale_SF[..., None])
        encoder.b_enc.copy_(sparsity.b_mag_SF)
        jumprelu.raw_threshold_SF.data = threshold_SF
    elif isinstance(sparsity, TopK):
        exact = False
        budget = BatchTopK(
            encoder.n_sources,
            encoder.n_features,
            sparsity.k,
            across_layers=sparsity.across_layers,
        )
        jumprelu = budget.inference_form(lambda: (encoder.pre(converted.read(x)) for x in x_NSD()))
    else:
        assert isinstance(sparsity, ReLU), f"{sparsity.name} is not among {BECOME_JUMPRELU}"
    converted.sparsity = jumprelu.to(encoder.W_enc).eval().requires_grad_(False)
    return converted, exact

"""Convert other sparsities to JumpReLU, which most tools can load."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.sparsity.jumprelu import JumpReLU

MARGIN = 0.9  # times a feature's smallest active value: the search for the next value starts here


@torch.no_grad()
def as_jumprelu(
    dictionary: Dictionary, x_NSD: Callable[[], Iterable[Tensor]]
) -> tuple[Dictionary, bool]:
    """(the dictionary with JumpReLU features, whether it is the same function).

    ReLU is a JumpReLU with thresholds 0, and Gated is one with other parameters. TopK is not: every
    feature gets the threshold with which it fires as often as before on the held-out activations
    `x_NSD()`, which are read twice. One threshold per layer, as BatchTopK has, would be less
    accurate, as each feature competes with others for the k places. Raises ValueError unless
    `becomes_jumprelu`.
    """
    if not becomes_jumprelu(dictionary):
        raise ValueError(f"{dictionary.sparsity.name} features cannot become jumprelu features")
    converted = copy.deepcopy(dictionary)
    encoder = converted.encoder
    jumprelu = JumpReLU(encoder.n_sources, encoder.n_features, init_threshold=0.0)
    form = dictionary.sparsity.as_jumprelu(dictionary.encoder.b_enc)
    if form is None:
        jumprelu.raw_threshold_SF.data = thresholds_of_equal_rates(dictionary, x_NSD)
    else:
        encoder.W_enc.mul_(form.scale_SF[..., None])
        encoder.b_enc.copy_(form.bias_SF)
        jumprelu.raw_threshold_SF.data = form.threshold_SF.clone()
    converted.sparsity = jumprelu.to(encoder.W_enc).eval().requires_grad_(False)
    return converted, form is not None


def becomes_jumprelu(dictionary: Dictionary) -> bool:
    """Whether `as_jumprelu` can convert it: exactly, or with fitted thresholds."""
    sparsity = dictionary.sparsity
    exact = sparsity.as_jumprelu(dictionary.encoder.b_enc) is not None
    return exact or (sparsity.selects and not sparsity.signed)


def thresholds_of_equal_rates(
    dictionary: Dictionary, x_NSD: Callable[[], Iterable[Tensor]]
) -> Tensor:
    """Thresholds [S, F] with which every feature fires as often as it does now.

    If a feature fires n times, its threshold is half way between its n-th and next largest
    pre-activation. A feature that doesn't fire gets its largest pre-activation. The memory is that of
    the code of all activations, one more entry per feature, and a batch's pre-activations.
    """
    encoder = dictionary.encoder
    shape = encoder.n_sources, encoder.n_features
    size = shape[0] * shape[1]
    b_enc = encoder.b_enc
    count_C = torch.zeros(size, dtype=torch.int64, device=b_enc.device)
    smallest_C = b_enc.new_full((size,), torch.inf)
    for x in x_NSD():
        code = dictionary.encode(x)
        count_C += code.pattern.columns.bincount(minlength=size)
        smallest_C.scatter_reduce_(0, code.pattern.columns, code.values, "amin")

    # Its count-th largest pre-activation is at least the smallest with which it fires now.
    fires_C = count_C > 0
    floor_C = torch.where(fires_C, MARGIN * smallest_C, torch.inf)
    largest_C = b_enc.new_zeros(size)
    columns, values = count_C.new_empty(0), b_enc.new_empty(0)
    for x in x_NSD():
        pre_NC = encoder.pre(dictionary.read(x)).view(-1, size)
        largest_C = torch.maximum(largest_C, pre_NC.amax(0))
        above_NC = pre_NC > floor_C
        columns = torch.cat([columns, above_NC.nonzero()[:, 1]])
        values = torch.cat([values, pre_NC[above_NC]])
        columns, values, rank = _ranked(columns, values, size)
        kept = rank <= count_C[columns]
        columns, values, rank = columns[kept], values[kept], rank[kept]
    last_C, next_C = torch.zeros_like(floor_C), floor_C.clone()
    for target_C, number_C in ((last_C, count_C - 1), (next_C, count_C)):
        equal = rank == number_C[columns]
        target_C[columns[equal]] = values[equal]
    return torch.where(fires_C, (last_C + next_C) / 2, largest_C).view(shape)


def _ranked(columns: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entries sorted by column and descending value, and their ranks in the column from 0."""
    order = values.argsort(descending=True)
    order = order[columns[order].argsort(stable=True)]
    columns, values = columns[order], values[order]
    starts_C = columns.bincount(minlength=size).cumsum(0).roll(1)
    starts_C[0] = 0
    return columns, values, torch.arange(len(columns), device=columns.device) - starts_C[columns]

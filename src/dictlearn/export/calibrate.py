"""Other sparsities as JumpReLU, which most tools can load."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.sparsity.jumprelu import JumpReLU

MARGIN = 0.9  # how far below a feature's weakest firing the next weaker value is looked for


@torch.no_grad()
def as_jumprelu(
    dictionary: Dictionary, x_NSD: Callable[[], Iterable[Tensor]]
) -> tuple[Dictionary, bool]:
    """(the dictionary with JumpReLU features, whether it is the same function).

    ReLU is JumpReLU with thresholds 0, and Gated is too, with other parameters. TopK is not: every
    feature gets the threshold above which it fires as often as it did on the held-out activations
    `x_NSD()`, which are read twice. One threshold for all of a layer, as BatchTopK has, loses more: a
    feature's rivals for the k places differ. ValueError where `becomes_jumprelu` says no.
    """
    if not becomes_jumprelu(dictionary):
        raise ValueError(f"{dictionary.sparsity.name} features are none that jumprelu can have")
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
    """Whether thresholds can be had: exactly, or fitted to features that are their pre-activations."""
    sparsity = dictionary.sparsity
    exact = sparsity.as_jumprelu(dictionary.encoder.b_enc) is not None
    return exact or (sparsity.selects and not sparsity.signed)


def thresholds_of_equal_rates(
    dictionary: Dictionary, x_NSD: Callable[[], Iterable[Tensor]]
) -> Tensor:
    """[S, F]: half way between what a feature has to be above to fire as often as now, and the next.

    A feature that doesn't fire gets a threshold that it doesn't reach. Memory is that of the code of
    all the activations and one more entry a feature, and a batch's pre-activations.
    """
    encoder = dictionary.encoder
    shape = encoder.n_sources, encoder.n_features
    size = shape[0] * shape[1]
    b_enc = encoder.b_enc
    count_C = torch.zeros(size, dtype=torch.int64, device=b_enc.device)
    least_C = b_enc.new_full((size,), torch.inf)
    for x in x_NSD():
        code = dictionary.encode(x)
        count_C += code.pattern.columns.bincount(minlength=size)
        least_C.scatter_reduce_(0, code.pattern.columns, code.values, "amin")

    # Its count-th largest value is no less than the least with which it now fires.
    fires_C = count_C > 0
    floor_C = torch.where(fires_C, MARGIN * least_C, torch.inf)
    largest_C = b_enc.new_zeros(size)
    columns, values = count_C.new_empty(0), b_enc.new_empty(0)
    for x in x_NSD():
        pre_NC = encoder.pre(dictionary.read(x)).view(-1, size)
        largest_C = torch.maximum(largest_C, pre_NC.amax(0))
        above_NC = pre_NC > floor_C
        columns = torch.cat([columns, above_NC.nonzero()[:, 1]])
        values = torch.cat([values, pre_NC[above_NC]])
        columns, values, place = _ranked(columns, values, size)
        kept = place <= count_C[columns]
        columns, values, place = columns[kept], values[kept], place[kept]
    last_C, next_C = torch.zeros_like(floor_C), floor_C.clone()
    for target_C, number_C in ((last_C, count_C - 1), (next_C, count_C)):
        chosen = place == number_C[columns]
        target_C[columns[chosen]] = values[chosen]
    return torch.where(fires_C, (last_C + next_C) / 2, largest_C).view(shape)


def _ranked(columns: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entries by column, a column's largest first, and each one's place in its column from 0."""
    order = values.argsort(descending=True)
    order = order[columns[order].argsort(stable=True)]
    columns, values = columns[order], values[order]
    starts_C = columns.bincount(minlength=size).cumsum(0).roll(1)
    starts_C[0] = 0
    return columns, values, torch.arange(len(columns), device=columns.device) - starts_C[columns]

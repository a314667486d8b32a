"""One forward pass with dictionaries in place: how it differs, what it has read, what it changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.patch import Replacement
from dictlearn.types import Code, DictionaryLike

RESIDUAL = ("resid_pre", "resid_mid", "resid_post")
Columns = dict[tuple[int, int], Tensor]  # by (row of the code, feature): a value per token, [N]


@dataclass(frozen=True)
class Setting:
    """How a pass with dictionaries in place differs from the model's own.

    Args:
        error: keep what a dictionary doesn't reconstruct; without it targets are reconstructions.
        layers: blocks whose MLPs are held at their clean values, apart from what edits write there.
            Edits write nothing to other blocks, as circuit-tracer's constrained layers have it.
        attention: hold attention patterns.
        generating: passes continue one another, so the prompt is that of the first.
    """

    error: bool = True
    layers: range | None = None
    attention: bool = False
    generating: bool = False

    def __post_init__(self) -> None:
        if not self.error and (self.attention or self.layers is not None):
            raise ValueError(
                "error=False: nothing can be held then, as what is held was computed with the error; "
                "want freeze_attention=False and constrained=False"
            )


@dataclass(eq=False)
class Pass:
    """One forward pass: its positions, and what has been read and changed so far."""

    keep_BP: Tensor  # bool: positions where dictionaries see the token
    positions_BP: Tensor  # from the first real token; negative in padding on the left
    codes: dict[tuple[int, int], Code] = field(default_factory=dict)  # by (dictionary, source)
    x: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # [N, D]
    new: dict[tuple[int, int], Columns] = field(default_factory=dict)
    changes: dict[tuple[int, int], Columns] = field(default_factory=dict)
    sites: dict[str, Tensor] = field(default_factory=dict)  # [B, P, D]: what may be held


def begin(
    lm: LanguageModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Pass, Tensor]:
    """A pass from what the model's trunk is called with, and the number of real tokens so far, [B].

    Raises:
        ValueError: it is not called with token ids.
    """
    tokens_BP = args[0] if args else kwargs.get("input_ids")
    if not isinstance(tokens_BP, Tensor) or tokens_BP.ndim != 2:
        raise ValueError("want token ids [B, P] for a pass with dictionaries in place")
    past = kwargs.get("past_key_values")
    n_past = int(past.get_seq_length()) if past is not None else 0
    n_all = n_past + tokens_BP.shape[1]
    mask_BP = kwargs.get("attention_mask")
    if not isinstance(mask_BP, Tensor) or mask_BP.ndim != 2:
        mask_BP = tokens_BP.new_ones(len(tokens_BP), n_all)
    real_BP = mask_BP.bool()
    padding_B1 = (real_BP.long().cumsum(1) == 0).sum(1, keepdim=True)
    columns = torch.arange(n_past, n_all, device=tokens_BP.device)
    special = torch.tensor(sorted(lm.special_ids), device=tokens_BP.device)
    keep_BP = real_BP[:, n_past:n_all] & ~torch.isin(tokens_BP, special)
    return Pass(keep_BP, columns - padding_B1), real_BP.sum(1)


def layer(site: str) -> int:
    """The block of a named site; -1 for a module path."""
    number = site.partition(".")[2]
    return int(number) if number.isdigit() else -1


def rows(site_BPD: Tensor, keep_BP: Tensor, dictionary: DictionaryLike) -> Tensor:
    device = next(dictionary.parameters()).device
    return site_BPD[keep_BP.to(site_BPD.device)].float().to(device)


def put(value_BPD: Tensor, keep_BP: Tensor, rows_ND: Tensor) -> Tensor:
    new_BPD = value_BPD.clone()
    new_BPD[keep_BP] = rows_ND.to(value_BPD)
    return new_BPD


def added(value_BPD: Tensor, keep_BP: Tensor, change_ND: Tensor) -> Tensor:
    """The value plus the change; rows without a change keep their bits."""
    rows_ND = value_BPD[keep_BP]
    change_ND = change_ND.to(rows_ND.device)
    new_ND = (rows_ND.float() + change_ND).to(rows_ND.dtype)
    touched_N1 = (change_ND != 0).any(1, keepdim=True)
    return put(value_BPD, keep_BP, torch.where(touched_N1, new_ND, rows_ND))


def in_turn(steps: Sequence[Replacement]) -> Replacement:
    def all_of(seen: Mapping[str, Tensor], value_BPD: Tensor) -> Tensor:
        for step in steps:
            value_BPD = step(seen, value_BPD)
        return value_BPD

    return all_of


def copied(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pass that leaves the cache as it is."""
    past = kwargs.get("past_key_values")
    return dict(kwargs) if past is None else {**kwargs, "past_key_values": copy.deepcopy(past)}

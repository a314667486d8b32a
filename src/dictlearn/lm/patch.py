"""Run the model with something else in place of its own activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

from dictlearn.lm.hooks import See, attach
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.sites import SITES, Site, resolve


@final
class Seen(Mapping[str, Tensor]):
    """The reads of the forward pass that is under way, [B, P, D] each."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._values:
            raise ValueError(
                f"site {name} is not known at this point of the forward pass; known are "
                f"{', '.join(self._values) or 'none'}"
            )
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


# Sees the reads so far and the site's clean value [B, P, D]; returns what is to replace it.
Replacement = Callable[[Mapping[str, Tensor], Tensor], Tensor]


@contextmanager
def patched(
    lm: LanguageModel,
    replacements: Mapping[str, Replacement],
    reads: Sequence[str] = (),
    mask_BP: Tensor | None = None,
) -> Iterator[Mapping[str, Tensor]]:
    """Inside, every forward pass of the model has the target sites replaced.

    Where `mask_BP` is True (everywhere, without one) a target has the value that its replacement
    returns; elsewhere it keeps, bit for bit, the value the model computed. Nothing is written in
    place, so gradients flow through replacements and everything downstream of them.

    `reads` are free-running: their values come from the patched pass, and include what earlier
    replacements changed, but never the replacement of the read site itself. Yields them; they are
    renewed by each pass.

    Replacing `resid_mid` changes what attention adds, so that the sum becomes the new value: exact
    to rounding. The MLP of a parallel block does not read that sum.
    """
    values: dict[str, Tensor] = {}
    seen = Seen(values)
    places = {name: resolve(lm.model, name, lm.info) for name in [*replacements, *reads]}

    def read(site: Site) -> See:
        def see(value: Tensor) -> None:
            values[site.name] = value

        return see

    def write(site: Site) -> See:
        def see(clean: Tensor) -> Tensor:
            new = replacements[site.name](seen, clean)
            return _placed(site, clean, new, mask_BP)

        return see

    def forget(*_: object) -> None:
        values.clear()

    handles = [lm.trunk.register_forward_pre_hook(forget)]
    try:
        # A module's output can be two sites (attn_out, and resid_mid by its sum): the upstream one
        # goes first, and each is read before it is replaced.
        for site in sorted(places.values(), key=_upstream_first):
            if site.name in reads:
                handles += attach(lm.model, site, read(site))
            if site.name in replacements:
                handles += attach(lm.model, site, write(site))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _upstream_first(site: Site) -> int:
    kind = site.name.partition(".")[0]
    return SITES.index(kind) if kind in SITES else len(SITES)


def _placed(site: Site, clean: Tensor, new: Tensor, mask_BP: Tensor | None) -> Tensor:
    if new.shape != clean.shape:
        raise ValueError(
            f"site {site.name}: its replacement returned {list(new.shape)}, want "
            f"{list(clean.shape)}"
        )
    new = new.to(clean.dtype)
    if mask_BP is None:
        return new
    if mask_BP.shape != clean.shape[:2]:
        raise ValueError(
            f"site {site.name}: mask is {list(mask_BP.shape)}, want {list(clean.shape[:2])}"
        )
    return torch.where(mask_BP.to(clean.device).unsqueeze(-1), new, clean)

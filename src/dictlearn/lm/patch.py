"""Run the model with activations at some sites replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

from dictlearn.lm.hooks import SiteHook, attach
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.sites import SITES, Site, resolve


@final
class Reads(Mapping[str, Tensor]):
    """The sites that the current forward pass has read so far, [B, P, D] each."""

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


# Takes the reads so far and the site's clean value [B, P, D]; returns the new value.
Replacement = Callable[[Mapping[str, Tensor], Tensor], Tensor]


@contextmanager
def patched(
    lm: LanguageModel,
    replacements: Mapping[str, Replacement],
    reads: Sequence[str] = (),
    mask_BP: Tensor | None = None,
) -> Iterator[Mapping[str, Tensor]]:
    """Replaces the values of sites in every forward pass inside the context.

    At positions where `mask_BP` is True (everywhere without a mask) a site takes the value that its
    replacement returns; elsewhere the value is bit for bit the model's. Nothing is written in place,
    so gradients flow through replacements and all that follows.

    Yields the values of the sites in `reads`, which each pass renews. They are free-running: they
    include the effect of earlier replacements, but a site is read before it is replaced itself.

    `resid_mid` is replaced by changing attn_out, exactly up to rounding. The MLP of a parallel block
    does not read that sum.
    """
    values: dict[str, Tensor] = {}
    current = Reads(values)
    sites = {name: resolve(lm.model, name, lm.info) for name in [*replacements, *reads]}

    def read_hook(site: Site) -> SiteHook:
        def hook(value: Tensor) -> None:
            values[site.name] = value

        return hook

    def write_hook(site: Site) -> SiteHook:
        def hook(clean: Tensor) -> Tensor:
            new = replacements[site.name](current, clean)
            return _masked(site, clean, new, mask_BP)

        return hook

    def forget(*_: object) -> None:
        values.clear()

    handles = [lm.trunk.register_forward_pre_hook(forget)]
    try:
        # Two sites can hook one module's output (attn_out, and resid_mid as a sum): the upstream
        # one goes first, and each is read before it is replaced.
        for site in sorted(sites.values(), key=_upstream_first):
            if site.name in reads:
                handles += attach(lm.model, site, read_hook(site))
            if site.name in replacements:
                handles += attach(lm.model, site, write_hook(site))
        yield current
    finally:
        for handle in handles:
            handle.remove()


def _upstream_first(site: Site) -> int:
    kind = site.name.partition(".")[0]
    return SITES.index(kind) if kind in SITES else len(SITES)


def _masked(site: Site, clean: Tensor, new: Tensor, mask_BP: Tensor | None) -> Tensor:
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

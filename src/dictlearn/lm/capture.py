"""Read sites while the model runs, and stop it when the last of them is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dictlearn.lm.hooks import attach
from dictlearn.lm.language_model import OTHER, Inputs, LanguageModel
from dictlearn.lm.sites import Site, resolve
from dictlearn.types import Batch


class StopForward(Exception):
    """Every site is known: nothing further need run."""


@torch.no_grad()
def capture(
    lm: LanguageModel,
    tokens_BP: Tensor,
    sites: Sequence[str],
    attention_mask_BP: Tensor | None = None,
) -> dict[str, Tensor]:
    """The value of each site, [B, P, D] in the model's dtype, without a graph.

    The model computes in its own dtype also within a trainer's autocast: the same activations in
    training and evaluation.

    The head never runs, nor does anything after the last site needed: which one that is, is
    observed, so the order of `sites` means nothing. Sites that are one tensor come back as one
    tensor (resid_post.L and resid_pre.(L+1)): don't write into them.

    Sites of another model that reads the same tokens, other/<site>, take a pass of that one.

    `tokens_BP` may lie on any device; values come back on the model's. For a vision model it is
    the pixels. Padding at the end of windows is masked, or what `attention_mask_BP` masks.
    """
    inputs = lm.inputs(tokens_BP)
    if attention_mask_BP is not None:
        inputs["attention_mask"] = attention_mask_BP.to(lm.device)
    return capture_of(lm, inputs, sites)


def batch_at(
    lm: LanguageModel,
    tokens_BP: Tensor,
    keep_BP: Tensor,
    sources: Sequence[str],
    targets: Sequence[str] | None = None,
) -> Batch:
    """Activations at the positions to keep, in reading order, in float32.

    `targets` None: the same as the sources.
    """
    targets = sources if targets is None else targets
    tokens_BP, keep_BP = tokens_BP.to(lm.device), keep_BP.to(lm.device)
    values = capture(lm, tokens_BP, tuple(dict.fromkeys((*sources, *targets))))

    def stacked(sites: Sequence[str]) -> Tensor:
        return torch.stack([values[site][keep_BP] for site in sites], 1).float()

    targets_NTD = None if tuple(targets) == tuple(sources) else stacked(targets)
    positions_BP = torch.arange(tokens_BP.shape[1], device=lm.device).expand_as(tokens_BP)
    return Batch(stacked(sources), targets_NTD, tokens_BP[keep_BP], positions_BP[keep_BP])


@torch.no_grad()
def capture_of(lm: LanguageModel, inputs: Inputs, sites: Sequence[str]) -> dict[str, Tensor]:
    """`capture` of a forward pass on `lm.inputs(tokens_BP)`."""
    if theirs := [name for name in sites if name.startswith(OTHER)]:
        other = lm.at(theirs[0])[0]
        bare = [name.removeprefix(OTHER) for name in theirs]
        found = capture_of(other, {k: v.to(other.device) for k, v in inputs.items()}, bare)
        own = capture_of(lm, inputs, [name for name in sites if name not in theirs])
        both = own | {OTHER + name: value.to(lm.device) for name, value in found.items()}
        return {name: both[name] for name in sites}
    wanted = {name: resolve(lm.model, name, lm.info) for name in sites}
    seen: dict[str, tuple[Tensor, int]] = {}
    if not wanted:
        return {}

    def watch(site: Site) -> Callable[[Tensor], None]:
        def see(value: Tensor) -> None:
            seen[site.name] = value, value._version
            if len(seen) == len(wanted):
                raise StopForward

        return see

    handles = []
    try:
        for site in wanted.values():
            handles += attach(lm.model, site, watch(site))
        with torch.autocast(lm.device.type, enabled=False):
            lm.trunk(**inputs)
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) < len(wanted):
        missing = next(name for name in wanted if name not in seen)
        raise ValueError(
            f"site {missing}: {wanted[missing].module_path} does not run in a forward pass of "
            f"{lm.info.name} without its head"
        )
    for name, (value, version) in seen.items():
        if value._version != version:
            raise ValueError(
                f"site {name}: {lm.info.name} overwrites this tensor further on; capture it "
                f"alone, or a place behind it"
            )
    return {name: seen[name][0] for name in wanted}

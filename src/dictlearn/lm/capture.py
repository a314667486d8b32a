"""Read sites during a forward pass, which stops at the last site that is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dictlearn.lm.hooks import attach
from dictlearn.lm.language_model import OTHER, Inputs, LanguageModel
from dictlearn.lm.sites import Site, resolve
from dictlearn.types import Batch


class StopForward(Exception):
    """Every site has been read, so the rest of the forward pass is not needed."""


@torch.no_grad()
def capture(
    lm: LanguageModel,
    tokens_BP: Tensor,
    sites: Sequence[str],
    attention_mask_BP: Tensor | None = None,
) -> dict[str, Tensor]:
    """The value of each site, [B, P, D] in the model's dtype, without a graph.

    Autocast is off during the pass, so training and evaluation see the same activations. The pass
    stops when the last site has been read, and the head never runs. Two names of one tensor
    (resid_post.L and resid_pre.(L+1)) return the same tensor: don't write into it.

    Sites of the other model (other/<site>) need a forward pass of that model.

    `tokens_BP` may be on any device; the values are on the model's device. A vision model takes
    pixels in its place. Padding at the end of windows is masked, unless `attention_mask_BP` is given.
    """
    inputs = lm.inputs(tokens_BP)
    if attention_mask_BP is not None:
        inputs["attention_mask"] = attention_mask_BP.to(lm.device)
    return capture_inputs(lm, inputs, sites)


def batch_at(
    lm: LanguageModel,
    tokens_BP: Tensor,
    keep_BP: Tensor,
    sources: Sequence[str],
    targets: Sequence[str] | None = None,
) -> Batch:
    """Activations at the positions where `keep_BP` is True, in reading order, in float32.

    Without `targets` the sources are the targets too.
    """
    targets = sources if targets is None else targets
    tokens_BP, keep_BP = tokens_BP.to(lm.device), keep_BP.to(lm.device)
    values = capture(lm, tokens_BP, tuple(dict.fromkeys((*sources, *targets))))
    x_NSD, targets_NTD = stack_sites(values, keep_BP, sources, targets)
    positions_BP = torch.arange(tokens_BP.shape[1], device=lm.device).expand_as(tokens_BP)
    return Batch(x_NSD, targets_NTD, tokens_BP[keep_BP], positions_BP[keep_BP])


def stack_sites(
    values: Mapping[str, Tensor], keep: Tensor, sources: Sequence[str], targets: Sequence[str]
) -> tuple[Tensor, Tensor | None]:
    """The rows `keep` of the sources and targets, float32; None for targets equal to the sources."""

    def stack(sites: Sequence[str]) -> Tensor:
        return torch.stack([values[site][keep] for site in sites], 1).float()

    return stack(sources), None if tuple(targets) == tuple(sources) else stack(targets)


@torch.no_grad()
def capture_inputs(lm: LanguageModel, inputs: Inputs, sites: Sequence[str]) -> dict[str, Tensor]:
    """`capture`, for the result of `lm.inputs(tokens_BP)`."""
    if theirs := [name for name in sites if name.startswith(OTHER)]:
        other = lm.at(theirs[0])[0]
        names = [name.removeprefix(OTHER) for name in theirs]
        other_inputs = {key: tensor.to(other.device) for key, tensor in inputs.items()}
        values = capture_inputs(lm, inputs, [name for name in sites if name not in theirs])
        for name, value in capture_inputs(other, other_inputs, names).items():
            values[OTHER + name] = value.to(lm.device)
        return {name: values[name] for name in sites}
    resolved = {name: resolve(lm.model, name, lm.info) for name in sites}
    captured: dict[str, tuple[Tensor, int]] = {}
    if not resolved:
        return {}

    def capture_hook(site: Site) -> Callable[[Tensor], None]:
        def hook(value: Tensor) -> None:
            captured[site.name] = value, value._version
            if len(captured) == len(resolved):
                raise StopForward

        return hook

    handles = []
    try:
        for site in resolved.values():
            handles += attach(lm.model, site, capture_hook(site))
        with torch.autocast(lm.device.type, enabled=False):
            lm.trunk(**inputs)
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if len(captured) < len(resolved):
        missing = next(name for name in resolved if name not in captured)
        raise ValueError(
            f"site {missing}: {resolved[missing].module_path} does not run in a forward pass of "
            f"{lm.info.name} without its head"
        )
    for name, (value, version) in captured.items():
        if value._version != version:
            raise ValueError(
                f"site {name}: {lm.info.name} overwrites this tensor later in the forward pass; "
                f"capture it alone, or a later site"
            )
    return {name: captured[name][0] for name in resolved}

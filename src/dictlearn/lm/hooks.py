"""Hooks that read a site during a forward pass, or replace its value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dictlearn.lm.sites import Site

SMALL = 1e-5  # added to a standard deviation, as ESMC and SAELens do

# Takes a site's value; returns its replacement, or None to leave the value as it is.
SiteHook = Callable[[Tensor], Tensor | None]


def attach(model: nn.Module, site: Site, hook: SiteHook) -> list[RemovableHandle]:
    """Calls `hook` with the site's value in every forward pass.

    Hooks at one site run in the order in which they were attached; each gets the value that the
    one before it returned.
    """
    if site.standardised:

        def scaled_hook(value: Tensor) -> Tensor | None:
            z, scale = standardised(value)
            new = hook(z)
            return None if new is None else value + ((new.float() - z.float()) * scale).to(value)

        return attach(model, replace(site, standardised=False), scaled_hook)

    if site.plus is None:
        return [_attach_to_module(model, site, hook)]

    # The model may never compute this sum of two sites. It is replaced by adding the difference to
    # the second; the difference is exactly zero where the sum doesn't change.
    first: list[Tensor] = []

    def keep(value: Tensor) -> None:
        first[:] = [value]

    def sum_hook(value: Tensor) -> Tensor | None:
        total = first.pop() + value
        new = hook(total)
        return None if new is None else value + (new - total)

    return [*attach(model, site.plus, keep), _attach_to_module(model, site, sum_hook)]


def _attach_to_module(model: nn.Module, site: Site, hook: SiteHook) -> RemovableHandle:
    module = model.get_submodule(site.module_path)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = args[0] if args else kwargs.get("hidden_states")
        new = hook(_checked(site, value))
        if new is None:
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": new}

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        # Attention may also return its weights, and an MLP its router's scores; the value is first.
        value = output[0] if isinstance(output, tuple) else output
        new = hook(_checked(site, value))
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def within(norm: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if hook(_checked(site, normed(norm, args[0], output))) is not None:
            raise ValueError(f"site {site.name}: can be read but not replaced; want mlp_in")

    if site.end == "normed":
        return module.register_forward_hook(within)
    if site.end == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def standardised(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x with each token centred and divided by its standard deviation, that deviation)."""
    dtype, x = x.dtype, x.float()
    scale = x.std(-1, keepdim=True) + SMALL
    return ((x - x.mean(-1, keepdim=True)) / scale).to(dtype), scale


def normed(norm: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """The output of an RMSNorm or LayerNorm for x before its gain and bias, if it has them."""
    if getattr(norm, "weight", None) is None:
        return output
    dtype, x = x.dtype, x.float()
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    eps = next(getattr(norm, key) for key in ("variance_epsilon", "eps") if hasattr(norm, key))
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(dtype)


def _checked(site: Site, value: object) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3:
        return value
    shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"site {site.name}: want activations [sequences, positions, width] at the {site.end} of "
        f"{site.module_path}, found {shape}"
    )

"""One way to look at a site while the model runs, and to put another tensor in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dictlearn.lm.sites import Site

# Sees a site's value; returns what is to stand there instead, or None to leave it as it is.
See = Callable[[Tensor], Tensor | None]


def attach(model: nn.Module, site: Site, see: See) -> list[RemovableHandle]:
    """Calls `see` with the site's value whenever the model computes it.

    Hooks at one place run in the order they were attached, each seeing what the one before it put
    there.
    """
    if site.plus is None:
        return [_attach_to_module(model, site, see)]

    # A sum that may exist nowhere as a tensor. To replace it, its last part makes up the
    # difference: exactly zero where the sum stays what it was.
    part: list[Tensor] = []

    def keep(value: Tensor) -> None:
        part[:] = [value]

    def see_sum(value: Tensor) -> Tensor | None:
        total = part.pop() + value
        new = see(total)
        return None if new is None else value + (new - total)

    return [*attach(model, site.plus, keep), _attach_to_module(model, site, see_sum)]


def _attach_to_module(model: nn.Module, site: Site, see: See) -> RemovableHandle:
    module = model.get_submodule(site.module_path)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = args[0] if args else kwargs.get("hidden_states")
        new = see(_checked(site, value))
        if new is None:
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": new}

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        # Attention returns its weights too, some MLPs their router's scores: the value is first.
        value = output[0] if isinstance(output, tuple) else output
        new = see(_checked(site, value))
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    if site.end == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _checked(site: Site, value: object) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3:
        return value
    found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"site {site.name}: want activations [sequences, positions, width] at the {site.end} of "
        f"{site.module_path}, found {found}"
    )

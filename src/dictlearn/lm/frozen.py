"""Hold attention patterns and norm scales of a forward pass at their values in an earlier pass.

Effects of a change are then linear in everything but the MLPs, as attribution graphs define them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.sites import blocks

PATTERNS = "dictlearn_patterns"  # the name of our attention implementation in transformers
EPSILONS = ("variance_epsilon", "eps", "epsilon")  # names of the norm's constant


@final
class Frozen:
    """The attention patterns, and with `norms` the scales of norms, of a forward pass over windows.

    Inside `attached()`, a pass with `holds` False records them, and one with `holds` True uses the
    recorded ones. Queries, keys and the norms' scales then have no effect; values have.
    """

    def __init__(self, lm: LanguageModel, norms: bool = False) -> None:
        self.holds = False
        self._lm, self._norms = lm, norms
        self._patterns: dict[nn.Module, Tensor] = {}  # [B, heads, P, P]
        self._scales: dict[nn.Module, Tensor] = {}  # [B, P, 1]

    @contextmanager
    def attached(self) -> Iterator[None]:
        global _active
        config = self._lm.model.config.get_text_config()
        before, outer = config._attn_implementation, _active
        hooks = [
            module.register_forward_hook(self._norm)
            for module in (residual_norms(self._lm) if self._norms else [])
        ]
        config._attn_implementation, _active = PATTERNS, self
        try:
            yield
        finally:
            config._attn_implementation, _active = before, outer
            for hook in hooks:
                hook.remove()

    def check(self) -> None:
        """Raises ValueError if a block has no attention: only attention patterns can be held."""
        n_blocks = len(blocks(self._lm.model)[1])
        without = n_blocks - len(self._patterns)
        if without > 0:
            raise ValueError(
                f"{self._lm.info.name}: {without} of its {n_blocks} blocks have no attention pattern to "
                "hold; want freeze_attention=False and constrained=False"
            )

    def has(self, attention: nn.Module) -> bool:
        """Whether the recorded pass gave this attention module's pattern."""
        return attention in self._patterns

    def pattern(self, attention: nn.Module) -> Tensor:
        """The pattern that an attention module had in the recorded pass: [B, heads, P, P]."""
        return self._patterns[attention]

    def attend(
        self, module: nn.Module, value: Tensor, eager: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        if not self.holds:
            output, self._patterns[module] = eager()
            return output, self._patterns[module]
        pattern = self._patterns[module]
        groups = pattern.shape[1] // value.shape[1]
        output = torch.matmul(pattern, value.repeat_interleave(groups, dim=1))
        return output.transpose(1, 2).contiguous(), pattern

    def _norm(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        scale = _scale(module, args[0])
        if not self.holds:
            self._scales[module] = scale
            return None
        bias = getattr(module, "bias", None)
        bias = output.new_zeros(()) if bias is None else bias
        return ((output - bias) * (scale / self._scales[module]) + bias).to(output.dtype)


_active: Frozen | None = None


def residual_norms(lm: LanguageModel) -> list[nn.Module]:
    """The norms that read or write the residual stream: those of the trunk and of its blocks."""
    _, layers = blocks(lm.model)
    parents = [lm.trunk, *layers]
    children = [child for parent in parents for child in parent.children()]
    return [child for child in children if type(child).__name__.endswith("Norm")]


def _scale(module: nn.Module, x: Tensor) -> Tensor:
    """The scale by which a norm divides, [..., 1], in float32."""
    x = x.float()
    default = 0.0
    if "LayerNorm" in type(module).__name__:
        x = x - x.mean(-1, keepdim=True)
        default = 1e-5  # olmo's, which keeps it nowhere
    epsilon = next((getattr(module, name) for name in EPSILONS if hasattr(module, name)), default)
    return (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The family's own eager attention, or a held pattern applied to the values."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None or _active is None:
        raise ValueError(f"{type(module).__name__}: its attention patterns cannot be held")
    return _active.attend(
        module, value, lambda: eager(module, query, key, value, attention_mask, **options)
    )


AttentionInterface.register(PATTERNS, _attention)
AttentionMaskInterface.register(PATTERNS, eager_mask)

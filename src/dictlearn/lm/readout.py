"""Next-token logits in chunks, so that those of a whole batch never exist at once.

For 4,096 tokens and a vocabulary of 152k one float32 copy is 2.5 GB, and a comparison of two models
needs several. The final hidden states are 60 times smaller, so they are kept and the head is applied
in chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from dictlearn.lm.language_model import LanguageModel


@final
class Readout:
    """`states` runs the model up to its head, `logits` applies the head to rows of states.

    Heads differ between families (bias, soft-capping, scaling). If the split does not give the
    model's own logits on `probe_BP`, the states are the logits. Both have a graph only if a
    replacement of `patched` needs a gradient. A deep copy is the object itself, as for the model.
    """

    def __init__(self, lm: LanguageModel, probe_BP: Tensor):
        assert has_head(lm)
        self.lm = lm
        text_config = lm.model.config.get_text_config().to_dict()
        head = lm.model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        cap = text_config.get("final_logit_softcapping")
        self.head: Callable[[Tensor], Tensor] | None = _capped(head, cap)
        probe_BP = probe_BP[:1, :4].to(lm.device)
        logits = lm.logits(probe_BP).flatten(0, 1).float()
        split = self.logits(self.states(probe_BP).flatten(0, 1))
        tolerance = 1e-3 * float(logits.nan_to_num().abs().max())  # callers refuse NaN
        if not torch.allclose(logits, split, rtol=1e-3, atol=tolerance):
            self.head = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Readout:
        return self

    def states(self, tokens_BP: Tensor) -> Tensor:
        """[B, P, width], or [B, P, V] for a head that cannot be split off."""
        if self.head is None:
            return self.lm.logits(tokens_BP)
        return self.lm.trunk(**self.lm.inputs(tokens_BP)).last_hidden_state

    def unembedding(self) -> Tensor | None:
        """[V, width] if the logits are its product with the states and nothing else, or None."""
        head = self.head
        if not isinstance(head, nn.Linear) or head.bias is not None:
            return None
        # A quantised layer is a subclass whose weight is packed.
        return head.weight if head.__class__ is nn.Linear else None

    def logits(self, states_ND: Tensor) -> Tensor:
        """The logits of these states, float32 [N, V]."""
        return (states_ND if self.head is None else self.head(states_ND)).float()


def has_head(lm: LanguageModel) -> bool:
    """Whether the model predicts next tokens; an encoder is loaded without a head."""
    return lm.trunk is not lm.model


def _capped(head: nn.Module, cap: float | None) -> Callable[[Tensor], Tensor]:
    if not cap:
        return head
    return lambda states: cap * torch.tanh(head(states) / cap)

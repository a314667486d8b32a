"""Pre-activation loss (Anthropic, January 2025 update): keeps silent JumpReLU features trainable."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from dictlearn.objectives.protocol import Forward, Term, zero
from dictlearn.ranges import Fraction, NonNegative


@final
class PreActivation(Term):
    """Mean over tokens of sum_i relu(threshold_i - pre_i) ||W_dec,i||.

    `over: all` is the published form and reads every pre-activation, which costs a dense backward
    pass; `over: dead` restricts it to dead features, and costs in proportion to them.
    """

    wants_sparsity = "jumprelu"

    def __init__(
        self,
        coefficient: NonNegative = 3e-6,
        warmup: Fraction = 0.0,
        over: Literal["all", "dead"] = "all",
    ):
        super().__init__(coefficient, warmup)
        self.over = over

    def value(self, forward: Forward) -> Tensor:
        dictionary = forward.dictionary
        chosen_SF = forward.dead_SF
        if self.over == "all":
            chosen_SF = torch.ones_like(chosen_SF)
        x_NSD = dictionary.read(forward.x_NSD)
        total = zero(forward)
        for source, chosen_F in enumerate(chosen_SF):
            chosen = chosen_F.nonzero().squeeze(1)
            W_enc = dictionary.encoder.W_enc[source][chosen]
            pre = torch.addmm(dictionary.encoder.b_enc[source][chosen], x_NSD[:, source], W_enc.T)
            short = torch.relu(dictionary.sparsity.threshold_SF[source][chosen] - pre)
            total = total + (short @ dictionary.decoder.norms()[source][chosen]).mean()
        return total

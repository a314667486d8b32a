"""sparsify 1.3: SparseCoder's own forward and backward in the order its Trainer calls them.

Its Trainer cannot be fed activations, only a language model and tokens, so the loop below is that
Trainer's, call for call: b_dec from the first batch's mean, rows renormalised before each forward,
the parallel gradient removed before each step.
Equalised ("adam"): torch Adam with everybody's lr, warm-up and decay, and AuxK at 1/32 with
everybody's dead window, which its default leaves off. "signum" is its default optimiser with its
own learning rate, a constant one, and without AuxK.
On a GPU its decoder is its Triton kernel and its forward pass autocasts to bf16, as it comes.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import final

import torch

if not torch.cuda.is_available():  # its Triton decoder cannot run on a CPU
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"

from schedulefree import ScheduleFreeWrapper
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.sign_sgd import SignSGD
from torch import Tensor

from peers.recipe import Recipe


@final
class Sparsify:
    def __init__(self, recipe: Recipe, seed: int, optimiser: str = "adam"):
        torch.manual_seed(seed)
        self.recipe = recipe
        self.sae = SparseCoder(
            recipe.width,
            SparseCoderConfig(num_latents=recipe.n_features, k=recipe.k),
            device=recipe.device,
            dtype=torch.float32,
        )
        self.tokens_since_fired_F = torch.zeros(
            recipe.n_features, dtype=torch.long, device=recipe.device
        )
        self.n_steps = 0
        if optimiser == "adam":
            self.auxk_alpha = 1 / 32
            self.adam = torch.optim.Adam(self.sae.parameters(), lr=recipe.lr)
            self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, recipe.lr_factor)
            self.signum = None
        else:
            assert optimiser == "signum", optimiser
            self.auxk_alpha = 0.0
            lr = 5e-3 / (recipe.n_features / 2**14) ** 0.5
            self.signum = ScheduleFreeWrapper(
                SignSGD(list(self.sae.parameters()), lr=lr), momentum=0.95
            )
            self.signum.train()

    def train(self, batches: Iterator[Tensor]) -> SparsifyTrained:
        for _ in range(self.recipe.steps):
            self.step(next(batches))
        if self.signum is not None:
            self.signum.eval()
        return SparsifyTrained(self.sae)

    def step(self, x_ND: Tensor) -> None:
        if self.n_steps == 0:
            self.sae.b_dec.data = x_ND.mean(0)
        self.sae.set_decoder_norm_to_unit_norm()
        dead_F = None
        if self.auxk_alpha > 0:
            dead_F = self.tokens_since_fired_F > self.recipe.dead_after_tokens
        total = (x_ND - x_ND.mean(0)).square().sum()
        out = self.sae(x=x_ND, y=x_ND, dead_mask=dead_F, total_variance=total)
        fired_F = torch.zeros_like(self.tokens_since_fired_F, dtype=torch.bool)
        fired_F[out.latent_indices.flatten()] = True
        (out.fvu + self.auxk_alpha * out.auxk_loss).backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        if self.signum is not None:
            self.signum.step()
            self.signum.zero_grad()
        else:
            self.adam.step()
            self.adam.zero_grad()
            self.schedule.step()
        self.tokens_since_fired_F += len(x_ND)
        self.tokens_since_fired_F[fired_F] = 0
        self.n_steps += 1


@final
class SparsifyTrained:
    thresholded = False

    def __init__(self, sae: SparseCoder):
        self.sae = sae

    def forward(self, x_ND: Tensor, threshold_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        values_NK, features_NK, _ = self.sae.encode(x_ND)
        code_NF = x_ND.new_zeros(len(x_ND), self.sae.num_latents)
        return self.sae.decode(values_NK, features_NK), code_NF.scatter_(1, features_NK, values_NK)

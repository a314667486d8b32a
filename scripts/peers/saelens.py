"""SAELens 6.54, driven through its own SAETrainer: its losses, initialisation and optimiser.

Equalised: lr, warm-up, decay, the dead window (in its unit, steps) and the input scale, which is
SAELens' own convention (mean norm sqrt(D)), applied once to the file and therefore off here.
Kept as it comes: Adam with betas (0.9, 0.999), clipping at norm 1, decoder rows that start at norm
0.1 and stay free, aux_loss_coefficient 1, and for jumprelu the bandwidth and first threshold.
On a GPU its autocast to bf16 is switched on, which makes it faster and which its default leaves off.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any, final

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from peers.recipe import Recipe

KINDS = ("topk", "batchtopk", "matryoshka", "jumprelu")


def _training_sae(kind: str, recipe: Recipe) -> Any:
    size = {"d_in": recipe.width, "d_sae": recipe.n_features}
    size |= {"device": recipe.device, "dtype": "float32"}
    if kind == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(**size, k=recipe.k))
    if kind == "batchtopk":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**size, k=float(recipe.k)))
    if kind == "matryoshka":
        config = MatryoshkaBatchTopKTrainingSAEConfig(
            **size, k=float(recipe.k), matryoshka_widths=list(recipe.prefixes)
        )
        return MatryoshkaBatchTopKTrainingSAE(config)
    assert kind == "jumprelu", kind
    config = JumpReLUTrainingSAEConfig(
        **size,
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=float(recipe.k),
        l0_warm_up_steps=recipe.warmup,
    )
    return JumpReLUTrainingSAE(config)


@final
class SAELens:
    def __init__(self, kind: str, recipe: Recipe, seed: int):
        torch.manual_seed(seed)
        self.recipe = recipe
        self.sae = _training_sae(kind, recipe)
        self.config = SAETrainerConfig(
            total_training_samples=recipe.steps * recipe.batch_tokens,
            train_batch_size_samples=recipe.batch_tokens,
            lr=recipe.lr,
            lr_end=recipe.lr,
            lr_warm_up_steps=recipe.warmup,
            lr_decay_steps=recipe.decay,
            dead_feature_window=max(1, recipe.dead_after_tokens // recipe.batch_tokens),
            device=recipe.device,
            autocast=recipe.device == "cuda",
        )
        self.trainer = SAETrainer(self.config, self.sae, iter(()))

    def train(self, batches: Iterator[Tensor]) -> SAELensTrained:
        self.trainer.data_provider = batches
        self.trainer.fit()
        return SAELensTrained(self.sae)

    def step(self, x_ND: Tensor) -> None:
        """The body of SAETrainer.fit's loop, without wandb and the progress bar."""
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x_ND)
        self.trainer.n_training_steps += 1


@final
class SAELensTrained:
    """What SAELens would hand a reader: saved for inference and loaded again.

    BatchTopK and Matryoshka become JumpReLU there, with the running threshold.
    """

    def __init__(self, training_sae: Any):
        with tempfile.TemporaryDirectory() as folder:
            training_sae.save_inference_model(folder)
            self.sae = SAE.load_from_disk(folder)
        self.thresholded = self.sae.cfg.architecture() == "jumprelu"
        if self.thresholded:
            self.threshold_F = self.sae.threshold.detach().clone()

    def forward(self, x_ND: Tensor, threshold_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        if self.thresholded:
            self.sae.threshold.data = self.threshold_F * threshold_scale
        code_NF = self.sae.encode(x_ND)
        return self.sae.decode(code_NF), code_NF

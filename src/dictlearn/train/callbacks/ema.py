"""Exponential moving average of the weights, which becomes the dictionary when training ends."""

from __future__ import annotations

from typing import final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from dictlearn.ranges import ProperFraction
from dictlearn.train.signum import Signum


@final
class EMACallback(WeightAveraging):
    """average <- d * average + (1 - d) * weights after every step, d = min(decay, (1 + n) / (10 + n)).

    n counts the updates so far: the first steps are forgotten even when the run is shorter than
    1 / (1 - decay). Counters and other buffers are the trained model's own, not averaged. The
    average is in every checkpoint, beside the weights that training goes on from; decoder rows,
    whose average is shorter than 1, are normalised again in the inference form. Costs a copy of
    the parameters.
    """

    def __init__(self, decay: ProperFraction = 0.999):
        self.decay = decay
        super().__init__(use_buffers=False, avg_fn=self.mix)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if getattr(pl_module.optimiser, "func", None) is Signum:
            raise ValueError(
                "callbacks.ema: optim=signum saves an average of its own; want callbacks=default"
            )
        super().setup(trainer, pl_module, stage)

    def mix(self, average: Tensor, weights: Tensor, updates: Tensor | int) -> Tensor:
        """One parameter's next average."""
        decay = min(self.decay, (1 + float(updates)) / (10 + float(updates)))
        return average.lerp(weights, 1 - decay)

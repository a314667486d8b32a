"""When to save, what to keep, and the random number states that make a resume exact."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from dictlearn import escape
from dictlearn.ckpt import commit, rng
from dictlearn.ckpt.checkpoint_io import DictlearnCheckpointIO
from dictlearn.ranges import Count, Positive
from dictlearn.train.callbacks.agreed import Agreed


@final
class CheckpointCallback(Checkpoint):
    """Saves the run to `folder`/step-N after optimiser steps, never between accumulated batches.

    Every `every_steps` steps, every `every_minutes` of wall clock, at the last step, and before
    the trainer stops early (`trainer.should_stop`). It keeps the newest `keep`, and for good each
    `pin_every`-th step and every folder with a file named PINNED. A save that the disk refuses leaves
    the old checkpoints alone; with `on_error="warn"` training goes on and the metric
    checkpoint/failed counts it.

    Lightning runs callbacks of its class `Checkpoint` after all others, but before the module's
    own `on_train_batch_end`: changes by that hook would not be in the checkpoint.
    """

    def __init__(
        self,
        folder: str | Path,
        every_steps: Count | None = 1000,
        every_minutes: Positive | None = None,
        keep: Count = 2,
        pin_every: Count | None = None,
        on_error: Literal["warn", "raise"] = "warn",
    ):
        self.folder = Path(folder)
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.pin_every = pin_every
        self.on_error = on_error
        self.failures = 0
        self._seen_step = 0  # the last optimiser step that was handled
        self._saved_step: int | None = None
        self._saved_at = time.monotonic()
        self._rng_to_restore: dict[str, Any] | None = None
        self._rng_parts = False  # whether another number of processes has written the checkpoint
        self._late = Agreed()  # whether a process thinks that it is time; clocks differ

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(trainer.strategy.checkpoint_io, DictlearnCheckpointIO):
            raise ValueError(
                "CheckpointCallback writes folders: give the Trainer "
                "plugins=[DictlearnCheckpointIO(config)]"
            )
        if stage == "fit" and trainer.is_global_zero:
            commit.collect_garbage(self.folder)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = [rng.collect()]
        if trainer.world_size > 1:
            states = states * trainer.world_size
            torch.distributed.all_gather_object(states, states[0])
        checkpoint["rng"] = states

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if "rng" not in checkpoint:
            raise ValueError(
                "the checkpoint was saved without a CheckpointCallback: no exact resume"
            )
        states = checkpoint["rng"]
        # They are set later, since building loaders and normalisers draws random numbers too.
        self._rng_to_restore = states[trainer.global_rank % len(states)]
        self._rng_parts = len(states) != trainer.world_size

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step = trainer.global_step
        self._saved_at = time.monotonic()
        if self._rng_to_restore is not None:
            self._saved_step = trainer.global_step
            rng.restore(self._rng_to_restore)
            if self._rng_parts:
                rng.part(trainer.global_rank)
            self._rng_to_restore = None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if self.every_minutes is not None:
            self._late.ask(time.monotonic() - self._saved_at >= 60 * self.every_minutes)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen_step:  # gradients are still being accumulated
            return
        self._seen_step = step
        if self._is_due(trainer, step):
            self._save(trainer, step)
        if self.failures:
            pl_module.log("checkpoint/failed", float(self.failures))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer, trainer.global_step)
        if self.failures and trainer.is_global_zero:
            last = "" if self._saved_step is None else f"; the newest is step-{self._saved_step}"
            escape.say(
                f"callbacks.checkpoint: {self.failures} save{'s' * (self.failures > 1)} failed{last}"
            )

    def _is_due(self, trainer: Trainer, step: int) -> bool:
        late = self.every_minutes is not None and bool(self._late.told())
        on_step = self.every_steps is not None and step % self.every_steps == 0
        return late or on_step or trainer.should_stop or step == trainer.max_steps

    def _save(self, trainer: Trainer, step: int) -> None:
        folder = self.folder / f"step-{step}"
        self._saved_at = time.monotonic()
        failure = None
        try:
            trainer.save_checkpoint(folder, weights_only=False)
        except OSError as error:
            failure = error
            trainer.strategy.barrier()  # the one inside save_checkpoint, where other ranks wait
        if failure is None and trainer.is_global_zero:
            try:
                self._tidy(folder, step)
            except OSError as error:
                failure = error
        if trainer.strategy.broadcast(failure is None):
            self._saved_step = step
            return
        self.failures += 1
        if failure is not None:
            if self.on_error == "raise":
                raise failure
            escape.say(f"{failure}. Training goes on")

    def _tidy(self, folder: Path, step: int) -> None:
        commit.set_latest(folder)
        if self.pin_every is not None and step % self.pin_every == 0:
            commit.pin(folder)
        commit.prune(self.folder, self.keep)

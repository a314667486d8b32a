"""The one LightningModule, for every kind, sparsity and objective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import lightning
import torch
from dictlearn_kernels import topk_encode
from torch import Tensor, nn

from dictlearn.sparsity import ranks
from dictlearn.train.gradients import Gradients
from dictlearn.train.groups import parameter_groups
from dictlearn.train.restored import note_entries, refuse_unfit
from dictlearn.train.schedules import Trapezoid
from dictlearn.train.signum import Signum
from dictlearn.train.spikes import Spikes
from dictlearn.train.trainee import Outcome, Trainee
from dictlearn.types import Batch

Optimiser = Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer]


@final
class DictionaryTraining(lightning.LightningModule):
    """Trains named dictionaries, usually one, on one stream of batches.

    An optimiser step is: backward, project decoder gradients, measure the gradient's norm, refuse the
    step if that isn't finite or, with `spike_sigma`, is a spike (`train/spikes.py`), clip, step,
    renormalise decoders, count silent features. After `max_refused` refused steps in a row the run
    stops.
    """

    refused: Tensor  # steps, int64
    refused_in_a_row: Tensor

    def __init__(
        self,
        trainees: Mapping[str, Trainee],
        optimiser: Optimiser,
        schedule: Trapezoid,
        steps: int,
        clip_norm: float | None = 1.0,
        max_refused: int = 10,
        spike_sigma: float | None = None,
    ):
        super().__init__()
        self.trainees = nn.ModuleDict(trainees)
        self.optimiser, self.schedule, self.steps = optimiser, schedule, steps
        self.clip_norm, self.max_refused = clip_norm, max_refused
        self.register_buffer("refused_in_a_row", torch.zeros((), dtype=torch.int64))
        self.register_buffer("refused", torch.zeros((), dtype=torch.int64))
        self.spikes = nn.ModuleDict()  # empty without a policy
        if spike_sigma is not None:
            self.spikes = nn.ModuleDict({name: Spikes(spike_sigma) for name in trainees})
        self.metrics: dict[str, float] = {}  # of the latest logged step, for callbacks
        self._accepted = True
        self._losses: list[Tensor] = []  # [dictionaries] for each batch of a step, for the policy
        self._measured: dict[
            str, tuple[float, float]
        ] = {}  # (loss, norm) in this step, for the policy
        self._stage = 0  # 1 while batches have windows beside them
        self._gradients: Gradients | None = None  # once there is an optimiser
        self._logged_at: tuple[int, float] | None = None  # (step, seconds)

    def trainee(self, name: str = "dictionary") -> Trainee:
        """The dictionary in training of that name; a run with one calls it `dictionary`."""
        return self.trainees[name]  # type: ignore[return-value]

    def named_trainees(self) -> list[tuple[str, Trainee]]:
        return list(self.trainees.items())  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        optimiser = self.optimiser(parameter_groups(self))
        self._gradients = Gradients(dict(self.named_trainees()), optimiser, self._alone())
        schedule = {"scheduler": self._scheduled(optimiser), "interval": "step"}
        return {"optimizer": optimiser, "lr_scheduler": schedule}

    def _scheduled(self, optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: self.schedule(step, self.steps)
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that this run could not have written, before anything is loaded."""

        def build(groups: list[dict[str, Any]]) -> Any:
            optimiser = self.optimiser(groups)
            return optimiser, self._scheduled(optimiser)

        refuse_unfit(checkpoint, self, build, self.trainer.ckpt_path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        note_entries(checkpoint)

    def _alone(self) -> bool:
        """Whether gradients are neither averaged over processes nor scaled."""
        return self.trainer.world_size == 1 and self.trainer.precision != "16-mixed"

    def on_train_start(self) -> None:
        topk_encode.forget()  # counts from outside of this run
        optimiser = self.optimizers(use_pl_optimizer=False)
        if isinstance(optimiser, Signum):
            optimiser.train()

    def on_train_end(self) -> None:
        optimiser = self.optimizers(use_pl_optimizer=False)
        if isinstance(optimiser, Signum):
            optimiser.eval()

    def teardown(self, stage: str) -> None:
        if self._gradients is not None:
            self._gradients.stop()

    @property
    def gradients(self) -> Gradients:
        assert self._gradients is not None, "Lightning asks for the optimiser before it trains"
        return self._gradients

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        progress = self.trainer.global_step / self.steps
        self.gradients.collect()
        outcomes = {name: trainee(batch, progress) for name, trainee in self.named_trainees()}
        if self.trainer.global_step == 0:
            for name, trainee in self.named_trainees():
                trainee.note_start(outcomes[name])
        if self._logs_now():
            self._log(outcomes, len(batch.x_NSD))
        losses = torch.stack([outcome.loss for outcome in outcomes.values()])
        if self.spikes:
            self._losses.append(losses.detach().double())
            self._stage = int(batch.beside is not None)
        return losses.sum()

    def _logs_now(self) -> bool:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.trainer.global_step + 1) % every == 0

    def _log(self, outcomes: Mapping[str, Outcome], batch_tokens: int) -> None:
        step = self.trainer.global_step + 1
        flagged, rows = topk_encode.flagged()
        topk_encode.forget()
        counted = torch.tensor([batch_tokens, flagged, rows], dtype=torch.float64)
        batch_tokens, flagged, rows = map(int, ranks.sum_of_all(counted).tolist())
        step_tokens = batch_tokens * self.trainer.accumulate_grad_batches
        self.metrics = {"step": float(step), "tokens": float(step * step_tokens)}
        for name, trainee in self.named_trainees():
            prefix = "" if len(outcomes) == 1 or name == "dictionary" else f"{name}/"
            for metric, value in trainee.metrics(outcomes[name]).items():
                self.metrics[prefix + metric] = value
        self.metrics["lr"] = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        self.metrics["refused_steps"] = float(self.refused)
        if rows:  # selected in low precision since the last logged step
            self.metrics["recomputed"] = flagged / rows
        now = time.perf_counter()
        if self._logged_at is not None:
            earlier, when = self._logged_at
            self.metrics["tokens_per_second"] = (step - earlier) * step_tokens / (now - when)
        self._logged_at = (step, now)
        self.log_dict(self.metrics)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norms = self.gradients.measure()
        # All at once: reading one synchronises with a GPU.
        sizes = torch.stack([*norms, self._parameters_sum()]).tolist()
        finite = all(map(math.isfinite, sizes))
        self._accepted = finite and not self._spiked(sizes[:-1])
        if not self._accepted:
            self.gradients.drop()  # then the optimiser leaves moments and step counts alone too
        elif self.clip_norm is not None:
            for name, norm, size in zip(self.trainees, norms, sizes, strict=False):
                self.gradients.clip(name, norm, size, self.clip_norm)

    def _parameters_sum(self) -> Tensor:
        """The sum of all parameters, float64: not finite if one of them isn't, in any process.

        A feature whose encoder is NaN is never selected, so no loss would show it.
        """
        with torch.no_grad():
            sums = torch.stack([p.sum().double() for p in self.parameters()])
        return ranks.sum_of_all(sums.sum())

    def _spiked(self, norms: list[float]) -> bool:
        """Whether any dictionary's loss or norm is a spike; notes both for when the step is taken."""
        if not self.spikes:
            return False
        losses = torch.stack(self._losses).mean(0)
        self._losses.clear()
        losses = ranks.sum_of_all(losses) / ranks.count()  # each process has a loss of its own
        names = [name for name, _ in self.named_trainees()]
        pairs = zip(losses.tolist(), norms, strict=True)
        self._measured = dict(zip(names, pairs, strict=True))
        if not all(math.isfinite(loss) for loss, _ in self._measured.values()):
            return True
        return any(self._policy(n).is_spike(*self._measured[n], self._stage) for n in names)

    def _policy(self, name: str) -> Spikes:
        return self.spikes[name]  # type: ignore[return-value]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Lightning would keep gradients through the next forward pass, when memory is needed for others.
        self.gradients.drop()
        if self._accepted:
            self.gradients.restore()
        for _, trainee in self.named_trainees():
            trainee.after_step(self._accepted)
        self._losses.clear()
        if self._accepted:
            self.refused_in_a_row.zero_()
            for name, loss_and_norm in self._measured.items():
                self._policy(name).accept(*loss_and_norm, self._stage)
            return
        self.refused += 1
        self.refused_in_a_row += 1
        if self.refused_in_a_row >= self.max_refused:
            raise ValueError(self._why_refused())

    def _why_refused(self) -> str:
        """One sentence on the steps that were refused in a row."""
        broken = [name for name, p in self.named_parameters() if not p.isfinite().all()]
        if broken:
            names = ", ".join(name.removeprefix("trainees.").partition(".")[2] for name in broken)
            return (
                f"{names}: not finite, so {int(self.refused_in_a_row)} steps in a row were refused, up "
                f"to step {self.trainer.global_step}; go on from a checkpoint of before"
            )
        refused = "not finite or a spike (spike_sigma)" if self.spikes else "not finite"
        return (
            f"{int(self.refused_in_a_row)} steps in a row had a loss or gradient that is {refused}, "
            f"up to step {self.trainer.global_step}; the parameters are those of the last "
            "good step. A smaller optim.lr is the usual cure"
        )

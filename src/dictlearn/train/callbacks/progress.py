"""The progress bar: where a run is and how well it goes, on one line."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any, final

from dictlearn_kernels import dispatch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dictlearn import escape
from dictlearn.ranges import NonNegative
from dictlearn.sources.shared import Tap
from dictlearn.waiting import duration, waiting_for


@final
class TrainingBar(Callback):
    """tokens/s, FVU, L0, dead fraction and time left; plain lines where there is no terminal.

    The figures are those of the latest logged step, so that drawing costs nothing; the speed is the
    average since the first step, which compiles. Without a terminal a line is written every
    `line_seconds` seconds. With `kernels` it prints once, after the first step, which implementation
    of every kernel has run, and which kernels had no fast one. Of runs that share a stream one writes
    such lines, also in a terminal, and names itself.
    """

    def __init__(self, line_seconds: NonNegative = 30.0, kernels: bool = False):
        self.line_seconds, self.kernels = line_seconds, kernels
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._wrote = 0.0
        self._first: tuple[int, float] | None = None  # (steps done, when) after the first step
        self._waiting = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wrote = time.monotonic()
        if not trainer.is_global_zero:
            return
        if (tap := _shared(trainer)) is not None and not tap.speaks:
            return
        if not self.console.is_terminal or tap is not None:
            self._waiting.enter_context(
                waiting_for("the first step; a machine compiles its kernels once")
            )
            return
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TextColumn("{task.fields[left]}"),
            console=self.console,
        )
        self._task = self._bar.add_task(
            "", total=trainer.max_steps, completed=trainer.global_step, left=""
        )
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        step, now = trainer.global_step, time.monotonic()
        if self._first is None and step > 0:
            self._first = (step, now)
            self._waiting.close()
            for line in dispatch.lines() if self.kernels else []:
                self.console.print(f"kernels  {line}", highlight=False, soft_wrap=True)
        metrics: dict[str, float] = pl_module.metrics  # type: ignore[assignment]
        speed = self._steps_per_second(step, now)
        text = _figures(metrics, speed)
        left = "" if speed is None else f"{duration((trainer.max_steps - step) / speed)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text, left=left)
        elif now - self._wrote > self.line_seconds:
            self._wrote, tap = now, _shared(trainer)
            if tap is not None and not tap.speaks:
                return
            whose = f"{trainer.default_root_dir} and {tap.others} more: " if tap is not None else ""
            line = "  ".join(part for part in (text, left) if part)
            self.console.print(
                f"{escape.terminal(whose)}step {step}/{trainer.max_steps}  {line}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )

    def _steps_per_second(self, step: int, now: float) -> float | None:
        """The average speed since the first step; None before the second step."""
        if self._first is None or step <= self._first[0] or now <= self._first[1]:
            return None
        return (step - self._first[0]) / (now - self._first[1])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._waiting.close()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        sys.stderr.flush()


def _shared(trainer: Trainer) -> Tap | None:
    """The run's view of a stream that it shares with others."""
    source = getattr(getattr(trainer, "train_dataloader", None), "source", None)
    return source if isinstance(source, Tap) else None


def _figures(metrics: dict[str, float], steps_per_second: float | None) -> str:
    """Speed, FVU, L0 and dead fraction; of several dictionaries, those of the first."""
    formats = {"fvu": "FVU {:.4f}", "l0": "L0 {:.1f} per token", "dead": "dead {:.1%}"}
    parts = []
    if steps_per_second is not None and metrics.get("step"):
        tokens = metrics["tokens"] / metrics["step"]
        parts.append(f"{steps_per_second * tokens:,.0f} tokens/s")
    for key, form in formats.items():
        value = next((v for name, v in metrics.items() if name.split("/")[-1] == key), None)
        if value is not None:
            parts.append(form.format(value))
    return "  ".join(parts)

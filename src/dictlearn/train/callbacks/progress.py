"""The progress bar: where a run is and how well it goes, on one line."""

from __future__ import annotations

import sys
import time
from typing import Any, final

from dictlearn_kernels import dispatch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dictlearn.ranges import NonNegative


@final
class TrainingBar(Callback):
    """tokens/s, FVU, L0, dead fraction and time left; plain lines where there is no terminal.

    The figures are those of the latest logged step, so that drawing costs nothing. Without a
    terminal a line is written every `line_seconds` seconds. After the first step it says, once,
    which implementation every kernel has run as, and which had no fast one.
    """

    def __init__(self, line_seconds: NonNegative = 30.0):
        self.line_seconds = line_seconds
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._wrote = 0.0
        self._told = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wrote = time.monotonic()
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        if not self._told:
            self._told = True
            for line in dispatch.lines():
                self.console.print(f"kernels  {line}", highlight=False, soft_wrap=True)
        text = _figures(pl_module.metrics)  # type: ignore[arg-type]
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, description=text)
        elif time.monotonic() - self._wrote > self.line_seconds:
            self._wrote = time.monotonic()
            self.console.print(f"step {trainer.global_step}/{trainer.max_steps}  {text}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        sys.stderr.flush()


def _figures(metrics: dict[str, float]) -> str:
    """The few that say how a run goes, of the first dictionary where there are several."""
    formats = {
        "tokens_per_second": "{:,.0f} tokens/s",
        "fvu": "FVU {:.4f}",
        "l0": "L0 {:.1f} per token",
        "dead": "dead {:.1%}",
    }
    found = []
    for key, form in formats.items():
        value = next((v for name, v in metrics.items() if name.split("/")[-1] == key), None)
        if value is not None:
            found.append(form.format(value))
    return "  ".join(found)

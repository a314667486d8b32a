"""SIGTERM, Ctrl-C and a cluster's warning: finish the optimiser step, save, leave."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from dictlearn import escape, stopping
from dictlearn.sparsity import ranks
from dictlearn.train.callbacks.agreed import Agreed

_SIGNALS = (signal.SIGTERM, signal.SIGINT, *stopping.WARNINGS)
_asked: int | None = None  # the signal that asks all runs of this process to stop


class Interrupted(SystemExit):
    """Comes out of `trainer.fit` after a signal, once the checkpoint is on the disk.

    Its `code` is the shell's for that signal, such as 143 for SIGTERM and 130 for SIGINT. A program that
    doesn't catch the exception exits with this code.
    """

    def __init__(self, signum: int):
        super().__init__(128 + signum)
        self.signal = signal.Signals(signum)


@final
class SignalsCallback(Callback):
    """The first signal stops the run after its step; the second ends the process at once.

    The handler only sets a flag, so a signal may come at any time, also during a save. A second
    one ends the process wherever it is: checkpoints are safe, since they are whole or absent.

    SIGUSR1 and SIGUSR2 are what schedulers send some time before they end a job; they are noted from
    the program's first line on. Under Slurm, with `requeue`, such a job is then put back into the
    queue; started again it continues (`resume=auto` is the default of a restarted job).

    Lightning's own handlers are replaced while training lasts: its SIGTERM stops between
    accumulated batches, its SIGUSR1 saves inside of a step, and its Ctrl-C ends with exit code 1 and
    saves nothing.
    """

    def __init__(self, requeue: bool = True) -> None:
        self.requeue = requeue
        self.received: int | None = None
        self._agreed = Agreed()  # the scheduler may have told only one of the processes
        self._outside: dict[int, Any] = {}  # the handlers from before trainer.fit
        self._seen_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._outside = {signum: signal.getsignal(signum) for signum in _SIGNALS}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step = trainer.global_step
        for signum in self._outside:
            signal.signal(signum, self._note)
        self.received = stopping.warned()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        self._agreed.ask(self.received or asked() or 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen_step:  # gradients are still being accumulated
            return
        self._seen_step = trainer.global_step
        by_all = self._agreed.told()
        # One that comes now to one of several processes is for the next step.
        if number := by_all if ranks.several() else self.received or asked():
            self.received = number
            trainer.should_stop = True  # the checkpoint callback, which runs later, saves for it

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()  # only now: a signal may come during the last save too
        # Too late for a step, and only another process than the first has heard it: it changes nothing.
        if self.received is not None and (trainer.should_stop or trainer.is_global_zero):
            if self.requeue and self.received in stopping.WARNINGS and trainer.is_global_zero:
                _requeue()
            raise Interrupted(self.received)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore_handlers()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = _noted(signum, self.received)

    def _restore_handlers(self) -> None:
        for signum, handler in self._outside.items():
            signal.signal(signum, handler)
        self._outside = {}


def _requeue() -> None:
    """Puts the Slurm job, if this is one, back into the queue."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        escape.say(f"scontrol requeue {job}: {error}; resume=auto continues the run")
    else:
        escape.say(f"job {job} is in the queue again")


def asked() -> int | None:
    """The signal that has come for all runs of this process, if any."""
    return _asked


@contextmanager
def asking_all() -> Iterator[None]:
    """Signals ask all runs of this process, each in a thread of its own, to save and stop."""

    def note(signum: int, frame: FrameType | None) -> None:
        global _asked
        _asked = _noted(signum, _asked)

    global _asked
    here = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    before = {signum: signal.signal(signum, note) for signum in (_SIGNALS if here else ())}
    try:
        yield
    finally:
        _asked = None
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _noted(signum: int, before: int | None) -> int:
    """The first signal, with a word; a second one ends the process."""
    if before is not None:
        os._exit(128 + signum)
    name = signal.Signals(signum).name
    text = f"\n{name}: saving after this step, then exit; once more to exit at once\n"
    os.write(2, text.encode())  # printing may not be interrupted by printing
    return signum

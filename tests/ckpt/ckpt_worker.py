"""A small run that draws from every generator, and the processes that the fault tests kill.

Imported by name, also in the processes it starts: conftest.py puts this folder on sys.path.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from dictlearn import cli
from dictlearn.ckpt import checkpoint_io, commit
from dictlearn.ckpt.checkpoint_io import DictlearnCheckpointIO
from dictlearn.ckpt.codec import leaves, path_text, read_state
from dictlearn.ckpt.lock import run_lock, writing
from dictlearn.ckpt.resume import resolve_resume
from dictlearn.train.callbacks.checkpoint import CheckpointCallback
from dictlearn.train.callbacks.peers import Peers
from dictlearn.train.callbacks.signals import SignalsCallback

torch.set_num_threads(1)


class Loader:
    """Batches as a function of (epoch, position); logs the id of each that it hands out."""

    def __init__(self, log: Path, length: int = 5):
        self.log, self.length = log, length
        self.epoch = self.position = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Tensor]:
        if self.position == self.length:
            self.epoch, self.position = self.epoch + 1, 0
        while self.position < self.length:
            key = 1000 * self.epoch + self.position
            self.position += 1
            with open(self.log, "a") as file:
                file.write(f"{key}\n")
            yield torch.randn(8, 4, generator=torch.Generator().manual_seed(key))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class Module(LightningModule):
    """Noise from python, numpy and torch in every step; a counter that feeds back into the loss."""

    def __init__(self, on_step: Callable[[int], None] = lambda step: None):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.on_step = on_step

    def training_step(self, batch: Tensor) -> Tensor:
        self.on_step(self.global_step)
        self.seen += len(batch)
        noise = random.gauss(0, 1) + np.random.randn() + torch.randn(batch.shape)
        return (self.layer(batch + 0.1 * noise) - batch).pow(2).mean() * (1 + 1e-3 * self.seen)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def train(
    run: Path,
    steps: int,
    *,
    accumulate: int = 1,
    resume: str | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    on_load: Callable[[dict], dict] | None = None,
    callbacks: tuple[Callback, ...] = (),
    ranks: int = 1,
    **checkpoint: Any,
) -> Trainer:
    """`steps` optimiser steps in the run folder `run`, from `resume` if there is one."""
    run.mkdir(parents=True, exist_ok=True)
    module = Module(on_step)
    random.seed(2)
    np.random.seed(3)
    torch.manual_seed(4 + int(os.environ.get("LOCAL_RANK", 0)))
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    checkpoint = {"every_steps": None, **checkpoint}
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run,
        plugins=[DictlearnCheckpointIO({"steps": steps}, on_load)],
        callbacks=[
            *callbacks,
            SignalsCallback(),
            CheckpointCallback(run / "checkpoints", **checkpoint),
        ],
    )
    folder = resolve_resume(resume, run).folder
    trainer.fit(module, Loader(run / "batches.txt"), ckpt_path=str(folder) if folder else None)
    return trainer


def run_and_wait(run: Path, wait_at: int, seconds: float, steps: int, **options: Any) -> None:
    """Trains; within step `wait_at` makes the file `inside` and sleeps."""

    def on_step(step: int) -> None:
        if step == wait_at and not (run / "inside").exists():
            (run / "inside").touch()
            _sleep(seconds)

    train(run, steps, on_step=on_step, **options)


def run_rank(
    rank: int, port: int, run: Path, *arguments: Any, environment: Any = (), **options: Any
) -> None:
    """One of two processes that train together; only the first can find its disk full."""
    os.environ.update(environment)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    # Left by a run in the process of the tests; Lightning would give every rank this seed.
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ.update(WORLD_SIZE="2", NODE_RANK="0")
    full_at = options.pop("full_at", None)
    if full_at is not None and rank == 0:
        fail_saves(full_at)
    run_and_wait(run, *arguments, ranks=2, **options)


def run_watched(rank: int, port: int, run: Path, fault: str, faulty: int, stuck: bool) -> None:
    """One of two processes; in step 2 something happens to the process `faulty`.

    If `stuck`, the other one waits as for a reduction that never comes.
    """
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    errors = os.open(run / f"errors.{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(errors, 2)
    cli.hush_lightning()

    def on_step(step: int) -> None:
        if step == 2 and rank == faulty:
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("source: a file is gone") if fault == "mistake" else KeyError("a bug")
        if step == 2 and stuck:
            _sleep(60)

    peers = Peers()
    with cli._one_sentence(), peers.guarding():
        train(run, 4, on_step=on_step, ranks=2, callbacks=(peers,))


def fail_saves(step: int) -> None:
    write_state = checkpoint_io.write_state

    def write(folder: Path, state: dict) -> None:
        write_state(folder, state)
        if folder.name.startswith(f"step-{step}."):
            raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint_io.write_state = write


def run_with_slow_save(run: Path, slow_from: int, seconds: float, steps: int) -> None:
    """Trains; saving `slow_from` makes the file `inside` and sleeps before its first fsync."""
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        saving = list((run / "checkpoints").glob(f"step-{slow_from}.tmp-*"))
        if saving and not (run / "inside").exists():
            (run / "inside").touch()
            _sleep(seconds)
        fsync(descriptor)

    os.fsync = slow
    train(run, steps, every_steps=2)


def save_forever(checkpoints: Path, seed: int, done: Path) -> None:
    """Commits step after step with pauses around every system call that matters."""
    pause = random.Random(seed)
    for name in ("fsync", "rename", "replace"):
        _wrap(name, lambda: time.sleep(pause.random() * 2e-3))
    for step in range(1, 1000):
        save_step(checkpoints, step)
        done.write_text(str(step))


def save_and_die(checkpoints: Path, step: int, at: int) -> None:
    """Commits `step`, dying just before its `at`-th system call; exits 0 when it had fewer."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            os._exit(9)

    for name in ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink"):
        _wrap(name, count)
    save_step(checkpoints, step)


def save_step(checkpoints: Path, step: int) -> None:
    """Two files whose content is `step`; LATEST moved, old ones pruned."""

    def write(folder: Path) -> None:
        (folder / "a").write_text(f"{step}" * 1000)
        (folder / "b").write_text(f"{step}" * 1000)

    commit.commit(checkpoints / f"step-{step}", write, latest=True, sort="a test")
    commit.prune(checkpoints, keep=2)


def hold_lock(run: Path, ready: Path) -> None:
    with run_lock(run):
        ready.touch()
        _sleep(60)


def hold_writing(place: Path, ready: Path, seconds: float = 60) -> None:
    with writing(place, "features"):
        ready.touch()
        _sleep(seconds)


def hold_lock_and_fork(folder: Path) -> None:
    """As a data loader's worker would be forked; writes its pid into `ready`."""
    with run_lock(folder / "run"):
        worker = os.fork()
        if worker == 0:
            _sleep(60)
            os._exit(0)
        (folder / "pid").write_text(str(worker))
        (folder / "pid").rename(folder / "ready")
        _sleep(60)


def _wrap(name: str, before: Callable[[], None]) -> None:
    original = getattr(os, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        before()
        return original(*arguments, **options)

    setattr(os, name, wrapped)


def _sleep(seconds: float) -> None:
    """Sleeps the whole time, whatever signals come."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(left)


def final_state(run: Path, step: int) -> dict[str, Any]:
    return read_state(run / "checkpoints" / f"step-{step}")


def differing(first: Any, second: Any) -> list[str]:
    """The paths at which two states differ, in value, type or structure."""
    old, new = (
        {path: _comparable(leaf) for path, leaf in leaves(state)} for state in (first, second)
    )
    return [path_text(path) for path in {**old, **new} if old.get(path) != new.get(path)]


def _comparable(leaf: Any) -> tuple:
    if isinstance(leaf, Tensor):
        raw = leaf.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return ("tensor", leaf.dtype, leaf.shape, raw)
    if isinstance(leaf, np.ndarray):
        return ("array", leaf.dtype, leaf.shape, leaf.tobytes())
    return (type(leaf), repr(leaf))


def corrupt(state: Any, path: tuple) -> Any:
    """`state` with another value of the same type at `path`."""
    if not path:
        return _other(state)
    changed = corrupt(state[path[0]], path[1:])
    if isinstance(state, dict):
        return {**state, path[0]: changed}
    replaced = [changed if index == path[0] else item for index, item in enumerate(state)]
    return type(state)(replaced)


def _other(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        if leaf.dtype == torch.bool:
            return ~leaf
        return leaf + (1.0 if leaf.is_floating_point() else 1000)
    if isinstance(leaf, np.ndarray):
        return leaf + np.ones((), leaf.dtype)
    if isinstance(leaf, bool):
        return not leaf
    if isinstance(leaf, int | float):
        return leaf + 1
    if isinstance(leaf, str):
        return leaf + "?"
    return 1.5 if leaf is None else leaf

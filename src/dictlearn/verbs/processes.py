"""How many processes train together, and how Lightning joins them."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from omegaconf import DictConfig

from dictlearn.train.module import DictionaryTraining


def count(cfg: DictConfig) -> int:
    """The training processes on all machines, each of which reads `batch_tokens` a batch.

    Raises:
        ValueError: for a number that is none.
    """
    return on_this_machine(cfg) * cfg.trainer.get("num_nodes", 1)


def on_this_machine(cfg: DictConfig) -> int:
    """The same on one machine, from any of Lightning's forms: 8, "auto", -1, [0, 1], "0,1"."""
    wanted = cfg.trainer.devices
    if not isinstance(wanted, int | str):
        return len(wanted)
    if str(wanted) in ("auto", "-1"):
        return max(1, torch.cuda.device_count()) if cfg.trainer.accelerator != "cpu" else 1
    if "," in str(wanted):
        return len([index for index in str(wanted).split(",") if index.strip()])
    if not str(wanted).isdigit() or int(wanted) < 1:
        raise ValueError(f"trainer.devices={wanted}: want a number of at least 1, or auto")
    return int(wanted)


def check(cfg: DictConfig) -> None:
    """Raises ValueError for numbers of processes that can't be."""
    n = count(cfg)
    if n > 1 and str(cfg.trainer.precision) == "16-mixed":
        raise ValueError(
            f"trainer.precision=16-mixed: scales losses, which {n} processes would each do on their "
            "own; want bf16-mixed or 32-true"
        )


def strategy(cfg: DictConfig, training: DictionaryTraining) -> Strategy | str:
    """What Lightning's Trainer takes: DDP where there are several processes."""
    if count(cfg) == 1 and cfg.trainer.get("strategy", "auto") == "auto":
        return "auto"
    # A term that replaces only some of a CLT's targets leaves the others' rows without a gradient.
    partial = any(trainee.objective.reads_windows for _, trainee in training.named_trainees())
    # Counters are the same in all processes already, so there is nothing to send before each batch.
    return DDPStrategy(broadcast_buffers=False, find_unused_parameters=partial)


def plugins() -> list[Any]:
    """Slurm without Lightning's requeueing, which saves in the middle of a step."""
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    return []

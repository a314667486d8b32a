"""The values that keys of libraries' classes take here: their own signatures are too wide.

dictlearn.signatures reads this file; nothing imports it. A key that is not here, such as
`+trainer.max_time=...`, is left to the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from dictlearn.ranges import Count


class Trainer:
    """lightning.pytorch.Trainer."""

    accelerator: Literal["auto", "cpu", "cuda", "gpu"]
    devices: int | str | Sequence[int]
    precision: Annotated[Literal["32-true", "bf16-mixed", "16-mixed"], "weights stay float32"]
    log_every_n_steps: Count
    accumulate_grad_batches: Count
    num_nodes: Count
    strategy: Literal["auto", "ddp"]
    profiler: str | None


class WandbLogger:
    """lightning.pytorch.loggers.WandbLogger, which hands its further keywords to wandb.init."""

    project: str
    name: str
    save_dir: str
    offline: bool
    group: str | None
    tags: Sequence[str]
    log_model: bool | Literal["all"]

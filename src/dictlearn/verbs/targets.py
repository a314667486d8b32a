"""`dictlearn targets`: a teacher's distributions over the training text, stored for teacher=stored."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hydra.utils import instantiate
from omegaconf import DictConfig

from dictlearn import escape
from dictlearn.ckpt import lock
from dictlearn.ckpt.commit import commit
from dictlearn.commands import typed
from dictlearn.disk.replace import check_replaceable
from dictlearn.ranges import Count, Natural, Positive, Seed
from dictlearn.store.targets import store_targets
from dictlearn.verbs import build

OPTIONS = ("head", "samples", "temperature", "dtype", "shard_windows", "batch_windows", "seed")
SORT = "stored targets"


class Keys:
    """Declares the values that the keys of conf/targets.yaml take."""

    output: str
    head: Natural
    samples: Natural
    temperature: Positive
    dtype: Literal["float16", "float32"]
    shard_windows: Count
    batch_windows: Count
    seed: Seed
    overwrite: bool


def main(cfg: DictConfig) -> int:
    output = Path(cfg.output)
    check_replaceable(output, SORT, cfg.overwrite)
    with lock.writing(output, "targets"):
        windows = build.build_windows(cfg, build.build_skeleton(cfg), "train")
        lm = instantiate(cfg.model)
        written = 0

        def write(temporary: Path) -> None:
            nonlocal written
            written = store_targets(lm, windows, temporary, **{key: cfg[key] for key in OPTIONS})

        commit(output, write, sort=SORT, overwrite=cfg.overwrite)
    tokens, folder = len(windows) * windows.context, {"teacher.folder": str(cfg.output)}
    escape.say(
        f"{cfg.output}: targets of {tokens:,} tokens, {written / 1e9:.2f} GB, "
        f"{written / tokens:.0f} bytes each; teacher=stored {typed(**folder)} reads them"
    )
    return 0

"""`dictlearn targets`: a teacher's distributions over the training text, stored for teacher=stored."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hydra.utils import instantiate
from omegaconf import DictConfig

from dictlearn import escape
from dictlearn.objectives.stored_teacher import store_targets
from dictlearn.ranges import Count, Natural, Positive, Seed
from dictlearn.verbs import build

OPTIONS = ("head", "samples", "temperature", "dtype", "shard_windows", "batch_windows", "seed")


class Keys:
    """What the keys of conf/targets.yaml take."""

    output: str
    head: Natural
    samples: Natural
    temperature: Positive
    dtype: Literal["float16", "float32"]
    shard_windows: Count
    batch_windows: Count
    seed: Seed


def main(cfg: DictConfig) -> int:
    lm = instantiate(cfg.model)
    windows = build.build_windows(cfg, lm, "train")
    written = store_targets(lm, windows, Path(cfg.output), **{key: cfg[key] for key in OPTIONS})
    tokens = len(windows) * windows.context
    escape.say(
        f"{cfg.output}: targets of {tokens:,} tokens, {written / 1e9:.2f} GB, "
        f"{written / tokens:.0f} bytes each; teacher=stored teacher.folder={cfg.output} reads them"
    )
    return 0

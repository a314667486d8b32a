"""`dictlearn targets`: a teacher's distributions over the training text, stored for teacher=stored."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from dictlearn.objectives.stored_teacher import store_targets
from dictlearn.verbs import build

OPTIONS = ("head", "samples", "temperature", "dtype", "shard_windows", "batch_windows", "seed")


def main(cfg: DictConfig) -> int:
    lm = instantiate(cfg.model)
    windows = build.build_windows(cfg, lm, "train")
    written = store_targets(lm, windows, Path(cfg.output), **{key: cfg[key] for key in OPTIONS})
    tokens = len(windows) * windows.context
    sys.stderr.write(
        f"{cfg.output}: targets of {tokens:,} tokens, {written / 1e9:.2f} GB, "
        f"{written / tokens:.0f} bytes each; teacher=stored teacher.folder={cfg.output} reads them\n"
    )
    return 0

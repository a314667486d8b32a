"""`dictlearn report`: a run's page, from the files in its folder; nothing is computed."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dictlearn import escape
from dictlearn.ckpt import lock
from dictlearn.evals.report import write_report


class Keys:
    """Declares the values that the keys of conf/report.yaml take."""

    run: str | None


def main(cfg: DictConfig) -> int:
    if cfg.run is None:
        raise ValueError("nothing to report on; want run=<a run's folder>")
    with lock.writing(Path(cfg.run) / "report.html", "report"):
        escape.say(f"The report: {write_report(Path(cfg.run))}")
    return 0

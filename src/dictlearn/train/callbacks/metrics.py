"""metrics.jsonl and metrics.csv: the run's own record of itself, whatever else listens."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from pathlib import Path
from typing import Any, final

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


@final
class RunLogger(Logger):
    """One JSON object a logged step in `folder`/metrics.jsonl, and the same rows in metrics.csv.

    A resumed run drops the rows past the step that it resumes from, so that the file tells of one
    run, as if it had never stopped. A half-written last line (a crash) is dropped too.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self.folder = Path(folder)
        self._rows: list[dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """The configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._rows is None:
            self._rows = self._rows_before(step or 0)
        row = {key: value for key, value in metrics.items() if key != "epoch"}
        row = {"step": int(row.pop("step", step or 0)), **row}
        self._rows.append(row)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    @rank_zero_only
    def save(self) -> None:
        """Writes the table again from the rows; called after each checkpoint and at the end."""
        if not self._rows:
            return
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        partial = self.folder / "metrics.csv.partial"
        with partial.open("w", newline="") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(self._rows)
        partial.replace(self.folder / "metrics.csv")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _rows_before(self, step: int) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        rows = []
        if path.exists():
            for line in path.read_text().splitlines(keepends=True):
                if not line.endswith("\n"):
                    break
                row = json.loads(line)
                if row["step"] < step:
                    rows.append(row)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "metrics.jsonl.partial"
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(path)
        return rows

"""metrics.jsonl and metrics.csv: the run's own record, independent of other loggers."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from pathlib import Path
from typing import Any, final

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dictlearn.disk.folders import ensure_folder
from dictlearn.disk.whole import replacing

GROWTH = 1.05  # the table is written again when the record is longer by this factor


@final
class RunLogger(Logger):
    """One JSON object a logged step in `folder`/metrics.jsonl, and the same rows in metrics.csv.

    A resumed run drops the rows past the step that it resumes from, so that the file is that of a
    run that never stopped. A half-written last line (a crash, a full disk) is dropped too.
    Rows that could not be written are kept and tried again with the next row.

    Raises:
        OSError: from log_metrics, save and finalize, when the disk refuses.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self.folder = Path(folder)
        self._rows: list[dict[str, Any]] | None = None
        self._written = 0  # rows in metrics.jsonl
        self._size = 0  # their bytes there
        self._in_table = 0  # rows in metrics.csv

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @property
    def unwritten(self) -> int:
        """The number of rows that are not in metrics.jsonl yet."""
        return len(self._rows or []) - self._written

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
        if row in self._rows[-1:]:
            return  # Lightning logs the latest row again where a run is stopped between two
        self._rows.append(row)
        self._write()

    @rank_zero_only
    def save(self) -> None:
        """Writes the table again if it is too old; called with each row."""
        if len(self._rows or []) >= GROWTH * self._in_table:
            self._write_table()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.unwritten:
            self._write()
        self._write_table()

    def _write(self) -> None:
        """Appends the rows that are not in the file yet, after its last whole line."""
        assert self._rows is not None
        path = self.folder / "metrics.jsonl"
        if not path.exists():  # somebody has moved the folder
            self._written = self._size = 0
            with ensure_folder(self.folder):
                path.touch()
        lines = "".join(json.dumps(row) + "\n" for row in self._rows[self._written :]).encode()
        with path.open("r+b") as file:
            file.truncate(self._size)
            file.seek(self._size)
            file.write(lines)
        self._written, self._size = len(self._rows), self._size + len(lines)

    def _write_table(self) -> None:
        if not self._rows or len(self._rows) == self._in_table:
            return
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        with (
            replacing(self.folder / "metrics.csv") as partial,
            partial.open("w", newline="") as file,
        ):
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(self._rows)
        self._in_table = len(self._rows)

    def _rows_before(self, step: int) -> list[dict[str, Any]]:
        """The rows of earlier steps, which are the file's first; the next write drops the others."""
        path, rows = self.folder / "metrics.jsonl", []
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                earlier = row["step"] < step
            except (ValueError, KeyError, TypeError, RecursionError):
                break  # not a line that we wrote: the record goes on from the readable ones
            if not earlier:
                break
            rows.append(row)
            self._written, self._size = len(rows), self._size + len(line)
        return rows

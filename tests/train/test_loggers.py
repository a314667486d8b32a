"""A logger that fails, or a disk that is full, costs rows of the record and nothing else."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from dictlearn.train.callbacks import metrics
from dictlearn.train.callbacks.metrics import RunLogger
from dictlearn.train.loggers import Guarded, guarded, wandb_logger


class Fragile(Logger):
    """Raises whenever it is told to."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken
        self.config: dict[str, Any] = {}
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "fragile"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        self._fail()
        assert isinstance(params, dict)
        self.config = params

    def log_metrics(self, metrics, step=None) -> None:
        self._fail()
        self.rows.append((step, metrics))

    def save(self) -> None:
        self._fail()

    def finalize(self, status: str) -> None:
        self._fail()

    def _fail(self) -> None:
        if self.broken:
            raise RuntimeError("the server fell over\nTraceback: ...")


def test_a_failure_is_said_once_counted_and_tried_again(capsys):
    inner = Fragile()
    with guarded({"far": inner}, {"steps": 5}) as (one,):
        assert inner.config == {"steps": 5}
        for step in range(6):
            inner.broken = step in (2, 3)
            one.log_metrics({"loss": 1.0}, step)
            one.save()
        inner.broken = True
        one.finalize("success")
    said = capsys.readouterr().err.splitlines()
    assert [step for step, _ in inner.rows] == [0, 1, 4, 5]
    assert said == [
        "logger.far: the server fell over; training goes on, and it is tried again",
        "logger.far: 2 rows of metrics could not be written; the server fell over",
    ]


def test_a_logger_that_cannot_start_is_one_sentence():
    sentence = r"^logger.far: cannot start: the server fell over; ~logger.far trains without it$"
    with pytest.raises(ValueError, match=sentence), guarded({"far": Fragile(broken=True)}, {}):
        pytest.fail("work has begun")


def test_final_figures_have_names_of_their_own(tmp_path):
    inner, own = Fragile(), RunLogger(tmp_path)
    for one in (Guarded("logger.far", inner), Guarded("logger.run", own)):
        one.finish({"fvu": 0.25, "kl": None}, 40, tmp_path)
    assert inner.rows == [(40, {"held_out/fvu": 0.25})]
    assert not list(tmp_path.iterdir())  # figures.json has them


class FullDisk:
    """Opens files that take `room` more bytes and then no more, as a full disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.room: int | None = None
        real = Path.open

        def open_(path: Path, mode: str = "r", **options: Any) -> Any:
            file = real(path, mode, **options)
            return file if self.room is None or mode == "rb" else _Full(file, self.room, path)

        monkeypatch.setattr(metrics.Path, "open", open_)


class _Full:
    def __init__(self, file: Any, room: int, path: Path):
        self.file, self.room, self.path = file, room, path

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> None:
        self.file.write(data[: self.room])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


def rows(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def test_rows_that_a_full_disk_refuses_are_written_when_it_has_room(tmp_path, monkeypatch, capsys):
    disk = FullDisk(monkeypatch)
    with guarded({"run": RunLogger(tmp_path)}, {}) as (one,):
        for step in range(1, 9):
            disk.room = 7 if 3 <= step <= 5 else None  # a row is half written
            one.log_metrics({"loss": 1.0 / step}, step)
            one.save()
            assert rows(tmp_path) == list(range(1, 3 if disk.room else step + 1))
        one.finalize("success")
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "metrics.jsonl"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "No space left on device" in said[0] and "metrics" in said[0]


def test_what_stays_unwritten_is_counted_at_the_end(tmp_path, monkeypatch, capsys):
    disk = FullDisk(monkeypatch)
    with guarded({"run": RunLogger(tmp_path)}, {}) as (one,):
        for step in range(1, 6):
            disk.room = 0 if step > 2 else None
            one.log_metrics({"loss": 1.0}, step)
        one.finalize("success")
    assert "logger.run: 3 rows of metrics could not be written" in capsys.readouterr().err
    assert rows(tmp_path) == [1, 2]


def test_a_resumed_run_goes_on_from_its_step_whatever_comes_after(tmp_path):
    first = RunLogger(tmp_path)
    for step in range(1, 6):
        first.log_metrics({"loss": 1.0, "step": float(step)}, step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    second = RunLogger(tmp_path)
    second.log_metrics({"loss": 2.0, "step": 4.0}, 4)
    assert rows(tmp_path) == [1, 2, 3, 4]
    second.finalize("success")
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == [
        "1,1.0",
        "2,1.0",
        "3,1.0",
        "4,2.0",
    ]


class Run:
    """Stands in for a run of W&B."""

    id = "r1"

    def __init__(self) -> None:
        self.config, self.logged, self.artifacts, self.exit_code = {}, [], [], None
        self.config = _Config()

    def log(self, row: dict[str, Any]) -> None:
        self.logged.append(row)

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class _Config(dict):
    def update(self, values: Any, allow_val_change: bool = False) -> None:
        super().update(values)


@pytest.mark.parametrize("uploads", [False, True])
def test_wandb_gets_configuration_figures_and_on_request_the_dictionary(tmp_path, uploads):
    inner, run = wandb_logger(save_dir=str(tmp_path / "w")), Run()
    inner._experiment = run  # type: ignore[assignment]
    saved = tmp_path / "dictionary"
    saved.mkdir()
    (saved / "dictionary.json").write_text("{}")
    (saved / "dictionary.safetensors").write_bytes(b"tensors")
    config = {"steps": 9, "logger": {"wandb": {"log_dictionary": uploads}}}
    with guarded({"wandb": inner}, config) as (one,):
        one.log_metrics({"fvu": 0.5}, 9)
        one.finish({"fvu": 0.4, "kl": None}, 9, saved)
    assert run.config == config
    assert run.logged[-1] == {"held_out/fvu": 0.4, "trainer/global_step": 9}  # W&B's summary
    files = [sorted(a.manifest.entries) for a in run.artifacts]
    assert files == ([["dictionary.json", "dictionary.safetensors"]] if uploads else [])
    assert run.exit_code == 0


def test_the_next_run_of_a_process_has_a_record_of_its_own():
    inner, run = wandb_logger(), Run()
    inner._experiment = run  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt), guarded({"wandb": inner}, {}):
        raise KeyboardInterrupt
    assert run.exit_code == 1

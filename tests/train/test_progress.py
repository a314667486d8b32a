"""What is said while a run goes on."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from dictlearn.sources.shared import SharedStream
from dictlearn.train.callbacks import progress
from dictlearn.train.callbacks.progress import TrainingBar
from dictlearn.waiting import duration, waiting_for


def test_durations_are_short() -> None:
    said = [duration(seconds) for seconds in (0.4, 4, 89, 95, 5400, 7500, 200_000)]
    assert said == ["under a second", "4 s", "89 s", "2 min", "1 h 30 min", "2 h 05 min", "2 d 7 h"]


def test_plain_lines_show_the_average_speed_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step of 100 tokens takes a second, the first one a minute; the logged speed is another."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = TrainingBar(line_seconds=30)
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=0, max_steps=100)
    module: Any = SimpleNamespace(metrics={})
    bar.on_train_start(trainer, module)
    for step in range(1, 42):
        clock[0] += 60 if step == 1 else 1
        trainer.global_step = step
        module.metrics = {
            "step": step,
            "tokens": 100.0 * step,
            "tokens_per_second": 7.0,
            "fvu": 0.5,
        }
        bar.on_train_batch_end(trainer, module, None, None, step)
    bar.on_train_end(trainer, module)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 1/100")
    assert lines[1] == "step 32/100  100 tokens/s  FVU 0.5000  68 s left"


def test_one_of_the_runs_that_share_a_stream_speaks_for_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream: Any = SharedStream(lambda sites: None, lambda ready: None)  # type: ignore[arg-type,return-value]
    for name, tap in {name: stream.join(("x",), ("x",), 0) for name in "ab"}.items():
        loader = SimpleNamespace(source=tap)
        trainer: Any = SimpleNamespace(
            is_global_zero=True, global_step=0, max_steps=9, train_dataloader=loader
        )
        trainer.default_root_dir = f"runs/{name}"
        module: Any = SimpleNamespace(metrics={})
        bar = TrainingBar(line_seconds=30)
        bar.on_train_start(trainer, module)
        clock[0] += 60
        trainer.global_step = 1
        bar.on_train_batch_end(trainer, module, None, None, 0)
        bar.on_train_end(trainer, module)
    assert capsys.readouterr().err == "runs/a and 1 more: step 1/9  \n"


def test_kernels_are_listed_on_request_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.dispatch, "lines", lambda: ["bag: triton"])
    for asked in (False, True):
        bar = TrainingBar(kernels=asked)
        trainer: Any = SimpleNamespace(is_global_zero=True, global_step=0, max_steps=9)
        module: Any = SimpleNamespace(metrics={})
        bar.on_train_start(trainer, module)
        trainer.global_step = 1
        bar.on_train_batch_end(trainer, module, None, None, 0)
        bar.on_train_end(trainer, module)
        assert ("kernels  bag: triton" in capsys.readouterr().err) is asked


def test_a_long_wait_is_named_and_a_short_one_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting_for("nothing", patience=600):
        pass
    with waiting_for("the model", patience=0.0):
        for _ in range(1000):
            if said := capsys.readouterr().err:
                break
            time.sleep(0.01)
    assert said == "Waiting for the model.\n"

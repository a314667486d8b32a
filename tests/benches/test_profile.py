"""Shares of a step are of all of it, and each second belongs to one part."""

from __future__ import annotations

import time
from pathlib import Path

import profile_train
import pytest
from benches.page import profile_table
from profile_train import Clock


def test_a_part_inside_another_has_its_own_time():
    clock = Clock()
    clock.tick()
    clock.running = True
    with clock.part("outer"):
        time.sleep(0.02)
        with clock.part("inner"):
            time.sleep(0.05)
    clock.tick()
    assert clock.seconds["inner"] >= 0.05
    assert 0.02 <= clock.seconds["outer"] < clock.seconds["inner"]


def test_a_run_is_all_accounted_for(tmp_path: Path):
    small = ["batch_tokens=256", "source.buffer_tokens=1024", "source.lm_batch_windows=1"]
    row = profile_train.described("sae", [*small, "dict.n_features=64"], 4, tmp_path)
    assert row["steps"] == 4
    assert sum(row["shares"].values()) == pytest.approx(1)
    for part in (*profile_train.WORK, "data"):
        assert row["shares"][part] > 0.001, part
    assert row["checkpoint_ms"] > 0
    assert "| sae |" in profile_table([row])

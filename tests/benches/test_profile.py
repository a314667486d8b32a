"""Shares of a step are of all of it, and each second belongs to one part."""

from __future__ import annotations

import json
import time
from pathlib import Path

import profile_train
import pytest
import torch
from benches import page
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


def test_a_run_is_all_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = ["batch_tokens=256", "source.buffer_tokens=1024", "source.lm_batch_windows=1"]
    words = ["--kinds", "sae", "--set", *small, "dict.n_features=64", "--steps", "4", "--anyway"]
    monkeypatch.setattr("sys.argv", ["profile_train.py", *words, "--results", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        assert profile_train.main() == 0
    finally:
        torch.set_num_threads(threads)
    (record,) = json.loads((tmp_path / "profile.json").read_text())
    (row,) = record["rows"]
    assert record["device"] == row["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert row["steps"] == 4
    assert sum(row["shares"].values()) == pytest.approx(1)
    for part in (*profile_train.WORK, "data"):
        assert row["shares"][part] > 0.001, part
    assert row["checkpoint_ms"] > 0
    assert "| sae |" in profile_table([row])


def test_each_kind_of_machine_has_its_newest_profile(tmp_path: Path):
    shares = dict.fromkeys(page.PARTS, 0.1)
    row = {"kind": "sae", "shares": shares, "checkpoint_share": 0.01, "outside": 0.05}
    narrow = {"machine": {"cpu": "a CPU", "threads": 2}}
    gpu = {"machine": {"cpu": "its CPU", "gpu": "a GPU", "threads": 2}, "device": "cuda"}
    records = [
        {**taken_on, "date": "2026-01-01", "versions": {"torch": "2"}, "rows": [row | {"ms_a_step": ms}]}
        for taken_on, ms in ((narrow, 11), (gpu, 12), (narrow, 13))
    ]  # fmt: skip
    (tmp_path / "profile.json").write_text(json.dumps(records))
    (tmp_path / "bench.json").write_text("[]")
    blocks = page.blocks(tmp_path)
    assert blocks.keys() == {"profile-avx2", "profile-cuda"}
    assert blocks["profile-avx2"].startswith("a CPU with AVX2, 2 threads")
    assert "| sae | 13 |" in blocks["profile-avx2"]
    assert blocks["profile-cuda"].startswith("a GPU,") and "| sae | 12 |" in blocks["profile-cuda"]

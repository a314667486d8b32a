"""Another model behind the same path has another fingerprint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dictlearn.lm import fingerprint as module
from dictlearn.lm.fingerprint import fingerprint
from dictlearn.lm.hub import PICO_PATH


@pytest.fixture
def model(tmp_path) -> Path:
    return Path(shutil.copytree(PICO_PATH, tmp_path / "model"))


def changed(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_each_part_is_known_apart(model):
    before = fingerprint(str(model))
    assert before == fingerprint("pico") and set(before) == {"weights", "config", "tokenizer"}
    for part, file, at in (
        ("weights", "model.safetensors", -5),
        ("tokenizer", "tokenizer.json", -20),
        ("config", "config.json", -3),
    ):
        kept = (model / file).read_bytes()
        (model / file).write_bytes(kept[:at] + bytes([kept[at]]) + b" " + kept[at + 1 :])
        after = {name for name, text in fingerprint(str(model)).items() if text != before[name]}
        assert after == {part}
        (model / file).write_bytes(kept)


def test_large_weights_are_sampled_evenly(model, monkeypatch):
    weights = model / "model.safetensors"
    monkeypatch.setattr(module, "HASHED_IN_FULL", 1 << 20)
    monkeypatch.setattr(module, "BLOCKS", 64)
    before = fingerprint(str(model))["weights"]
    for at in (12, weights.stat().st_size // 2 + 7, weights.stat().st_size * 63 // 64 + 100):
        changed(weights, at)
        after = fingerprint(str(model))["weights"]
        assert after != before
        changed(weights, at)
    assert fingerprint(str(model))["weights"] == before

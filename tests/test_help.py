"""What --help shows."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from dictlearn import config, help, schema


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def helped(verb: str, *overrides: str, everything: bool = False) -> list[str]:
    return help.text(verb, f"dictlearn {verb}", overrides, everything).splitlines()


def test_help_shows_the_keys_that_are_set_most() -> None:
    lines = helped("train", "dict=transcoder")
    assert any(line.split()[:1] == ["[transcoder]"] for line in lines)
    assert any(
        line.startswith("       skip_transcoder ") and "Skip transcoder" in line for line in lines
    )
    assert any(line.startswith("    steps=1900 ") and "optimiser steps" in line for line in lines)
    keys = [line for line in lines[lines.index("", -20) :] if "=" in line[:36]]
    assert 10 <= len(keys) <= 16
    assert not any("k_start" in line or "_target_" in line for line in lines)


def test_help_all_shows_every_key_and_whole_comments() -> None:
    lines = helped("train", everything=True)
    text = " ".join(" ".join(lines).split())
    takes = schema.keys("train", dict(OmegaConf.to_container(config.raw("train"))))  # type: ignore[arg-type]
    parts = {key for key, wanted in takes.items() if wanted.part or key.startswith("hydra.")}
    for key in set(takes) - parts:
        assert f" {key}=" in text
    assert "sparsity.k_start=null begin with this many and come down to k" in text
    beside = "selection=auto the matmul that finds features"
    assert beside in text and "What is selected is float32's each time" in text  # its second line
    assert max(map(len, lines)) <= 106


def test_a_verb_without_a_list_shows_its_own_keys() -> None:
    lines = helped("lookup")
    assert any(line.startswith("    vector=null ") for line in lines)


def test_verbs_stand_in_the_order_of_work() -> None:
    verbs = list(config.verbs())
    assert (
        verbs.index("plan") < verbs.index("train") < verbs.index("features") < verbs.index("export")
    )
    assert set(config.ORDER) <= set(verbs)


def test_help_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, helped("train"))) <= 80

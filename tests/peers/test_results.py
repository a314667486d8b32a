"""What goes on record."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import torch
from peers.recipe import Recipe
from peers.results import append
from peers.speed import Race


def test_records_are_added_and_name_nobody(tmp_path: Path):
    append("figures", {"fvu": 1.0}, tmp_path)
    path = append("figures", {"fvu": 2.0}, tmp_path)
    records = json.loads(path.read_text())
    assert [record["fvu"] for record in records] == [1.0, 2.0]
    assert {"date", "machine"} <= records[0].keys()
    assert {"cpu", "cores", "threads"} <= records[0]["machine"].keys()
    for private in (platform.node(), getpass.getuser() + "@", str(tmp_path)):
        assert private not in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["figures.json"]


def test_the_schedule_rises_stays_and_falls_to_zero():
    recipe = Recipe(8, 16, 2, 10, 4, 1e-3, warmup=4, decay=5, dead_after_tokens=8, prefixes=(16,))
    factors = [recipe.lr_factor(step) for step in range(10)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]


def test_a_race_goes_by_turns_and_reports_everybody():
    turns = []
    race = Race({"them": lambda: turns.append("them")}, own_steps=2, rival_steps=3)
    x_ND = torch.zeros(1, 1)
    for _, batch in zip(range(9), race.host(x_ND, rounds=3), strict=False):
        assert batch is x_ND
        turns.append("us")
    warm_up, one_round = ["us"] * 2 + ["them"], ["them"] * 3 + ["us"] * 2
    assert turns == warm_up + 3 * one_round + ["us"]
    summary = race.summary()
    assert set(summary) == {"dictlearn", "them"}
    for figures in summary.values():
        assert figures["rounds"] == 3
        assert figures["quartile_1_ms"] <= figures["median_ms"] <= figures["quartile_3_ms"]

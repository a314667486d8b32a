"""The comparison runs from end to end, in one command, with the peers' real packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_peers.py"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a rehearsal of the whole comparison wrote."""
    folder = tmp_path_factory.mktemp("peers")
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--quick", "--threads", "1"]
    subprocess.run(
        [*command, "--scratch", str(folder / "scratch"), "--results", str(folder)],
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return folder


@pytest.mark.peers
def test_every_pair_is_compared(figures: Path):
    (record,) = json.loads((figures / "peers.json").read_text())
    pairs = {pair["pair"]: pair for pair in record["pairs"]}
    assert len(pairs) == 6
    for pair in pairs.values():
        assert all(0 < fvu < 2 for fvu in pair["fvu"])
        assert pair["fvu_ratio"] == pytest.approx(pair["fvu"][0] / pair["fvu"][1])
    for exact in ("SAELens topk", "sparsify topk"):
        assert pairs[exact]["l0"] == [record["recipe"]["k"]] * 2
    assert {"sae-lens", "eai-sparsify", "torch"} <= record["versions"].keys()


@pytest.mark.peers
def test_the_race_has_everybody_in_it(figures: Path):
    (record,) = json.loads((figures / "peers_speed.json").read_text())
    assert set(record["a_step"]) == {"dictlearn", "SAELens", "sparsify"}
    for name, ratio in record["times_ours"].items():
        ours, theirs = (record["a_step"][who]["median_ms"] for who in ("dictlearn", name))
        assert ratio == pytest.approx(theirs / ours)


@pytest.mark.peers
def test_saelens_steps_with_the_schedule_of_the_recipe():
    from peers.recipe import Recipe
    from peers.saelens import SAELens

    recipe = Recipe(8, 16, 2, 12, 4, 1e-3, warmup=4, decay=5, dead_after_tokens=8, prefixes=(16,))
    saelens = SAELens("topk", recipe, 0)
    rates = []
    for _ in range(recipe.steps):
        rates.append(saelens.trainer.optimizer.param_groups[0]["lr"])
        saelens.step(torch.randn(4, 8))
    expected = [recipe.lr * recipe.lr_factor(step) for step in range(recipe.steps)]
    assert rates == pytest.approx(expected)


def test_ours_steps_with_the_schedule_of_the_recipe():
    from hydra.utils import instantiate
    from peers.ours import configuration
    from peers.recipe import Recipe

    recipe = Recipe(8, 16, 2, 12, 4, 1e-3, warmup=4, decay=5, dead_after_tokens=8, prefixes=(16,))
    schedule = instantiate(configuration("topk", recipe, 0).schedule)
    ours = [schedule(step, recipe.steps) for step in range(recipe.steps)]
    assert ours == pytest.approx([recipe.lr_factor(step) for step in range(recipe.steps)])

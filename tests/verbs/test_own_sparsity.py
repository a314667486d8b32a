"""A sparsity of one's own: one file, and one yaml in a --config-dir."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import dictlearn
from dictlearn import cli
from tests.dictionaries import OWN

SMALL = ["source=synthetic", "dict.n_features=32", "dict.k=2", "batch_tokens=64"]
SMALL += ["source.width=16", "source.n_features=32", "trainer=cpu"]


def trained(folder: Path, name: str, *overrides: str) -> int:
    arguments = ["--config-dir", str(OWN), "sparsity=sparsemax", f"name={name}"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dictlearn", "train", *arguments, *SMALL, *overrides])
        cli.main()
    return exit_.value.code or 0  # type: ignore[return-value]


def test_it_trains_to_a_saved_dictionary_that_another_run_starts_from(tmp_path):
    assert trained(tmp_path, "own", "steps=20") == 0
    figures = json.loads((tmp_path / "runs/own/figures.json").read_text())["figures"]
    assert 0 < figures["fvu"] < 1 and figures["l0"] >= 1
    one = dictlearn.load(tmp_path / "runs/own")
    x = 3 * torch.randn(50, 16)
    assert one.sparsity.name == "sparsemax"
    sums = one.encode(x).dense().sum(-1)
    torch.testing.assert_close(sums, sums[:1].expand_as(sums))
    still = ["init=runs/own", "steps=1", "optim.lr=1e-30", "sparsity.total=9"]
    assert trained(tmp_path, "again", *still) == 0
    again = dictlearn.load(tmp_path / "runs/again")
    torch.testing.assert_close(again(x), one(x), rtol=1e-4, atol=1e-4)


def test_its_own_options_are_checked_before_work(tmp_path, capsys):
    assert trained(tmp_path, "own", "steps=20", "sparsity.total=-1") == 2
    assert "sparsity.total=-1" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_module_may_lie_in_the_folder_of_its_yaml(tmp_path, capsys):
    folder = tmp_path / "mine"
    (folder / "sparsity").mkdir(parents=True)
    text = (OWN.parent / "sparsemax.py").read_text().replace('"sparsemax"', '"beside_its_yaml"')
    (folder / "beside_its_yaml.py").write_text(text)
    (folder / "sparsity/beside.yaml").write_text(
        "_target_: beside_its_yaml.Sparsemax\n_partial_: true\n"
    )
    command = ["dictlearn", "plan", "--config-dir", str(folder), "sparsity=beside", *SMALL]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "argv", command)
        cli.main()
    assert "want Sparsemax.entries" in capsys.readouterr().out  # found, and asked

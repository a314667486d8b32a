"""A sparsity of one's own: one file, and one yaml in a --config-dir."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import dictlearn
from dictlearn import cli, own
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
    assert "want Sparsemax.entries" in capsys.readouterr().err  # found, and asked


BROKEN = {  # a module's source, and what is said of it
    "class Mine(\n": "{path}, line 1: '(' was never closed",
    "import json\nimport nowhere_at_all\n": "{path}, line 2: no module named nowhere_at_all",
    "import json\n\nSIZE = json.sizes\n": "{path}, line 3: AttributeError: module 'json' has no",
    "from dictlearn.sparsity import gone\n": "{path}, line 1: ImportError: cannot import name 'gone'",
    "import json\n": "broken_{n} has no Mine",
    None: "ModuleNotFoundError: No module named 'broken_{n}'",
}


@pytest.mark.parametrize("n", range(len(BROKEN)))
def test_a_module_that_cannot_be_imported_is_named_with_its_line(n, tmp_path, capsys):
    """In one sentence, before there is a run."""
    (source, said), folder = list(BROKEN.items())[n], tmp_path / "mine"
    (folder / "sparsity").mkdir(parents=True)
    path = folder / f"broken_{n}.py"
    if source is not None:
        path.write_text(source)
    (folder / "sparsity/mine.yaml").write_text(f"_target_: broken_{n}.Mine\n_partial_: true\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(tmp_path)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "argv", ["dictlearn", "train", "--config-dir", "mine", "sparsity=mine"])
        cli.main()
    assert exit_.value.code == 2
    assert said.format(path=path, n=n) in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_an_import_that_may_fail_is_left_to_the_module(tmp_path, monkeypatch):
    text = "try:\n    import nowhere\nexcept ImportError:\n    nowhere = None\nclass Mine: ...\n"
    (tmp_path / "guarded.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    own.import_targets(OmegaConf.create({"sparsity": {"_target_": "guarded.Mine"}}))
    assert "guarded" in sys.modules

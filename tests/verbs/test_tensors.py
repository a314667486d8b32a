"""Training on plain arrays, on the command line and from Python: no model and no text are read."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dictlearn
from dictlearn import cli
from tests.lines import settled

SMALL = ["source=tensors", "trainer=cpu", "dict.n_features=32", "dict.k=3", "steps=8"]
SMALL += ["batch_tokens=64", "model.path=no/such", "callbacks.checkpoint.every_steps=4", "name=a"]


def rows(n: int = 900, width: int = 8) -> np.ndarray:
    random = np.random.default_rng(0)
    code = random.random((n, 24)) * (random.random((n, 24)) < 0.1)
    return (code @ random.standard_normal((24, width))).astype(np.float32)


def dictlearn_(folder: Path, verb: str, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dictlearn", verb, *arguments])
        cli.main()
    return exit_.value.code or 0  # type: ignore[return-value]


def trained(folder: Path, *overrides: str) -> int:
    return dictlearn_(folder, "train", *settled(*SMALL, *overrides))


def test_a_run_on_a_file_has_held_out_figures_and_a_report_and_says_what_it_lacks(tmp_path, capsys):
    np.save(tmp_path / "x.npy", rows())
    assert dictlearn_(tmp_path, "plan", *SMALL, "source.path=x.npy") == 0
    assert trained(tmp_path, "source.path=x.npy") == 0
    said = capsys.readouterr()
    assert "come without the model that CE and KL need" in " ".join(said.err.split())
    record = json.loads((tmp_path / "runs/a/figures.json").read_text())
    figures, baselines = record["figures"], record["baselines"]
    assert record["text"]["tokens"] == figures["tokens"] == 90
    assert figures["l0"] == 3 and 0 < figures["dead"] < 1 and "fvu_with_special" not in figures
    assert figures["fvu"] < baselines["zero ablation"]["fvu"] and "kl" not in figures
    page = (tmp_path / "runs/a/report.html").read_text()
    assert "90 held-out rows of <b>x.npy</b>" in page and "by position" not in page
    assert dictlearn.load(tmp_path / "runs/a")(torch.from_numpy(rows()[:5])).shape == (5, 8)
    assert dictlearn_(tmp_path, "evaluate", "run=runs/a") == 2
    assert "was trained on arrays of activations" in capsys.readouterr().err


def test_held_out_figures_are_of_the_last_rows(tmp_path):
    x = rows()
    np.save(tmp_path / "x.npy", x)
    assert trained(tmp_path, "source.path=x.npy", "source.held_out=200") == 0
    dictionary = dictlearn.load(tmp_path / "runs/a")
    held = torch.from_numpy(x[-200:])
    error = (dictionary(held) - held).double().square().sum()
    fvu = error / (held.double() - held.double().mean(0)).square().sum()
    assert dictionary.figures["fvu"] == pytest.approx(float(fvu), rel=1e-6)


def test_a_held_out_row_that_is_not_finite_is_refused_before_training(tmp_path, capsys):
    x = rows()
    x[-3] = np.inf
    np.save(tmp_path / "x.npy", x)
    assert trained(tmp_path, "source.path=x.npy") == 2
    assert "NaN or Inf in row 897 of x" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (np.ones((50, 8), np.float32), "source.held_out: the rows held out are all the same (5)"),
        (rows(2), "source.path: leaves 1 row to train on; want more rows"),
    ],
)
def test_rows_without_figures_are_refused_before_training(tmp_path, capsys, x, sentence):
    np.save(tmp_path / "x.npy", x)
    assert trained(tmp_path, "source.path=x.npy") == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_a_run_goes_on_bit_for_bit_and_not_with_other_arrays(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", a=rows(), b=2 * rows())
    names = "source.names={mlp_in.0: a, mlp_out.0: b}"
    options = ["source.path=x.npz", "dict=transcoder", names]
    assert trained(tmp_path, *options) == 0
    runs = tmp_path / "runs"
    shutil.copytree(runs / "a", runs / "cut")
    shutil.rmtree(runs / "cut/checkpoints/step-8")
    assert trained(tmp_path, *options, "name=cut", "resume=auto") == 0
    whole, cut = (
        load_file(runs / run / "dictionary/dictionary.safetensors") for run in ("a", "cut")
    )
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    np.savez(tmp_path / "x.npz", a=rows() + 1, b=2 * rows())
    assert trained(tmp_path, *options, "resume=auto", "steps=12") == 2
    assert "allow_changed=[data]" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["clt", "crosscoder"])
def test_kinds_of_several_sites_read_keys(tmp_path, kind):
    x = torch.from_numpy(rows()).bfloat16()
    names = ["resid_post.0", "resid_post.1"]
    if kind == "clt":
        names = ["mlp_in.0", "mlp_in.1", "mlp_out.0", "mlp_out.1"]
    save_file({name: (i + 1) * x for i, name in enumerate(names)}, tmp_path / "x.safetensors")
    assert trained(tmp_path, "source.path=x.safetensors", f"dict={kind}") == 0
    record = json.loads((tmp_path / "runs/a/figures.json").read_text())
    assert f"fvu/{names[-1]}" in record["figures"]
    assert bool(record["beside"]) == (kind == "clt")


def test_python_passes_arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"steps": 4, "batch_tokens": 64, "trainer": "cpu", "sparsity": "batchtopk"}
    options["dict.k"] = 3
    x = rows()
    run = dictlearn.train(dict="sae", activations=x, name="a", source={"held_out": 0.2}, **options)
    assert run.figures["tokens"] == 180 and run.report.is_file()
    assert dictlearn.load(run).width == 8
    pair = {"mlp_in.0": torch.from_numpy(x).half(), "mlp_out.0": torch.from_numpy(-x).bfloat16()}
    run = dictlearn.train(dict="transcoder", activations=pair, name="b", **options)
    assert run.dictionary.targets == ("mlp_out.0",)
    again = dictlearn.train(dict="transcoder", activations=pair, name="b", resume="auto", **options)
    assert again.figures == run.figures
    with pytest.raises(ValueError, match="activations: is a list; want an array"):
        dictlearn.train(activations=[1.0])
    with pytest.raises(ValueError, match="want no source= beside them"):
        dictlearn.train("source=live", activations=x)
    assert not (tmp_path / "runs/c").exists()


def test_objectives_that_run_the_model_are_refused_before_work(tmp_path, capsys):
    np.save(tmp_path / "x.npy", rows())
    assert trained(tmp_path, "source.path=x.npy", "objective=kl") == 2
    assert "runs the model on whole windows of text" in capsys.readouterr().err
    assert trained(tmp_path, "source.path=x.npy", "source.held_out=1.5") == 2
    assert "source.held_out=1.5: want" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()

"""`dictlearn train objective=...` where the objective runs the model with the dictionary in place."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dictlearn
from dictlearn import cli
from dictlearn.lm.load import load_model
from tests.lines import settled

TEXT = ["data.context=64", "data.max_tokens=20000"]
SMALL = [
    *TEXT,
    "steps=6",
    "batch_tokens=256",
    "dict.n_features=64",
    "dict.k=8",
    "eval_tokens=512",
    "~eval.baselines",  # nobody looks at an evaluation here
    "~eval.jacobian",
    "~eval.replacement",
    "~eval.downstream",
    "trainer.log_every_n_steps=2",
    "trainer=cpu",
    "callbacks.checkpoint.every_steps=3",
]
BUFFER = ["source.buffer_tokens=2048", "source.lm_batch_windows=4"]
STAGED = ["objective=mse_then_kl", *BUFFER]


def dictlearn_train(folder: Path, *overrides: str) -> int:
    """Exit status of `dictlearn train ...` in `folder`."""
    return command(folder, "train", *SMALL, *overrides)


def command(folder: Path, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dictlearn", *settled(*arguments)])
        cli.main()
    return exit_.value.code or 0  # type: ignore[return-value]


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def forget_the_end(run: Path) -> None:
    """Leaves the run as if it had been killed after its checkpoint at step 3."""
    for file in (run / "checkpoints").glob("step-6/*"):
        file.unlink()
    (run / "checkpoints/step-6").rmdir()
    (run / "checkpoints/LATEST").unlink()


@pytest.mark.parametrize(
    "overrides",
    [
        [*STAGED, "source.last=0.67", "callbacks=ema"],  # cut within the KL stage
        [*STAGED, "source.last=0.34", "dict=transcoder"],  # cut before it
        ["objective=e2e", "trainer.accumulate_grad_batches=2"],
    ],
    ids=["kl stage, ema", "live stage, transcoder", "e2e, accumulated"],
)
def test_a_run_cut_in_two_is_the_run_in_one_piece(tmp_path, overrides):
    for name in ("whole", "cut"):
        assert dictlearn_train(tmp_path, f"name={name}", *overrides) == 0
    whole, cut = (tmp_path / "runs" / name for name in ("whole", "cut"))
    forget_the_end(cut)
    assert dictlearn_train(tmp_path, "name=cut", "resume=auto", *overrides) == 0
    states = [load_file(run / "checkpoints/step-6/tensors.safetensors") for run in (whole, cut)]
    assert states[0].keys() == states[1].keys()
    assert any("kl_mean" in name for name in states[0])
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert tensor.numel() < 1_000_000  # none of the language model's
    drop = {"tokens_per_second"}
    for one, other in zip(rows(whole), rows(cut), strict=True):
        assert {k: v for k, v in one.items() if k not in drop} == {
            k: v for k, v in other.items() if k not in drop
        }


def test_kl_begins_with_the_windows(tmp_path):
    assert dictlearn_train(tmp_path, "name=x", *STAGED, "source.last=0.34") == 0
    run = tmp_path / "runs/x"
    first, second, third = rows(run)
    assert "kl" not in first and "kl" not in second
    assert first["loss/kl"] == second["loss/kl"] == 0.0
    options = dictlearn.load(run).provenance["objective"]["terms"]["kl"]
    weighted = options["coefficient"] * third["kl_ratio"] * third["kl"]
    assert third["kl"] > 0 and third["loss/kl"] == pytest.approx(weighted)
    assert options["mode"] == "teacher_forced"


def test_another_teacher_is_recorded_beside_the_model_itself(tmp_path):
    lm = load_model("pico")
    for parameter in lm.model.parameters():
        parameter.data.add_(0.02 * parameter.std() * torch.randn_like(parameter))
    lm.model.save_pretrained(tmp_path / "nudged")
    lm.tokenizer.save_pretrained(tmp_path / "nudged")  # type: ignore[union-attr]
    options = ["name=x", "objective=kl", "teacher=./nudged", "teacher.weight=0.5", "steps=2"]
    assert dictlearn_train(tmp_path, *options) == 0
    (row,) = rows(tmp_path / "runs/x")
    assert 0 < row["kl_teacher_base"] < row["kl_teacher_patched"]
    assert row["kl_excess"] == pytest.approx(row["kl_teacher_base"] - row["kl_teacher_patched"])
    assert row["kl"] < max(row["kl_base_patched"], row["kl_teacher_patched"])  # KL is convex


def test_a_teacher_that_ran_once_teaches_as_well(tmp_path):
    options = ["head=64", "samples=16", "dtype=float32", "output=stored"]
    assert command(tmp_path, "targets", *TEXT, *options) == 0
    stored = ["teacher=stored", "teacher.folder=stored"]
    for name, teacher in {"live": [], "stored": stored}.items():
        assert dictlearn_train(tmp_path, f"name={name}", "objective=kl", "steps=2", *teacher) == 0
    live, from_disk = (rows(tmp_path / "runs" / name)[0] for name in ("live", "stored"))
    assert from_disk["kl"] == pytest.approx(live["kl"], rel=0.1)
    assert 0 <= from_disk["kl_clipped"] < 0.5 and "kl_clipped" not in live


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["objective=kl", "source=live", *BUFFER], "want source=windows, source=staged"),
        (["objective=kl", "source=synthetic"], "want source=windows, source=staged"),
        (["objective=kl", "batch_tokens=100"], "batch_tokens=100"),
        ([*STAGED, "source.last=2"], "source.last=2: want a number from 0 to 1"),
        (["objective=e2e", "dict.layer=3"], "pico has no layer after resid_post.3"),
        (["objective=kl", "teacher.temperature=0"], "teacher.temperature=0: want a number above 0"),
        (["teacher=pico", *BUFFER], "teacher.path=pico: no term of this objective has a teacher"),
        (["objective=kl", "teacher=./none"], "teacher.path=./none"),
        (["objective=kl", "teacher=pico", "teacher.weight=2"], "teacher.weight=2: want a number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_before_any_work(tmp_path, capsys, overrides, sentence):
    assert dictlearn_train(tmp_path, "name=wrong", *overrides) == 2
    *introduction, error = capsys.readouterr().err.strip().splitlines()
    assert sentence in error
    assert all("runs/wrong: sae" in line or "tokens a parameter" in line for line in introduction)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

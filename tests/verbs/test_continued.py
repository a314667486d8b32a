"""A run that is continued keeps its own configuration; what is given anew may not differ."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from dictlearn import config
from dictlearn.verbs import build
from dictlearn.verbs.continued import command, continued, goes_on
from dictlearn.verbs.train import begun, refuse_fewer_steps

OWN = ["name=x", "dict=clt", "dict.k=4", "sparsity=batchtopk", "callbacks=ema", "~eval.downstream"]
OWN += ["optim.lr=1e-4", "debug=fast", "data.context=64", "seed=3"]


def saved(folder: Path, *overrides: str) -> dict[str, Any]:
    tree = build.plain(config.compose("train", overrides))
    (folder / "config.json").write_text(json.dumps(tree))
    return tree


def again(folder: Path, *overrides: str) -> dict[str, Any]:
    cfg = config.compose("train", ["resume=auto", "name=x", *overrides])
    return build.plain(continued("train", cfg, folder))


def test_name_and_resume_are_all_it_takes(tmp_path: Path) -> None:
    was = saved(tmp_path, *OWN)
    assert again(tmp_path) == {**was, "resume": "auto"}


@pytest.mark.parametrize(
    "given",
    [["dict=clt"], ["dict.k=4", "optim.lr=1e-4"], OWN[1:], ["trainer.devices=1"]],
    ids=" ".join,
)
def test_what_is_given_anew_may_be_the_same(given: list[str], tmp_path: Path) -> None:
    was = saved(tmp_path, *OWN)
    assert again(tmp_path, *given) == {**was, "resume": "auto"}


def test_a_run_can_be_made_longer_and_show_more(tmp_path: Path) -> None:
    was = saved(tmp_path, *OWN)
    now = again(tmp_path, "steps=99", "eval_tokens=512", "callbacks.checkpoint.keep=5")
    assert (now["steps"], now["eval_tokens"]) == (99, 512)
    assert now["callbacks"]["checkpoint"]["keep"] == 5
    assert now["callbacks"]["ema"] == was["callbacks"]["ema"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("optim.lr=0.5", r"optim.lr: 0.0001 in the checkpoint, 0.5 now"),
        ("dict=sae", r"dict._target_: .*clt.* in the checkpoint, .*sae"),
        ("sparsity=topk", r"sparsity._target_"),
        ("seed=0", r"seed: 3 in the checkpoint, 0 now"),
    ],
)
def test_what_differs_is_refused(given: str, sentence: str, tmp_path: Path) -> None:
    saved(tmp_path, *OWN)
    with pytest.raises(ValueError, match=sentence) as refused:
        again(tmp_path, given)
    assert "steps" not in str(refused.value)  # what was not given is not spoken of


def test_no_run_has_the_name_that_the_clock_makes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = config.compose("train", ["resume=auto"])
    with pytest.raises(ValueError, match="resume=auto: want name=<the run to go on with>"):
        begun(cfg, Path(cfg.run_dir))


def test_without_a_checkpoint_the_run_must_be_said_in_full(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = ["resume=auto", "name=x"]
    with pytest.raises(
        ValueError, match="no checkpoint in runs/x to go on from; say what to train"
    ):
        begun(config.compose("train", start), Path("runs/x"))
    assert begun(config.compose("train", [*start, "dict.k=4"]), Path("runs/x")).folder is None


def test_what_is_said_at_a_stop_depends_on_what_is_saved(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = config.compose("train", ["name=x", "dict.k=4"])
    assert goes_on(cfg) == "nothing is saved yet, and the same command starts again"
    (tmp_path / "runs/x/checkpoints/step-5").mkdir(parents=True)
    assert "resume=auto name=x" in goes_on(cfg)


def test_a_run_does_not_end_before_where_it_is(tmp_path: Path) -> None:
    cfg = config.compose("train", ["name=x", "steps=30"])
    refuse_fewer_steps(cfg, tmp_path / "step-30")
    with pytest.raises(ValueError, match="steps=30: .*step-155 has 155 behind it; want more"):
        refuse_fewer_steps(cfg, tmp_path / "step-155")


def test_a_moved_run_writes_where_it_lies_now(tmp_path: Path) -> None:
    saved(tmp_path, *OWN)
    cfg = config.compose("train", ["resume=auto", "name=x", "run_dir=elsewhere/x"])
    now = build.plain(continued("train", cfg, tmp_path))
    assert now["callbacks"]["checkpoint"]["folder"] == "elsewhere/x/checkpoints"
    assert now["logger"]["run"]["folder"] == "elsewhere/x"


def test_a_key_that_the_run_did_not_know_has_its_default(tmp_path: Path) -> None:
    was = saved(tmp_path, *OWN)
    del was["selection"], was["optim"]["eps"]
    (tmp_path / "config.json").write_text(json.dumps(was))
    now = again(tmp_path)
    assert (now["selection"], now["optim"]["eps"]) == ("auto", 1e-8)


def test_a_checkpoints_file_builds_nothing_of_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    was = saved(tmp_path, *OWN)
    was["optim"] = {"_target_": "os.system", "command": "true"}
    was["callbacks"]["mine"] = {"_target_": "os.system", "command": "true"}
    was["teacher"]["temperature"] = "${oc.env:SECRET}"
    (tmp_path / "config.json").write_text(json.dumps(was))
    with pytest.raises(ValueError, match="optim._target_") as refused:
        again(tmp_path)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("name", ["x", "two words", "it's", "a,b"])
def test_what_is_printed_at_a_stop_can_be_pasted(name: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dictlearn", "train", "seed=1"])
    cfg = config.compose("train", [f"name={config.quoted(name)}"])
    program, verb, *words = shlex.split(command(cfg))
    assert (program, verb, words[0]) == ("dictlearn", "train", "resume=auto")
    assert config.compose("train", words).name == name
    monkeypatch.setattr(sys, "argv", ["train.py", "--config-dir", "my conf", "seed=1"])
    assert shlex.split(command(cfg))[:4] == ["python", "train.py", "--config-dir", "my conf"]

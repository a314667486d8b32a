"""A multirun: its folders, named by what changed, and how it ends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from dictlearn import multirun
from dictlearn.evals.record import FORMAT, write_record
from tests.command_line import Command, Runs, answer

SHARED = {"steps", "data"}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["steps=9", "dict.k=16", "optim.lr=0.0003"], "dict.k=16,optim.lr=0.0003"),
        (["optim.lr=0.0003", "dict.k=16"], "dict.k=16,optim.lr=0.0003"),  # whatever their order
        (["dict=sae", "data=text"], "dict=sae"),
        (["+callbacks.ema.decay=0.9"], "+callbacks.ema.decay=0.9"),
        (["steps=9"], "7"),
        ([], "7"),
    ],
)
def test_a_run_is_called_what_was_changed_in_it(overrides: list[str], name: str) -> None:
    assert multirun.folder(overrides, SHARED, 7) == name


NASTY = [
    "../../out",
    "/etc/passwd",
    "~",
    "a b",
    "[0.25,1.0]",
    "'x'",
    "ü\x1b[31m",
    "",
    ".",
    "k" * 400,
]


def test_every_name_is_one_safe_folder_and_no_two_are_the_same() -> None:
    names = {multirun.folder([f"model.path={value}"], SHARED, 0) for value in NASTY}
    names |= {multirun.folder([value], SHARED, 0) for value in ("../x", "..", ".hidden")}
    assert len(names) == len(NASTY) + 3
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_.,=+-]{1,128}", name) and name[0] not in ".-"


def test_a_multirun_gives_each_run_a_folder(command: Command, runs: Runs) -> None:
    assert command("train", "seed=1,2", "-m", "dict=sae,transcoder") == 0
    folders = [Path(cfg.run_dir) for cfg in runs]
    assert len({*folders}) == 4
    assert len({folder.parent for folder in folders}) == 1
    assert [folder.name for folder in folders] == [
        f"dict={kind},seed={seed}" for seed in (1, 2) for kind in ("sae", "transcoder")
    ]
    assert command("train", "-m", "name=mine", "seed=1,2", "steps=3") == 0
    assert [cfg.run_dir for cfg in runs[4:]] == ["runs/mine/seed=1", "runs/mine/seed=2"]
    assert command("train", "-m", "name=a,b", "steps=3") == 0
    assert [cfg.run_dir for cfg in runs[6:]] == ["runs/a", "runs/b"]


def test_a_multirun_ends_with_a_table_and_a_page(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(cfg: DictConfig) -> int:
        folder = Path(cfg.run_dir)
        folder.mkdir(parents=True)
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        if cfg.dict.k == 64:
            raise ValueError("dict.k=64: unlucky")
        if cfg.dict.k == 128:
            raise RuntimeError("no memory")
        figures = {"l0": cfg.dict.k, "fvu": 1 / cfg.dict.k}
        write_record(folder, {"format": FORMAT, "figures": figures, "versions": {}})
        return 0

    answer(monkeypatch, main)
    assert command("train", "-m", "name=mine", "dict.k=8,64,128,16") == 2
    said = capsys.readouterr()
    assert said.err.endswith(
        "The page: runs/mine/sweep.html\n"
        "Left out: dict.k=64 failed: dict.k=64: unlucky\n"
        "Left out: dict.k=128 failed: run 2: RuntimeError: no memory\n"
    )
    assert "Traceback" in said.err
    assert "dict.k=8 " in said.out and "0.1250" in said.out and "dict.k=64" not in said.out
    page = Path("runs/mine/sweep.html").read_text()
    assert "dict.k=16" in page and page.count("<svg") == 1
    assert command("train", "-m", "name=mine", "dict.k=8,64,128,16") == 2  # the folders are there
    assert "The page" not in capsys.readouterr().err
    assert Path("runs/mine/sweep.html").read_text() == page


def test_a_multirun_goes_on_after_a_mistake_and_reports_it(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = []

    def main(cfg: DictConfig) -> int:
        seeds.append(cfg.seed)
        if cfg.seed == 2:
            raise ValueError("seed=2: unlucky")
        return 0

    answer(monkeypatch, main)
    assert command("train", "-m", "seed=1,2,3") == 2
    assert seeds == [1, 2, 3]
    assert "seed=2: unlucky\n" in capsys.readouterr().err


def test_an_interrupted_multirun_stops(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    answer(monkeypatch, lambda cfg: seeds.append(cfg.seed) or 143)
    assert command("train", "-m", "seed=1,2,3") == 143
    assert seeds == [1]

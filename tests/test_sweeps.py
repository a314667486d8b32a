"""The W&B sweep files, through the agent's own code: what it would run, we run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from dictlearn import config, overrides

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((config.conf_dir() / "sweep").glob("*.yaml"), key=lambda path: path.name)


def draws(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the sweep's server may hand out: all values of a list, both ends of a range."""
    choices = []
    for drawn in parameters.values():
        if "value" in drawn:
            choices.append([drawn["value"]])
        else:
            choices.append(drawn.get("values") or [drawn["min"], drawn["max"]])
    for values in itertools.product(*choices):
        yield dict(zip(parameters, values, strict=True))


def agent_command(sweep: dict[str, Any], draw: dict[str, Any]) -> list[str]:
    """The command line that `wandb agent` builds: as in its wandb_agent.py, `_command_run`."""
    variables = create_sweep_command_args({"args": {k: {"value": v} for k, v in draw.items()}})
    variables |= {
        "env": ["/usr/bin/env"],
        "interpreter": ["python"],
        "program": [sweep["program"]],
    }
    line: list[str] = []
    for chunk in create_sweep_command(list(sweep["command"])):
        known = chunk.startswith("${") and chunk.endswith("}")
        line += variables[chunk[2:-1]] if known else [chunk]
    return line


def composed(line: list[str]) -> DictConfig:
    """What the overrides of a command line give."""
    translated = config.translated(line[3:])
    return config.compose("train", overrides.checked("train", translated))


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_draw_of_a_sweep_means_what_it_says(path: Path) -> None:
    sweep = read(path)
    names = list(sweep["parameters"])
    seen: dict[str, list[Any]] = {name: [] for name in names}
    for draw in draws(sweep["parameters"]):
        if all(value in seen[name] for name, value in draw.items()):
            continue  # each value once; composing every combination would say no more
        line = agent_command(sweep, draw)
        assert line[:3] == ["/usr/bin/env", "python", "train.py"]
        cfg = composed(line)
        for name, value in draw.items():
            seen[name].append(value)
            if not (config.conf_dir() / name).is_dir():
                assert OmegaConf.select(cfg, name) == value
    assert all(seen.values())


def test_a_whole_number_drawn_as_a_float_arrives_as_one() -> None:
    assert composed(agent_command(read(SWEEPS[0]), {"steps": 30.0})).steps == 30


def test_lists_floats_booleans_and_null_arrive() -> None:
    """The command is executed, in a shell's stead, as far as the composed configuration."""
    sweep = read(SWEEPS[0])
    draw = {
        "dict": "matryoshka",
        "dict.prefixes": [0.25, 1.0],
        "optim.lr": 1e-05,
        "unit_norm": False,
        "clip_norm": None,
        "logger": "wandb",
        "logger.wandb.tags": ["two words", "b"],
        "debug": None,
    }
    line = agent_command(sweep, draw)
    line[1:2] = [sys.executable]
    done = subprocess.run(
        [*line, "--cfg", "job"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    cfg = OmegaConf.create(done.stdout)
    assert cfg.dict.prefixes == [0.25, 1.0]
    assert (cfg.optim.lr, cfg.unit_norm, cfg.clip_norm) == (1e-05, False, None)
    assert cfg.logger.wandb.tags == ["two words", "b"]


def test_a_sweep_trains(tmp_path: Path) -> None:
    """One draw, executed whole, offline and short."""
    sweep = read(config.conf_dir() / "sweep" / "matryoshka.yaml")
    draw = next(draws(sweep["parameters"]))
    draw |= {"logger.wandb.offline": True, "debug": "fast", "run_dir": str(tmp_path / "run")}
    draw |= {"steps": 2, "data.max_tokens": 20_000, "eval_tokens": 512}
    line = agent_command(sweep, draw)
    line[1:2] = [sys.executable]
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "dictionary" / "dictionary.json").is_file()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))

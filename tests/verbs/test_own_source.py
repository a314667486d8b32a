"""A source of one's own: one file, and one yaml in a --config-dir."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import dictlearn
from dictlearn import cli
from tests.lines import settled

SOURCE = '''
"""Activations from a file of one's own, of two sites."""

import torch

from dictlearn.types import Batch, ModelInfo


class Waves:
    reads_model = False
    gives_windows = False

    def __init__(
        self, lm=None, windows=None, *, batch_tokens, seed, sources=(), targets=(), pitch: float = 1
    ):
        self.sources, self.targets, self.batch_tokens = tuple(sources), tuple(targets), batch_tokens
        self.device, self.width, self._seed, self._taken = torch.device("cpu"), 8, seed, 0
        self._pitch = pitch
        {info}

    def shard(self, rank, ranks):
        pass

    def next_batch(self):
        self._taken += 1
        return self._batch(self._taken, self.batch_tokens)

    def sample(self, n):
        return self._batch(0, n)

    def _batch(self, number, n):
        draws = torch.Generator().manual_seed(self._seed + number)
        t = torch.rand(n, len(self.sources), 1, generator=draws)
        x = torch.sin(self._pitch * t * torch.arange(1, self.width + 1))
        zeros = torch.zeros(n, dtype=torch.int64)
        return Batch(x, None, zeros, zeros)

    def state(self):
        return {{"taken": self._taken}}

    def restore(self, state):
        self._taken = state["taken"]
'''
INFO = 'self.info = ModelInfo("waves", None, "waves", 1, 8, vocab_size=0, context_length=0)'
YAML = "_target_: {module}.Waves\n_partial_: true\npitch: 2.0\n"
SMALL = ["dict.n_features=16", "dict.k=2", "steps=4", "batch_tokens=64", "trainer=cpu"]


OF_PICO = 'self.width, self.info = 256, ModelInfo("pico", None, "qwen3", 4, 256, 4096, 2048)'


def trained(folder: Path, info: str, *overrides: str, yaml: str = YAML) -> int:
    module = f"own_source_{abs(hash(str(folder))) % 10**8}"
    (folder / "code").mkdir(exist_ok=True)
    (folder / "conf/source").mkdir(parents=True, exist_ok=True)
    (folder / "code" / f"{module}.py").write_text(SOURCE.format(info=info))
    (folder / "conf/source/waves.yaml").write_text(yaml.format(module=module))
    arguments = ["--config-dir", "conf", "source=waves", "name=own", *settled(*SMALL, *overrides)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder / "code"))
        patch.setattr(sys, "argv", ["dictlearn", "train", *arguments])
        cli.main()
    return exit_.value.code or 0  # type: ignore[return-value]


def test_a_source_of_ones_own_trains_to_a_saved_dictionary(tmp_path, capsys):
    assert trained(tmp_path, INFO, "callbacks.checkpoint.every_steps=2") == 0
    run = tmp_path / "runs/own"
    figures = json.loads((run / "figures.json").read_text())["figures"]
    assert 0 <= figures["fvu"] < 1.5 and 0 < figures["l0"] <= 2
    assert "L0 per token" in capsys.readouterr().err
    dictionary = dictlearn.load(run)
    assert dictionary.width == 8
    assert dictionary(torch.randn(3, 1, 8)).shape == (3, 1, 8)
    assert trained(tmp_path, INFO, "resume=auto", "steps=6") == 0  # and goes on
    assert (run / "checkpoints/step-6").is_dir()


def test_one_that_does_not_say_what_it_gives_is_refused_before_work(tmp_path, capsys):
    assert trained(tmp_path, "pass") == 2
    assert "want a property info" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_dictionary_of_a_real_models_activations_is_evaluated_on_it(
    tmp_path, capsys, monkeypatch
):
    assert trained(tmp_path, OF_PICO, "dict.layer=3") == 0
    assert dictlearn.load(tmp_path / "runs/own").sources == ("resid_post.3",)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(SOURCE)
    named = ["data=text", "data.paths=text.txt", "data.context=64", "eval=reconstruction"]
    monkeypatch.setattr(sys, "argv", ["dictlearn", "evaluate", "run=runs/own", *named])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code, capsys.readouterr().err
    assert (tmp_path / "evaluations/own/report.html").is_file()
    monkeypatch.setattr(sys, "argv", ["dictlearn", "evaluate", "run=runs/own"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "does not say which text it was trained on" in capsys.readouterr().err


def test_a_class_that_is_no_source_is_refused_before_work(tmp_path, capsys):
    assert trained(tmp_path, INFO, yaml="_target_: collections.Counter\n_partial_: true\n") == 2
    assert "collections.Counter has no reads_model, gives_windows, shard" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()

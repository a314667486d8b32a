"""`dict=clt` over Qwen3-4B's own blocks on a CPU: two of them, with random weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import dictlearn
from dictlearn import cli
from dictlearn.lm.hub import PICO_PATH, SHAPES
from dictlearn.verbs import train

FEW = [
    "steps=2",
    "batch_tokens=32",
    "data.context=16",
    "data.max_tokens=4000",
    "source.buffer_tokens=64",
    "source.lm_batch_windows=2",
    "dict.n_features=24",
    "dict.k=4",
    "eval_tokens=16",
    "eval_windows=1",
    "trainer=cpu",
    "beside=false",
    "eval.baselines=null",  # these two take a D x D matrix apart
    "eval.jacobian=null",
]


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its config with two layers, pico's vocabulary and MLPs cut to 512: the rest is full size."""
    folder = tmp_path_factory.mktemp("qwen")
    config = AutoConfig.from_pretrained(SHAPES / "Qwen/Qwen3-4B")
    pico = AutoConfig.from_pretrained(PICO_PATH)
    config.num_hidden_layers, config.vocab_size = 2, pico.vocab_size
    config.intermediate_size = 512
    config.layer_types = config.layer_types[:2]
    config.bos_token_id, config.eos_token_id = pico.bos_token_id, pico.eos_token_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    for file in PICO_PATH.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def test_the_whole_path(cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "SAMPLE_TOKENS", 64)
    overrides = [f"model={cut}", "data=stdlib", "dict=clt", "name=run", *FEW]
    monkeypatch.setattr(sys, "argv", ["dictlearn", "train", *overrides])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    run = tmp_path / "runs" / "run"
    dictionary = dictlearn.load(run)
    assert (dictionary.kind, dictionary.width) == ("clt", 2560)
    assert dictionary.targets == ("mlp_out.0", "mlp_out.1")
    figures = json.loads((run / "figures.json").read_text())["figures"]
    assert figures["l0"] > 0 and (run / "report.html").is_file()

"""`init=`: a run that starts from a dictionary somebody saved."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import dictlearn
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.transcoder import transcoder
from dictlearn.lm.load import read_info
from dictlearn.sparsity.jumprelu import JumpReLU
from tests.verbs.test_train import dictlearn_train


@pytest.fixture(autouse=True)
def start(tmp_path) -> Dictionary:
    """A skip transcoder of pico, as a run would have saved it, in `tmp_path`/start."""
    sparsity = partial(JumpReLU, init_threshold=0.8)
    dictionary = transcoder(read_info("pico"), sparsity, n_features=64, k=8, skip=True)
    torch.nn.init.normal_(dictionary.encoder.b_enc, std=0.3)
    dictionary = dictionary.folded(torch.tensor([0.5]), torch.tensor([0.25])).eval()
    save_dictionary(dictionary, tmp_path / "start", {"model": "pico"})
    return dictionary


def test_a_run_that_learns_nothing_saves_what_it_started_from(start, tmp_path):
    options = ["dict=skip_transcoder", "sparsity=jumprelu", "name=run"]
    assert dictlearn_train(tmp_path, *options, "init=start", "steps=1", "optim.lr=1e-30") == 0
    run = dictlearn.load(tmp_path / "runs" / "run")
    x_NSD = 3 * torch.randn(500, 1, 256)
    torch.testing.assert_close(run(x_NSD), start(x_NSD), rtol=1e-4, atol=1e-4)
    assert start.encode(x_NSD).values.numel() > 500
    assert run.provenance["init"] == "start"


def test_another_site_is_refused_before_anything_is_written(tmp_path, capsys):
    assert dictlearn_train(tmp_path, "dict=sae", "dict.layer=2", "name=run", "init=start") != 0
    said = capsys.readouterr().err
    assert "init=start: a transcoder with sources mlp_in.1, and dict= makes an sae" in said
    assert not (tmp_path / "runs" / "run" / "config.yaml").exists()

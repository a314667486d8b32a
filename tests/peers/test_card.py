"""The code on a model card runs, with the real packages, on the folder that it came with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from dictlearn.export.hub import Hub
from dictlearn.export.protocol import Job
from tests.peers.roundtrip import activations, assert_same, made, pico

FORMATS = ["saelens", "sparsify", "dictionary_learning"]


@pytest.mark.peers
@torch.no_grad()
def test_every_piece_of_code_on_a_card_gives_the_same_dictionary(tmp_path, monkeypatch):
    ours = made("sae", "topk")
    ours.decoder.normalise()
    x_ND = activations()[ours.sources[0]]

    def samples() -> Iterator[Tensor]:
        yield x_ND[:, None]

    commit = tmp_path / "cache" / "models--me--mine" / "snapshots" / "c0ffee"
    commit.mkdir(parents=True)
    hub, lm = Hub(formats=FORMATS, push="me/mine"), pico()
    hub.write(Job(ours, {}, lm.info, lm.tokenizer, samples), commit)
    (tmp_path / "cache" / "models--me--mine" / "refs").mkdir()
    (tmp_path / "cache" / "models--me--mine" / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    made_by = {}
    card = Path(commit / "README.md").read_text()
    for heading, code in re.findall(r"### (\w+)\n.*?```python\n(.*?)```", card, re.DOTALL):
        made_by[heading] = {}
        exec(code, made_by[heading])
    assert set(made_by) == {"dictlearn", *FORMATS}
    again = made_by["dictlearn"]["dictionary"]
    assert_same(ours, again.encode(x_ND[:, None]).dense()[:, 0], again(x_ND[:, None])[:, 0])
    sae = made_by["saelens"]["sae"]
    assert_same(ours, sae.encode(x_ND), sae(x_ND))
    learnt = made_by["dictionary_learning"]["dictionary"]
    assert_same(ours, learnt.encode(x_ND), learnt(x_ND))
    coder = made_by["sparsify"]["coders"]["layers.1"](x_ND)
    code = torch.zeros(len(x_ND), ours.n_features)
    code = code.scatter(1, coder.latent_indices, coder.latent_acts)
    assert_same(ours, code, coder.sae_out)

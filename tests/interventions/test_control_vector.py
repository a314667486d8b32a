"""Control vectors for llama.cpp: what its own package reads, and which block a layer's number means."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import dictlearn
from dictlearn.disk.whole import SaveError
from dictlearn.interventions import run as passes
from dictlearn.interventions.control_vector import layers
from dictlearn.lm.sites import blocks
from tests.families import DECODERS, example
from tests.interventions.test_directions import vector


def test_ggufs_own_reader_finds_the_vectors_and_their_keys(tmp_path: Path):
    ours = vector()
    assert ours.write_gguf(tmp_path / "v.gguf") == [1, 2]
    file = gguf.GGUFReader(tmp_path / "v.gguf")
    fields = {name: file.fields[name].contents() for name in file.fields}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "qwen3"
    assert fields["controlvector.layer_count"] == 2
    assert [tensor.name for tensor in file.tensors] == ["direction.1", "direction.2"]
    for tensor in file.tensors:
        layer = tensor.name.partition(".")[2]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and tensor.data.ndim == 1
        assert np.array_equal(tensor.data, ours.at(f"resid_post.{layer}").numpy())


def test_a_layers_number_is_the_block_whose_output_it_is_added_to():
    model = dictlearn.open_model("pico")
    direction = vector().at("resid_post.1")
    (number,) = layers({"resid_post.1": direction})
    assert layers({"resid_pre.2": direction}).keys() == {number}
    tokens = model.tokens("import os\n")
    block = blocks(model.lm.model)[1][number]

    def add(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :1], output[:, 1:] + direction], dim=1)  # BOS stays as it is

    handle = block.register_forward_hook(add)
    theirs = model.lm.logits(tokens[None])
    handle.remove()
    ours = model.run(tokens, edits=dictlearn.Push("resid_post.1", direction)).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, model.lm.logits(tokens[None]), atol=1e-2)


@pytest.mark.parametrize("family", DECODERS)
def test_what_is_added_to_mlp_out_is_added_to_the_blocks_output(family: str):
    one = example(family)
    torch.manual_seed(0)
    direction = torch.randn(one.lm.info.width)
    assert layers({"mlp_out.1": direction}).keys() == {1}
    at_mlp, at_end = (
        passes.run(one.lm, one.inputs, (), [dictlearn.Push(site, direction)]).logits
        for site in ("mlp_out.1", "resid_post.1")
    )
    assert torch.allclose(at_mlp, at_end, atol=1e-4)
    assert not torch.allclose(at_mlp, one.lm.logits(one.inputs), atol=1e-2)


def test_what_a_control_vector_cannot_hold_is_refused(tmp_path: Path):
    one = torch.ones(4)
    for sites, message in {
        ("attn_out.1",): "attn_out.1 is no end of a block",
        ("resid_post.0",): "adds nothing after block 0",
        ("resid_pre.2", "resid_post.1"): "is the place of another",
    }.items():
        with pytest.raises(ValueError, match=message):
            layers(dict.fromkeys(sites, one))
    for _ in range(2):  # the second replaces our own earlier one
        vector().write_gguf(tmp_path / "v.gguf")
    (tmp_path / "notes.gguf").write_text("mine")
    with pytest.raises(SaveError, match="was not written by dictlearn"):
        vector().write_gguf(tmp_path / "notes.gguf")

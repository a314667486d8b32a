"""SAELens loads what we write and computes the same; we load what it writes."""

from __future__ import annotations

import pytest
import torch

import dictlearn
from dictlearn.export.saelens import SAELens
from tests.peers.roundtrip import FEATURES, WIDTH, K, activations, assert_same, made, written

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    ("kind", "sparsity", "skip", "architecture"),
    [
        ("sae", "topk", False, "topk"),
        ("sae", "jumprelu", False, "jumprelu"),
        ("sae", "relu", False, "standard"),
        ("sae", "gated", False, "gated"),
        ("transcoder", "relu", False, "transcoder"),
        ("transcoder", "relu", True, "skip_transcoder"),
        ("transcoder", "jumprelu", False, "jumprelu_transcoder"),
        ("transcoder", "jumprelu", True, "jumprelu_skip_transcoder"),
    ],
)
@torch.no_grad()
def test_saelens_loads_ours(kind, sparsity, skip, architecture, tmp_path):
    from sae_lens import SAE

    ours = made(kind, sparsity, skip=skip)
    theirs = SAE.load_from_disk(written(SAELens(), ours, tmp_path))
    x_ND = activations()[ours.sources[0]]
    assert_same(ours, theirs.encode(x_ND), theirs(x_ND))
    assert theirs.cfg.architecture() == architecture
    metadata = theirs.cfg.metadata
    hooks = {"sae": "hook_resid_post", "transcoder": "mlp.hook_in"}
    assert metadata.hook_name == f"blocks.1.{hooks[kind]}"
    assert metadata.hook_name_out == {"sae": None, "transcoder": "blocks.1.hook_mlp_out"}[kind]
    assert (metadata.model_name, metadata.context_size, metadata.prepend_bos) == ("pico", 512, True)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("topk", {"k": K}),
        ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        ("jumprelu", {}),
        ("gated", {}),
        ("transcoder", {"d_out": WIDTH, "apply_b_dec_to_input": False}),
        ("skip_transcoder", {"d_out": WIDTH, "apply_b_dec_to_input": False}),
        ("jumprelu_transcoder", {"d_out": WIDTH, "apply_b_dec_to_input": False}),
        ("jumprelu_skip_transcoder", {"d_out": WIDTH, "apply_b_dec_to_input": False}),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())),
)
@torch.no_grad()
def test_we_load_saelens(architecture, options, tmp_path):
    from sae_lens.registry import get_sae_class

    torch.manual_seed(0)
    sae_class, config_class = get_sae_class(architecture)
    config = config_class(d_in=WIDTH, d_sae=FEATURES, **options)
    config.metadata.hook_name = "blocks.1.hook_resid_post"
    if "transcoder" in architecture:
        config.metadata.hook_name = "blocks.1.mlp.hook_in"
        config.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    theirs = sae_class(config)
    for name, parameter in theirs.named_parameters():
        parameter.normal_(std=0.05) if name != "threshold" else parameter.uniform_(0.1, 0.5)
    theirs.save_model(tmp_path)
    ours = dictlearn.load(tmp_path)
    source = "mlp_in.1" if "transcoder" in architecture else "resid_post.1"
    assert ours.sources == (source,)
    assert_same(ours, theirs.encode(activations()[source]), theirs(activations()[source]))

"""sparsify loads what we write and computes the same; we load what it writes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dictlearn
from dictlearn.export.sparsify import Sparsify
from tests.peers.roundtrip import FEATURES, WIDTH, K, activations, assert_same, made, written

pytestmark = pytest.mark.peers


def dense(found) -> Tensor:
    """Their pairs of activations and indices as [N, F]."""
    empty = torch.zeros(len(found.latent_acts), FEATURES)
    return empty.scatter(1, found.latent_indices, found.latent_acts)


@pytest.mark.parametrize(
    ("kind", "skip", "centre", "hookpoint"),
    [
        ("sae", False, True, "layers.1"),
        ("sae", False, False, "layers.1"),
        ("transcoder", False, False, "layers.1.mlp"),
        ("transcoder", True, False, "layers.1.mlp"),
    ],
)
@torch.no_grad()
def test_sparsify_loads_ours(kind, skip, centre, hookpoint, tmp_path):
    from sparsify import SparseCoder

    ours = made(kind, "topk", skip=skip, centre=centre)
    found = SparseCoder.load_many(str(written(Sparsify(), ours, tmp_path)), local=True)
    assert list(found) == [hookpoint]
    theirs = found[hookpoint](activations()[ours.sources[0]])
    assert_same(ours, dense(theirs), theirs.sae_out)


@pytest.mark.parametrize("options", [{}, {"transcode": True}, {"transcode": True, "skip": True}])
@torch.no_grad()
def test_we_load_sparsify(options, tmp_path):
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    skip, transcode = options.get("skip", False), options.get("transcode", False)
    config = SparseCoderConfig(num_latents=FEATURES, k=K, transcode=transcode, skip_connection=skip)
    theirs = SparseCoder(WIDTH, config)
    for parameter in theirs.parameters():
        parameter.normal_(std=0.05)
    folder = tmp_path / ("layers.1.mlp" if transcode else "layers.1")
    theirs.save_to_disk(folder)
    ours = dictlearn.load(folder)
    assert ours.sources == (("mlp_in.1",) if transcode else ("resid_post.1",))
    found = theirs(activations()[ours.sources[0]])
    assert_same(ours, dense(found), found.sae_out)

"""A concept vector finds the features that read or write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dictlearn.features.lookup import Match, difference_of_means, matches
from dictlearn.interventions.directions import vector_from
from tests.features.harvested import KINDS, dictionary_of, pico


@pytest.mark.parametrize("kind", KINDS)
def test_a_features_own_vectors_find_it(kind: str):
    dictionary = dictionary_of(kind)
    last = dictionary.code_sources - 1
    site = dictionary.sources[-1]
    reads = dictionary.encoder.W_enc[last, 3, -dictionary.width :]
    found = matches(dictionary, -2 * reads, site, 3)
    assert found[0].cosine == pytest.approx(-1, abs=1e-5)
    assert (found[0].source, found[0].index, found[0].side) == (last, 3, "encoder")
    if kind != "molt":
        t = len(dictionary.targets) - 1
        writes = dictionary.decoder.written(t, last, slice(5, 6))[0]
        sides = matches(dictionary, 3 * writes, dictionary.targets[t], 2)
        assert any((m.source, m.index, m.side) == (last, 5, "decoder") for m in sides[:2])
        assert sides[0].cosine == pytest.approx(1, abs=1e-5)


def test_every_source_that_reaches_a_site_is_looked_at():
    dictionary = dictionary_of("clt")
    found = matches(dictionary, torch.randn(dictionary.width), "mlp_out.3", 10_000)
    assert len(found) == 3 * dictionary.n_features and {m.side for m in found} == {"decoder"}
    strengths = [abs(match.cosine) for match in found]
    assert strengths == sorted(strengths, reverse=True) and isinstance(found[0], Match)
    assert {m.source for m in matches(dictionary, torch.ones(256), "mlp_out.0", 10**4)} == {0}


@pytest.mark.parametrize(
    ("vector", "site", "message"),
    [
        (torch.ones(256), "resid_post.3", "site=resid_post.3: this sae has resid_post.1"),
        (torch.ones(8), "resid_post.1", r"of shape \(8,\); want 256 numbers"),
        (torch.zeros(256), "resid_post.1", "not all of them zero"),
        (torch.full((256,), torch.nan), "resid_post.1", "want finite numbers"),
    ],
    ids=str,
)
def test_what_fits_nothing_is_refused(vector: torch.Tensor, site: str, message: str):
    with pytest.raises(ValueError, match=message):
        matches(dictionary_of("sae"), vector, site, 3)


def test_vectors_come_from_either_kind_of_file(tmp_path: Path):
    vector = torch.randn(12)
    np.save(tmp_path / "v.npy", vector.numpy())
    save_file({"direction": vector[None].half()}, tmp_path / "v.safetensors")
    assert torch.equal(vector_from(tmp_path / "v.npy"), vector)
    assert torch.allclose(vector_from(tmp_path / "v.safetensors"), vector, atol=1e-2)
    save_file({"a": vector, "b": vector.clone()}, tmp_path / "two.safetensors")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name, message in {
        "two.safetensors": "holds 2 tensors; want one",
        "object.npy": "object.npy is not a readable .npy file: .* Python objects, which are never loaded",
        "missing.npy": "missing.npy is not a readable .npy file: it is not there",
        "missing.safetensors": "is not a readable safetensors file: it is not there",
        "v.pt": "want a .safetensors or a .npy file",
    }.items():
        with pytest.raises(ValueError, match=message):
            vector_from(tmp_path / name)


def test_a_difference_of_means_is_that_of_all_tokens():
    lm, site = pico(), "resid_post.1"
    one = difference_of_means(lm, ["import os", "import sys as system"], ["return x"], site)
    back = difference_of_means(lm, ["return x"], ["import sys as system", "import os"], site)
    assert torch.allclose(one, -back, atol=1e-5) and one.abs().max() > 0
    half, replaced = (
        difference_of_means(lm, [text], ["x"], site) for text in ("a \ud83d", "a \ufffd")
    )
    assert torch.equal(half, replaced)
    same = difference_of_means(lm, ["import os"], ["import os"], site)
    assert same.abs().max() == 0
    with pytest.raises(ValueError, match="neg=.*want at least one text, and none that is empty"):
        difference_of_means(lm, ["x"], [" "], site)

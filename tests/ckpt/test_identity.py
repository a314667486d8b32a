"""A dictionary that came without its manifest is still checked, and an older one is still read."""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from pathlib import Path

import pytest

from dictlearn.ckpt.dictionary import load_dictionary, save_dictionary, saved_sha256
from dictlearn.dicts.identity import sha256_of
from dictlearn.dicts.sae import sae
from dictlearn.sparsity.topk import TopK
from dictlearn.types import ModelInfo

INFO = ModelInfo("toy", None, "toy", n_layers=2, width=8, vocab_size=50, context_length=16)


@pytest.fixture
def saved(tmp_path) -> Path:
    """As a hub hands it out: the two files alone."""
    dictionary = sae(INFO, partial(TopK, k=2), layer=1, n_features=16, k=2)
    save_dictionary(dictionary, tmp_path / "run" / "dictionary", {"model": "toy"})
    shutil.copytree(tmp_path / "run" / "dictionary", tmp_path / "hub")
    (tmp_path / "hub" / "manifest.json").unlink()
    return tmp_path / "hub"


def test_every_bit_of_the_tensors_counts(saved):
    path = saved / "dictionary.safetensors"
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(40):
        place = rng.randrange(len(whole))
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
        )
        with pytest.raises(ValueError, match="dictionary"):
            load_dictionary(saved)
    path.write_bytes(whole)
    assert load_dictionary(saved).provenance == {"model": "toy"}


@pytest.mark.parametrize(("key", "value"), [("k", 3), ("sources", ["resid_post.0"])])
def test_what_is_said_of_them_counts(saved, key, value):
    description = json.loads((saved / "dictionary.json").read_text())
    assert description["dictionary"][key] != value
    description["dictionary"][key] = value
    if key == "sources":
        description["dictionary"]["targets"] = value
    (saved / "dictionary.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="are not what was saved"):
        load_dictionary(saved)


def test_one_that_is_too_old_to_say_is_read(saved):
    description = json.loads((saved / "dictionary.json").read_text())
    del description["sha256"]
    (saved / "dictionary.json").write_text(json.dumps(description | {"format": 1}))
    assert saved_sha256(saved) == sha256_of(load_dictionary(saved))


def test_which_it_is_is_known_without_its_tensors(saved):
    expected = sha256_of(load_dictionary(saved))
    assert saved_sha256(saved.parent / "run") == expected
    (saved / "dictionary.safetensors").unlink()
    assert saved_sha256(saved) == expected
    assert saved_sha256(saved.parent) is None and saved_sha256("owner/name") is None


def test_one_lost_while_it_was_replaced_is_found(saved):
    run = saved.parent / "run"
    (run / "dictionary").rename(run / f"dictionary.old-{10**30}")
    load_dictionary(run)
    assert (run / "dictionary").is_dir()

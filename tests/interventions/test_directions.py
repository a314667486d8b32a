"""Directions from saved vectors, from files of numbers and from features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dictlearn.disk.whole import SaveError
from dictlearn.interventions import directions
from dictlearn.interventions.made_for import made_for
from dictlearn.interventions.vectors import ConceptVector, Separation, _sha256, load_vector
from dictlearn.lm.load import read_info
from tests.interventions.placed import made

INFO = read_info("pico")


def vector(**about: object) -> ConceptVector:
    torch.manual_seed(0)
    vectors = {f"resid_post.{layer}": torch.randn(INFO.width) for layer in range(3)}
    scores = {
        "resid_post.0": Separation(0.75, 0.1, 1.0, 1.0),
        "resid_post.1": Separation(1.0, 0.0, 3.0, 1.0),
        "resid_post.2": Separation(1.0, 0.0, 2.0, 1.0),
    }
    return ConceptVector(vectors, scores, {**made_for(INFO), "method": "mean", **about})


def test_a_saved_vector_is_read_back_and_gives_the_best_site_or_the_named(tmp_path: Path):
    ours = vector()
    ours.save(tmp_path / "v")
    again = load_vector(tmp_path / "v")
    assert again.sites == ours.sites and again.accuracy == ours.accuracy
    assert all(torch.equal(again.at(site), ours.at(site)) for site in ours.sites)
    assert again.provenance == ours.provenance
    best, named = directions.read(tmp_path / "v"), directions.read(tmp_path / "v", "resid_post.0")
    assert best.site == "resid_post.1" and torch.equal(best.vector, ours.at("resid_post.1"))
    assert named.site == "resid_post.0" and float(named.unit.norm()) == pytest.approx(1)
    with pytest.raises(ValueError, match="site=mlp_in.0: the vector is at resid_post.0, "):
        directions.read(tmp_path / "v", "mlp_in.0")


def test_a_vector_replaces_an_earlier_one_and_nothing_else(tmp_path: Path):
    vector().save(tmp_path / "v")
    vector(method="pca").save(tmp_path / "v")
    assert load_vector(tmp_path / "v").provenance["method"] == "pca"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(SaveError, match=r"holds a\.txt"):
        vector().save(tmp_path / "notes")


def test_a_damaged_vector_is_refused(tmp_path: Path):
    vector().save(tmp_path / "v")
    (tmp_path / "v" / "manifest.json").unlink()  # as a download has none
    path = tmp_path / "v" / "vector.json"
    described = json.loads(path.read_text())
    for change in (
        {"format": 2},
        {"sites": {}},
        {"sha256": "0"},
        {"sites": described["sites"] | {"resid_post.0": {"accuracy": "high"}}},
        {"sites": described["sites"] | {"resid_post.9": described["sites"]["resid_post.0"]}},
    ):
        path.write_text(json.dumps(described | change))
        with pytest.raises(ValueError, match="vector"):
            load_vector(tmp_path / "v")
    path.write_text(json.dumps(described))
    load_vector(tmp_path / "v")


@pytest.mark.parametrize(
    "changed",
    [
        {"accuracy": 10**400},
        {"norm": None},
        {"std": True},
        {"separation": 1e300},
        {"accuracy": [1]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_figures_of_a_strangers_file_are_numbers(tmp_path: Path, changed: dict[str, object]):
    vector().save(tmp_path / "v")
    (tmp_path / "v" / "manifest.json").unlink()
    path = tmp_path / "v" / "vector.json"
    described = json.loads(path.read_text())
    described["sites"]["resid_post.0"] |= changed
    del described["sha256"]
    described["sha256"] = _sha256(vector().vectors, described)  # as its author would
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match="'resid_post.0': want finite numbers for accuracy, std"):
        load_vector(tmp_path / "v")


def test_the_file_of_tensors_is_read_by_safetensors_alone(tmp_path: Path):
    vector().save(tmp_path / "v")
    tensors = load_file(tmp_path / "v" / "vector.safetensors")
    assert tensors.keys() == set(vector().sites)
    assert torch.equal(tensors["resid_post.1"], vector().at("resid_post.1"))


def test_a_vector_is_for_its_model(tmp_path: Path):
    vector().check(INFO)
    with pytest.raises(ValueError, match=r"was made for pico, whose width is .*; big has 99"):
        vector().check(replace(INFO, name="big", width=99))
    with pytest.raises(ValueError, match="was made for pico, and tiny has other weights"):
        vector().check(replace(INFO, name="tiny"))
    with pytest.raises(ValueError, match="and pico has other weights"):
        vector(weights="1 bytes, sha256 00").check(INFO)
    plain = directions.Direction(torch.ones(3), None)
    with pytest.raises(ValueError, match="has 3 numbers, and pico has"):
        plain.check(INFO)


def test_a_file_of_numbers_takes_the_site_that_is_named(tmp_path: Path):
    np.save(tmp_path / "v.npy", np.arange(4.0))
    direction = directions.read(tmp_path / "v.npy", "resid_post.1")
    assert direction.site == "resid_post.1" and direction.vector.tolist() == [0, 1, 2, 3]
    np.save(tmp_path / "zero.npy", np.zeros(4))
    np.save(tmp_path / "square.npy", np.ones((4, 4)))
    for name in ("zero", "square"):
        with pytest.raises(ValueError, match="want one vector that is not zero"):
            directions.read(tmp_path / f"{name}.npy")
    with pytest.raises(ValueError, match="want a folder of `dictlearn vector`"):
        directions.read(tmp_path / "absent")


def test_a_feature_is_what_its_decoder_writes():
    sae, clt = made("sae", INFO), made("clt", INFO)
    direction = directions.of_feature_named(sae, "0/5")
    assert direction.site == "resid_post.1"
    assert torch.equal(direction.vector, sae.decoder.written(0, 0, slice(5, 6))[0])
    last = directions.of_feature(clt, 1, 3, "mlp_out.3")
    assert torch.equal(last.vector, clt.decoder.written(3, 1, slice(3, 4))[0])
    assert directions.of_feature(clt, 1, 3).site == "mlp_out.1"
    with pytest.raises(
        ValueError, match=r"site=mlp_out.0: feature mlp_in.1/3 writes to mlp_out.1,"
    ):
        directions.of_feature(clt, 1, 3, "mlp_out.0")
    with pytest.raises(ValueError, match="features of a molt write no fixed direction"):
        directions.of_feature(made("molt", INFO), 0, 3)
    for name in ("0/99", "9/1", "x"):
        with pytest.raises(ValueError, match=f"feature={name}"):
            directions.of_feature_named(sae, name)

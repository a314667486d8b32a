"""conf/experiment: every recipe composes, builds, names its text and says where its numbers are from."""

from __future__ import annotations

import re

import pytest
import torch
from omegaconf import DictConfig

from dictlearn import config
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.load import load_skeleton
from dictlearn.verbs import build

RECIPES = config.options("experiment")


def built(cfg: DictConfig) -> Dictionary:
    """Without weights of the dictionary or the model, whose sizes come with the package."""
    info = load_skeleton(cfg.model.path, cfg.model.revision).info
    with torch.device("meta"):
        return build.build_dictionary(cfg, info)


def test_there_is_one_for_each_kind() -> None:
    kinds = {config.compose("train", [f"experiment={r}"]).dict._target_ for r in RECIPES}
    names = {target.rpartition(".")[2] for target in kinds}
    assert names == {"sae", "transcoder", "clt", "crosscoder", "molt"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_can_be_run_as_it_stands(recipe: str) -> None:
    cfg = config.compose("train", [f"experiment={recipe}"])
    assert cfg.data._target_.endswith("hub_windows")
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", cfg.data.path)
    tokens = build.run_tokens(cfg)
    assert cfg.data.max_tokens == pytest.approx(tokens, rel=0.01)  # each token once
    dictionary = built(cfg)
    for site in {*dictionary.sources, *dictionary.targets}:
        assert re.fullmatch(r"(other/)?(resid_post|mlp_in|mlp_out)\.\d+", site)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_what_it_is_and_where_its_numbers_are_from(recipe: str) -> None:
    cfg = config.compose("train", [f"experiment={recipe}"])
    path = config.conf_dir() / "experiment" / f"{recipe}.yaml"
    comments = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    said = re.search(r"([\d,]+) (?:features|transforms).*?, (\d+)([MB]) tokens", comments[1])
    assert said, comments[1]
    dictionary = built(cfg)
    assert int(said[1].replace(",", "")) == dictionary.n_features
    scale = {"M": 10**6, "B": 10**9}[said[3]]
    assert int(said[2]) * scale == pytest.approx(build.run_tokens(cfg), rel=0.01)
    sources = " ".join(comments[2:])
    assert re.search(r"arXiv \d{4}\.\d{5}|transformer-circuits\.pub|github\.com", sources)

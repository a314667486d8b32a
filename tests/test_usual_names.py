"""What other tools call our keys leads to keys that there are."""

from __future__ import annotations

from omegaconf import OmegaConf

from dictlearn import config, usual_names
from dictlearn.overrides import dotted


def keys_of(verb: str, *choices: str) -> set[str]:
    keys = {key for key, _ in dotted(OmegaConf.to_container(config.raw(verb, choices)))}
    return keys | set(config.groups(verb))


def test_every_key_that_a_name_leads_to_exists() -> None:
    there = keys_of("train") | keys_of("train", "sparsity=relu") | keys_of("train", "dict=clt")
    there |= keys_of("train", "dict=crosscoder") | keys_of("features")
    assert {key for keys in usual_names.USUAL for key in keys} <= there | {"output"}


def test_no_name_has_two_meanings() -> None:
    names = [name for names in usual_names.USUAL.values() for name in names.split()]
    assert len(names) == len(set(names))


def test_the_likeliest_keys_of_a_verb_are_named() -> None:
    train, features = keys_of("train"), keys_of("features")
    assert usual_names.meant_by("Learning-Rate", train) == ["optim.lr"]
    assert usual_names.meant_by("trainer.gradient_clip_val", train) == ["clip_norm"]
    assert usual_names.meant_by("max_tokens", train) == ["steps", "data.max_tokens"]
    assert usual_names.meant_by("max_tokens", features) == ["tokens"]
    assert usual_names.meant_by("learning_rate", features) == []

"""A run continues only with what it was begun with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dictlearn.ckpt.diff import (
    ABSENT,
    Difference,
    differences,
    refuse_changed_contents,
    refuse_changes,
)

SAVED = {
    "name": "clt-7",
    "steps": 2000,
    "seed": 0,
    "optim": {"lr": 0.001, "betas": [0.9, 0.98], "fused": True, "decay": None},
    "logger": {"csv": {"every": 1}},
    "trainer": {"precision": "bf16", "devices": 1},
    "loggers_of_another_kind": 1,
    "empty": {},
}


def changed(**changes: object) -> dict:
    config = {
        key: dict(value) if isinstance(value, dict) else value for key, value in SAVED.items()
    }
    for path, value in changes.items():
        *groups, key = path.split("__")
        target = config
        for group in groups:
            target = target[group]
        target[key] = value
    return config


def test_the_same_config_may_resume():
    refuse_changes(SAVED, changed(), Path("runs/x"))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"steps": 4000},
        {"logger": {"wandb": {"project": "x"}}},
        {"logger__csv": None},
        {"trainer__devices": "auto"},
        {"resume": "auto"},
        {"seed": 0.0},  # the same number
        {"optim__betas": (0.9, 0.98)},
    ],
    ids=str,
)
def test_keys_that_do_not_change_what_is_computed_may_differ(change):
    refuse_changes(SAVED, changed(**change), Path("runs/x"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"optim__lr": 0.003}, "optim.lr: 0.001 in the checkpoint, 0.003 now"),
        ({"optim__betas": [0.9]}, "optim.betas: [0.9, 0.98] in the checkpoint, [0.9] now"),
        ({"optim__fused": 1}, "optim.fused: true in the checkpoint, 1 now"),
        ({"optim__decay": 0}, "optim.decay: null in the checkpoint, 0 now"),
        ({"optim__new": "x"}, 'optim.new: absent in the checkpoint, "x" now'),
        ({"trainer__precision": "32"}, 'trainer.precision: "bf16" in the checkpoint, "32" now'),
        ({"loggers_of_another_kind": 2}, "loggers_of_another_kind: 1 in the checkpoint, 2 now"),
        ({"empty": {"a": 1}}, "empty.a: absent in the checkpoint, 1 now"),
        ({"seed": math.nan}, "seed: 0 in the checkpoint, NaN now"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_any_other_difference_is_refused_and_shown(change, text):
    with pytest.raises(ValueError) as caught:
        refuse_changes(SAVED, changed(**change), Path("runs/x"))
    assert text in str(caught.value)
    assert str(caught.value).startswith("resume=runs/x: the config is not the one of this run (")


def test_every_difference_is_shown_and_each_can_be_allowed():
    now = changed(optim__lr=1.0, seed=7)
    with pytest.raises(ValueError, match=r"\(seed: 0 .* 7 now; optim.lr: 0.001 .* 1.0 now\)"):
        refuse_changes(SAVED, now, Path("x"))
    with pytest.raises(ValueError, match=r"\(seed: 0 in the checkpoint, 7 now\)"):
        refuse_changes(SAVED, now, Path("x"), allow=["optim"])
    refuse_changes(SAVED, now, Path("x"), allow=["optim.lr", "seed"])


def test_a_key_that_went_away_is_a_difference():
    now = changed()
    del now["seed"]
    assert differences(SAVED, now) == [Difference("seed", 0, ABSENT)]
    assert differences({"a": math.nan}, {"a": math.nan}) == []


def test_a_moving_average_belongs_to_the_run():
    """Without it the average would become the weights that training goes on from."""
    averaged = {**SAVED, "callbacks": {"ema": {"decay": 0.999}, "bar": {"line_seconds": 30}}}
    plain = {**SAVED, "callbacks": {"bar": {"line_seconds": 5}}}
    with pytest.raises(ValueError, match=r"callbacks.ema.decay: 0.999 .*, absent now"):
        refuse_changes(averaged, plain, Path("x"))
    with pytest.raises(ValueError, match=r"callbacks.ema.decay: absent .*, 0.999 now"):
        refuse_changes(plain, averaged, Path("x"))
    refuse_changes(averaged, {**averaged, "callbacks": {"ema": {"decay": 0.999}}}, Path("x"))


WAS = {"model.weights": "5 bytes, sha256 a", "model.config": "c", "tokenizer": "t", "data": "d"}


def test_other_contents_behind_the_same_paths_are_refused_by_name():
    now = {**WAS, "model.weights": "5 bytes, sha256 b", "data": "e"}
    with pytest.raises(ValueError) as caught:
        refuse_changed_contents(WAS, now, Path("x"))
    said = str(caught.value)
    assert 'model.weights: "5 bytes, sha256 a" in the checkpoint, "5 bytes, sha256 b" now' in said
    assert said.endswith("allow_changed=[model,data]")
    with pytest.raises(ValueError, match=r"\(data: .*allow_changed=\[model,data\]$"):
        refuse_changed_contents(WAS, now, Path("x"), ["model"])
    refuse_changed_contents(WAS, now, Path("x"), ["model", "data"])
    refuse_changed_contents(WAS, dict(WAS), Path("x"))
    refuse_changed_contents({}, now, Path("x"))  # an older checkpoint says nothing
    with pytest.raises(ValueError, match="allow_changed=weather: want a list of model, tokenizer"):
        refuse_changed_contents(WAS, now, Path("x"), ["weather"])


def test_two_spellings_of_a_path_are_equal():
    saved = {"data": {"paths": ["a.txt"], "path": "owner/name"}, "k": [4]}
    for paths in ("a.txt", "./a.txt", ["b/../a.txt"]):
        assert differences(saved, {"data": {"paths": paths, "path": "owner/name"}, "k": [4]}) == []
    other = {"data": {"paths": ["a.txt", "b.txt"], "path": "owner/other"}, "k": 4}
    assert [one.key for one in differences(saved, other)] == ["data.paths", "data.path", "k"]

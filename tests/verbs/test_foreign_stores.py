"""Runs that train on what other tools stored, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.activations import foreign
from tests.activations.foreign import FORMATS
from tests.verbs.test_cache import LAYER, dictlearn_trains

WIDTH = 256  # pico's
RUN = [
    "steps=2",
    "batch_tokens=32",
    "source.buffer_tokens=64",
    "eval_tokens=128",
    "source.model=any",
]


KINDS = {
    "activault": ["dict=transcoder", "dict.layer=1"],
    "bionemo": ["dict=sae", "dict.layer=1", "source.names={resid_post.1: activations}"],
    "clt_forge": ["dict=clt", "dict.layers=[0,1]", "dict.reads=mlp_norm"],
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_short_run_on_every_format(tmp_path, name):
    FORMATS[name](tmp_path / "acts", width=WIDTH)
    assert dictlearn_trains(tmp_path, "name=a", *RUN, layer=KINDS.get(name, LAYER)) == 0
    figures = json.loads((tmp_path / "runs/a/figures.json").read_text())["figures"]
    assert figures["fvu"] > 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["dict=transcoder"], "source.path=acts: has no mlp_in.1; it has resid_post.1"),
        (["objective=kl"], "or source=cache_windows for a store"),
        (["source=cache_windows"], "source.path=acts: its rows are not kept in windows"),
        (["source.names={resid_post.1: x}"], "source.names says that its x is resid_post.1"),
        (["source.names=x"], "source.names=x: want"),
        (["source.special=drop"], "source.special=drop: want"),
        (["source.format=llamascopium"], "acts has no chunk-*.safetensors"),
    ],
    ids=str,
)
def test_what_a_store_cannot_serve_is_refused_before_work(tmp_path, capsys, overrides, sentence):
    foreign.saelens(tmp_path / "acts", width=WIDTH)
    assert dictlearn_trains(tmp_path, "name=refused", *overrides) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs/refused").exists()


def test_a_width_that_is_not_the_models_is_refused(tmp_path: Path, capsys):
    foreign.saelens(tmp_path / "acts", width=48)
    assert dictlearn_trains(tmp_path, "name=refused") == 2
    assert f"its resid_post.1 is 48 wide, and pico is {WIDTH} wide" in capsys.readouterr().err

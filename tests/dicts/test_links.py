"""Links: what a description says of them, how a name finds them, and that nobody asks their class."""

from __future__ import annotations

import ast
import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import dictlearn
from dictlearn.dicts.clt import clt
from dictlearn.dicts.crosscoder import crosscoder
from dictlearn.dicts.decoder import Decoder
from dictlearn.dicts.description import from_json, shape_from_json
from dictlearn.dicts.diagonal import Diagonal
from dictlearn.dicts.link import Link, links
from dictlearn.dicts.linked import Lower
from dictlearn.dicts.molt import molt
from dictlearn.dicts.sae import sae
from dictlearn.dicts.shape import Shape
from dictlearn.types import ModelInfo
from tests.dictionaries import SPARSITIES, small_dictionary

ROOT = Path(dictlearn.__file__).parent
INFO = ModelInfo("tiny", None, "qwen3", 2, 12, 100, 64)
# The link's part of a dictionary.json, which its hash is over: what version 0.1 wrote, key by key.
SAID = {
    "sae": '"link": "diagonal", "window": null, "tied": false, "norm": "concat", "ranks": []',
    "clt": '"link": "lower", "window": 2, "tied": true, "norm": "concat", "ranks": []',
    "crosscoder": '"link": "shared", "window": null, "tied": false, "norm": "sum", "ranks": []',
    "molt": '"link": "transforms", "window": null, "tied": false, "norm": "concat", "ranks": [3, 2]',
}
MADE = {
    "sae": (sae, {"n_features": 8, "k": 4}),
    "clt": (clt, {"n_features": 8, "k": 4, "window": 2, "tied": True}),
    "crosscoder": (crosscoder, {"n_features": 8, "k": 4, "norm": "sum"}),
    "molt": (molt, {"ranks": [3, 2], "k": 1}),
}


@pytest.mark.parametrize("kind", SAID)
def test_a_description_reads_as_before_links_were_objects(kind):
    make, options = MADE[kind]
    dictionary = make(INFO, SPARSITIES["relu"], **options)
    text = json.dumps(dictionary.to_json())
    assert f'"prefixes": [], {SAID[kind]}, "sparsity": ' in text
    assert from_json(json.loads(text)).shape == dictionary.shape


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"link": "nowhere"}, r"link 'nowhere' is not one of .*'diagonal', .*--config-dir"),
        ({"window": 2}, "window=2: link=diagonal has none"),
        ({"tied": 0}, "tied=0: link=diagonal has none"),
        ({"ranks": [1]}, r"ranks=\(1,\): link=diagonal has none"),
        ({"link": "shared", "norm": "max"}, "norm='max': want concat or sum"),
        ({"link": "lower", "window": 0}, "window=0: want a whole number of at least 1 or null"),
        ({"link": "lower", "targets": ["a", "b"]}, "link=lower has as many as sources, 1"),
        ({"evil": 1}, "'evil': a dictionary has no such key"),
    ],
)
def test_what_a_link_is_not_is_named(options, sentence):
    described = small_dictionary().to_json() | options
    with pytest.raises(ValueError, match=sentence):
        shape_from_json(described)


def test_a_link_without_one_of_its_own_options_takes_the_default():
    described = small_dictionary(sites=2, link="lower", window=1).to_json()
    del described["window"], described["norm"]
    assert shape_from_json(described).link == Lower()


def test_two_links_of_one_name_and_options_that_are_taken_are_refused():
    @dataclass(frozen=True)
    class Again(Link):
        name: ClassVar[str] = "diagonal"
        width: int = 3
        decoder = Diagonal.decoder

    with pytest.raises(ValueError, match="Again: its name 'diagonal' is that of dictlearn.dicts"):
        links()
    Again.name = "again"
    assert links()["again"] is Again
    with pytest.raises(ValueError, match="link=again: width is an option of every dictionary"):
        Shape("sae", ("a",), ("a",), 3, 4, 1, link=Again()).check()
    del Again
    gc.collect()


def test_a_decoder_that_does_not_say_what_it_costs_has_no_plan():
    decoder = small_dictionary().decoder
    with pytest.raises(ValueError, match="DiagonalDecoder does not state its costs: a plan needs"):
        Decoder.costs(decoder, 4)


def classes(*parents: str) -> set[str]:
    """Names of the classes in dicts/ below these."""
    found = set(parents)
    for path in sorted((ROOT / "dicts").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(b) in parents for b in node.bases
            ):
                found.add(node.name)
    return found


def outside() -> Iterator[tuple[Path, ast.AST]]:
    for path in sorted(ROOT.rglob("*.py")):
        if path.parent != ROOT / "dicts":
            yield from ((path, node) for node in ast.walk(ast.parse(path.read_text())))


def test_nobody_asks_for_the_class_of_a_decoder_or_a_link():
    """What a room wants to know of one is a method, so that a new one is a new file."""
    decoders, known = classes("Decoder"), classes("Decoder", "Link") | {"LinearEncoder"}
    assert {"LinkedDecoder", "TransformDecoder"} < decoders and {"Lower", "Shared"} < known
    for path, node in outside():
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "isinstance",
            "issubclass",
            "type",
        ):
            named = {
                n.id for arg in node.args[1:] for n in ast.walk(arg) if isinstance(n, ast.Name)
            }
            assert not named & known, f"{path}:{node.lineno}"
        if isinstance(node, ast.ImportFrom):
            named = {one.name for one in node.names}
            assert not named & (decoders - {"Decoder"}), f"{path}:{node.lineno}"

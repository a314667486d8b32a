"""Every public function says in one sentence what it takes, whatever it is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dictlearn
from dictlearn.api.features import Features
from dictlearn.api.model import OpenModel
from dictlearn.dicts.dictionary import Dictionary
from tests.dictionaries import small_dictionary
from tests.store.made import made_store

INTS, RAGGED = torch.zeros(3, 4, dtype=torch.int64), [[1], [2, 3]]
Call = Callable[[Any], Any]


@pytest.fixture(scope="module")
def model() -> OpenModel:
    return dictlearn.open_model("pico")


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    return small_dictionary().float()


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return dictlearn.features(made_store(tmp_path_factory.mktemp("run")).folder.parent)


def refused(call: Call, given: Any) -> str:
    """The sentence. A line, an end, and none of torch's or Python's own words."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call(given)
    said = str(caught.value)
    assert 15 < len(said) < 400 and "\n" not in said
    for own in (
        "object has no attribute",
        "not subscriptable",
        "not iterable",
        "argument",
        "infer",
    ):
        assert own not in said
    return said


PLACES: dict[str, Call] = {
    "load": dictlearn.load,
    "features": lambda given: dictlearn.features(given),
    "evaluate": dictlearn.evaluate,
    "open_model": dictlearn.open_model,
}


@pytest.mark.parametrize("given", [None, 3, "", [], b"x", INTS], ids=ascii)
@pytest.mark.parametrize("name", PLACES)
def test_a_place_is_text(name: str, given: Any) -> None:
    assert refused(PLACES[name], given).startswith(f"{name}: want a")


def test_a_revision_is_text() -> None:
    assert "revision=3: want" in refused(lambda given: dictlearn.load("x", given), 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "token ids as a NoneType: want"),
        (RAGGED, "token ids as a list: want whole numbers, .* rows of one length"),
        (["a"], "token ids as a list"),
        ({}, "token ids as a dict"),
        ([1.5], "token ids of shape .* and float32: want whole numbers"),
        (3, r"token ids of shape \(\) and int64"),
        ([True], "and bool"),
        ([10**30], "token ids as a list"),
        ([4096], "token ids: pico has those from 0 to 4095"),
        ([], "there are no tokens to read"),
    ],
    ids=ascii,
)
def test_tokens_are_whole_numbers(model: OpenModel, given: Any, said: str) -> None:
    sentences = [refused(lambda ids: model.activations(ids, "resid_post.1"), given)]
    if given != []:
        sentences += [refused(model.pieces, given), refused(model.special, given)]
    for sentence in sentences:
        with pytest.raises(ValueError, match=said):
            raise ValueError(sentence)
    assert "want a text, not a" in refused(model.tokens, given)


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ("resid_post.9", "site resid_post.9: pico has layers 0 to 3, so the last is resid_post.3"),
        ("resid_post", "site 'resid_post': the sites of pico are"),
        (None, "sites=None: want the name of a site, or a list of names"),
        ([], "sites=[]: want"),
        ([3], "sites=[3]: want"),
    ],
    ids=ascii,
)
def test_a_site_is_named(model: OpenModel, sites: Any, said: str) -> None:
    assert said in refused(lambda given: model.activations("abc", given), sites)


WRONG = [None, 3, "x", [], INTS, torch.zeros(3, 3), torch.zeros(3, 4) > 0, torch.zeros(())]


@pytest.mark.parametrize("given", WRONG, ids=lambda given: ascii(given)[:30])
@pytest.mark.parametrize(
    "method", ["encode", "encode_training", "forward", "decode", "encode_source"]
)
def test_a_dictionary_takes_activations_and_codes(
    dictionary: Dictionary, method: str, given: Any
) -> None:
    function: Call = getattr(dictionary, method)
    arguments = (0,) if method == "encode_source" else ()
    said = refused(lambda x: function(x, *arguments), given)
    assert "want" in said or "reads" in said or "decodes" in said


@pytest.mark.parametrize("number", [None, -1, 9, "0", 1.0, True], ids=ascii)
def test_sources_and_targets_go_by_their_numbers(dictionary: Dictionary, number: Any) -> None:
    x = torch.zeros(2, dictionary.width)
    calls: list[Call] = [
        lambda s: dictionary.encode_source(x, s),
        dictionary.reads,
        lambda t: dictionary.decode_target(t, {}, {}),
    ]
    for call in calls:
        assert "want a whole number from 0 to 0" in refused(call, number)


@pytest.mark.parametrize("codes", [None, {}, {0: None}, [1]], ids=ascii)
def test_a_target_wants_the_codes_that_it_reads(dictionary: Dictionary, codes: Any) -> None:
    said = refused(lambda given: dictionary.decode_target(0, given, {}), codes)
    assert "that of source 0 is missing" in said


@pytest.mark.parametrize("key", [None, 1.5, [], {}, ("a", 1)], ids=ascii)
def test_a_feature_goes_by_number_or_name(features: Features, key: Any) -> None:
    assert "want a number, a name such as" in refused(features.__getitem__, key)


def test_features_are_asked_with_words_and_numbers(features: Features) -> None:
    assert "want words as text" in refused(features.search, None)
    assert "examples=-1: want" in refused(features.rows, -1)
    assert "source=9: want" in refused(lambda source: features.name(source, 0), 9)
    assert "index=None: want" in refused(lambda index: features.name(0, index), None)


def test_a_run_is_a_place(tmp_path: Path) -> None:
    from dictlearn.api.results import Run, place_of

    assert place_of("load", Run(tmp_path)) == tmp_path

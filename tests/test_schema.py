"""Wrong types at every key of every verb: each is refused in a sentence, or becomes the right type."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from dictlearn import config, overrides, schema, signatures
from dictlearn.ranges import Range
from dictlearn.schema import MISFIT, Wanted
from dictlearn.verbs import plan

THROWN = ["abc", "1e3", "1.5", "true", "null", "[]", "[abc]", "{}", "-1", "0", "nan", "inf"]
VERBS = sorted(config.verbs())


def tree_of(verb: str, *chosen: str) -> dict[str, Any]:
    tree = OmegaConf.to_container(config.raw(verb, chosen))
    assert isinstance(tree, dict)
    return {str(name): node for name, node in tree.items() if name != "hydra"}


def targets() -> list[tuple[str, str, Any]]:
    """(file, key, value) of every key that is bound to a parameter, in every yaml."""
    found = []

    def below(file: str, node: Any) -> None:
        if not isinstance(node, dict):
            return
        for name, value in node.items():
            if "_target_" in node and name != "defaults" and not name.startswith("_"):
                found.append((file, node["_target_"], name))
            below(file, value)

    for path in sorted(config.conf_dir().glob("*/*.yaml")):
        if path.parent.name not in ("sweep", "hydra", "local"):
            below(
                str(path.relative_to(config.conf_dir())),
                OmegaConf.to_container(OmegaConf.load(path)),
            )
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_of_a_verb_has_a_type(verb: str) -> None:
    takes = schema.keys(verb, tree_of(verb))
    untyped = [key for key, wanted in takes.items() if wanted.anything]
    assert not untyped


def test_every_key_of_every_yaml_has_a_type() -> None:
    untyped = []
    for file, target, name in targets():
        known = signatures.signature(target)
        assert known is not None, (file, target)
        one = known.parameters[name]
        if schema.wanted(one.annotation, one.module).anything:
            untyped.append((file, name))
    assert not untyped


def as_typed(verb: str, text: str, takes: dict[str, Wanted]) -> str:
    (translated,) = config.translated([text])
    return overrides._fitted(translated, overrides._parsed(translated), takes)


@pytest.mark.parametrize("verb", VERBS)
def test_wrong_types_at_every_key(verb: str) -> None:
    """Each is one sentence that names key and value, or a value that the key's kind allows."""
    takes = schema.keys(verb, tree_of(verb))
    groups = config.groups(verb)
    for key, wanted in takes.items():
        if key in groups:
            continue
        refused = 0
        for value in THROWN:
            try:
                as_typed(verb, f"{key}={value}", takes)
            except ValueError as error:
                refused += 1
                assert str(error).startswith(f"{key}={value.removesuffix('e3')}"), error
                assert "want" in str(error) and "\n" not in str(error)
        assert refused, (key, str(wanted))  # at least {} is no key's value


PAIRS = {
    "dict.n_features": [("1e3", 1000), ("1.5", MISFIT), ("abc", MISFIT), ("0", MISFIT)],
    "dict.layer": [("1.0", 1), ("null", None), ("[0,1]", MISFIT), ("-1", MISFIT)],
    "dict.prefixes": [("0.5", [0.5]), ("[]", []), ("abc", MISFIT), ("[0.5,abc]", MISFIT)],
    "seed": [("1e3", 1000), ("1.5", MISFIT), ("true", MISFIT), ("5e9", MISFIT)],
    "optim.lr": [("1", 1), ("-1", MISFIT), ("nan", MISFIT), ("inf", MISFIT), ("'1'", MISFIT)],
    "optim.betas": [("[0.9,0.99]", [0.9, 0.99]), ("[0.9]", MISFIT), ("[0.9,1]", MISFIT)],
    "callbacks.checkpoint.every_steps": [("0", MISFIT), ("1e4", 10_000), ("null", None)],
    "callbacks.checkpoint.on_error": [("raise", "raise"), ("shout", MISFIT)],
    "callbacks.checkpoint": [("null", None), ("3", MISFIT), ("abc", MISFIT)],
    "eval_tokens": [("0", MISFIT), ("1e3", 1000)],
    "eval.baselines.fit_tokens": [("1", MISFIT), ("2", 2)],
    "eval.downstream.max_tokens": [("0", MISFIT), ("null", None)],
    "schedule.decay": [("-1", MISFIT), ("0", 0)],
    "spike_sigma": [("0", MISFIT), ("6", 6)],
    "objective.reduction": [("median", MISFIT), ("fvu", "fvu")],
    "init": [("123", "123"), ("true", MISFIT), ("[a]", MISFIT)],
    "resume": [("auto", "auto"), ("true", MISFIT), ("1e3", "1000.0")],
    "beside": [("true", True), ("auto", "auto"), ("maybe", MISFIT)],
    "model.dtype": [("bfloat16", "bfloat16"), ("int3", MISFIT)],
    "trainer.devices": [("2", 2), ("auto", "auto"), ("[0,1]", [0, 1]), ("[a]", MISFIT)],
    "trainer.precision": [("16-true", MISFIT), ("bf16-mixed", "bf16-mixed")],
}


@pytest.mark.parametrize("key", PAIRS)
def test_what_becomes_of_a_value(key: str) -> None:
    takes = schema.keys("train", tree_of("train"))
    for text, expected in PAIRS[key]:
        (given,) = overrides._values(overrides._parsed(f"{key}={text}"))
        fitted = takes[key].fitted(overrides._plain(given))
        assert fitted is expected or (fitted == expected and type(fitted) is type(expected)), text


RANGES = {
    Range(2): (" of at least 2", [1]),
    Range(0, above=True): (" above 0", [0]),
    Range(0, 1): (" from 0 to 1", [-0.1, 1.1]),
    Range(0, 1, above=True): (" above 0 and at most 1", [0, 1.1]),
    Range(0, 1, below=True): (" from 0 to below 1", [-0.1, 1]),
    Range(0, 1, above=True, below=True): (" above 0 and below 1", [0, 1]),
}


@pytest.mark.parametrize("range_", RANGES, ids=str)
def test_a_range_leaves_out_what_it_says(range_: Range) -> None:
    words, outside = RANGES[range_]
    assert str(range_) == words
    assert 0.5 + 2 * (range_.most > 1) in range_ and not any(number in range_ for number in outside)


LISTS = {
    ("dict=crosscoder", "dict.sites=resid_post.1"): ("dict.sites", ["resid_post.1"]),
    ("dict=clt", "dict.layers=3"): ("dict.layers", [3]),
    ("dict=molt", "dict.ranks=[4,4.0]"): ("dict.ranks", [4, 4]),
    ("data=text", "data.paths=notes.txt"): ("data.paths", "notes.txt"),
    ("name=1e3",): ("name", "1000.0"),
}


@pytest.mark.parametrize("given", LISTS, ids=" ".join)
def test_one_value_where_a_list_is_wanted_is_a_list_of_it(given: tuple[str, ...]) -> None:
    key, expected = LISTS[given]
    assert OmegaConf.select(config.compose("train", given), key) == expected


def test_a_list_of_letters_is_none() -> None:
    with pytest.raises(
        ValueError, match=r"dict.ranks=abc: want a list of whole numbers of at least 1"
    ):
        config.compose("train", ["dict=molt", "dict.ranks=abc"])


def test_a_value_of_ones_own_yaml_is_checked_too() -> None:
    cfg = OmegaConf.create({"steps": "many"})
    with pytest.raises(ValueError, match="steps=many: want a whole number"):
        schema.check("train", cfg)


def test_a_target_of_ones_own_is_typed_by_its_signature(tmp_path: Path, monkeypatch) -> None:
    """Read, not imported: this one can't be."""
    code = "from dictlearn.ranges import Count\nimport no_such_module\n\nMany = Count | None\n"
    code += "class Mine:\n    def __init__(self, n: Many, word, *, on: 'bool' = True): ..."
    (tmp_path / "mine_of_a_test.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    tree = {"mine": {"_target_": "mine_of_a_test.Mine", "n": 1, "word": "a", "on": False}}
    takes = schema.keys("train", tree)
    assert str(takes["mine.n"]) == "a whole number of at least 1, or null"
    assert takes["mine.word"].anything
    assert takes["mine.on"].switch
    cfg = OmegaConf.create({"mine": {**tree["mine"], "m": 2}})
    with pytest.raises(ValueError, match=r"mine.m: mine_of_a_test.Mine takes no such argument"):
        schema.check("train", cfg)


def test_a_target_without_a_source_is_typed_by_its_yaml() -> None:
    tree = {"mine": {"_target_": "no.such.module", "n": 1}}
    assert schema.keys("train", tree)["mine.n"].whole is not None


def accepted() -> list[str]:
    """Of the values thrown at train's keys, those that pass: a sample, always the same."""
    takes = schema.keys("train", tree_of("train"))
    found = []
    for key in takes:
        for value in THROWN:
            try:
                found.append(as_typed("train", f"{key}={value}", takes))
            except (ValueError, KeyError):
                continue
    return random.Random(0).sample(found, 12)


@pytest.mark.parametrize("override", accepted())
def test_what_passes_is_no_traceback_later(override: str, tmp_path: Path, monkeypatch) -> None:
    """plan builds all that training builds before it works."""
    monkeypatch.chdir(tmp_path)
    try:
        made = plan.planned(config.compose("plan", [override, "trainer=cpu"]))
    except (ValueError, HydraException) as error:
        assert override.partition("=")[0] in str(error)
    else:
        assert all("\n" not in sentence for sentence in made.mistakes.values())
    assert not list(tmp_path.iterdir())

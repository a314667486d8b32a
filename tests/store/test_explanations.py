"""explanations.jsonl survives a kill, and later lines win."""

from __future__ import annotations

import json

import pytest

from dictlearn.store.explanations import (
    FILE,
    Explanation,
    ExplanationWriter,
    Failure,
    add_explanations,
    read_explanations,
)


def one(feature: int = 17, text: str = "the token `self` after `(`", **changed) -> Explanation:
    options = {
        "scores": {"balanced_accuracy": 0.91, "precision": 0.4},
        "baselines": {"shuffled": 0.5},
        "n_examples": 60,
        "reliable": True,
        "failing": (Failure("def f(<<self>>)", fired=False, predicted=True),),
    }
    return Explanation(0, feature, text, "lexical", **{**options, **changed})


def test_what_was_written_is_read_back(tmp_path):
    folder = tmp_path / "features"
    both = [one(3), one(17, "«ü»\n a second line\u2028", model="m", prompt_hash="ab")]
    add_explanations(folder, both)
    assert read_explanations(folder) == {(0, 3): both[0], (0, 17): both[1]}


def test_nothing_there_is_nothing_said(tmp_path):
    assert read_explanations(tmp_path / "nowhere") == {}


def test_later_lines_win(tmp_path):
    add_explanations(tmp_path, [one(text="first")])
    add_explanations(tmp_path, [one(text="second")])
    assert read_explanations(tmp_path)[0, 17].text == "second"


def test_half_a_last_line_is_passed_over_and_then_replaced(tmp_path):
    add_explanations(tmp_path, [one(1), one(2)])
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-30])
    assert list(read_explanations(tmp_path)) == [(0, 1)]
    add_explanations(tmp_path, [one(3)])
    assert list(read_explanations(tmp_path)) == [(0, 1), (0, 3)]


@pytest.mark.parametrize("damage", ["{", '{"source": 0}', "[1]", '{"other": 1}'])
def test_a_damaged_line_further_up_is_an_error(tmp_path, damage):
    add_explanations(tmp_path, [one(1)])
    path = tmp_path / FILE
    path.write_text(damage + "\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1: not an explanation") as caught:
        read_explanations(tmp_path)
    assert "__init__" not in str(caught.value)  # Python's words are about code


def test_an_undefined_score_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="feature 17: precision=nan"):
        add_explanations(tmp_path, [one(1), one(scores={"precision": float("nan")})])
    assert read_explanations(tmp_path) == {}


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        ({}, {"text": ""}, True),
        ({}, {"text": "", "scores": {}}, True),
        ({}, {"text": "unscored", "scores": {}}, True),
        ({"scores": {}}, {"text": "", "scores": {}}, True),
        ({"scores": {}}, {"text": "another, unscored", "scores": {}}, False),
        ({"text": ""}, {"text": "unscored", "scores": {}}, False),
        ({"text": "", "scores": {}}, {"text": ""}, False),
        ({}, {"text": "worse", "reliable": False}, False),
    ],
    ids=str,
)
def test_nothing_is_replaced_by_less(tmp_path, before, after, stays):
    add_explanations(tmp_path, [one(**before)])
    writer = ExplanationWriter(tmp_path)
    writer.add([one(**after), one(18, text="")])
    assert read_explanations(tmp_path)[0, 17] == (one(**before) if stays else one(**after))
    assert writer.left == ({(0, 17)} if stays else set())
    assert writer.described == (0 if stays or not after.get("text") else 1)
    assert read_explanations(tmp_path)[0, 18].text == ""


def test_half_a_surrogate_is_written_as_what_it_is_not(tmp_path):
    add_explanations(
        tmp_path, [one(text="faces \ud83d", failing=(Failure("\udc00", True, False),))]
    )
    found = read_explanations(tmp_path)[0, 17]
    assert found.text == "faces \N{REPLACEMENT CHARACTER}"
    assert found.failing[0].text == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", "0"),
        ("feature", -1),
        ("text", 5),
        ("scores", [1]),
        ("scores", {"a": "high"}),
        ("scores", {"a": float("nan")}),
        ("reliable", "yes"),
        ("model", {}),
        ("failing", [{"text": 1, "fired": True, "predicted": True}]),
        ("failing", 5),
    ],
)
def test_a_value_of_another_type_is_an_error(tmp_path, field, value):
    path = add_explanations(tmp_path, [one(1)])
    line = json.dumps({**json.loads(path.read_text()), field: value})
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match="line 1: not an explanation"):
        read_explanations(tmp_path)


def test_a_disk_that_takes_nothing_is_named(tmp_path):
    (tmp_path / "features").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=f"cannot save .*{FILE}"):
        add_explanations(tmp_path / "features", [one(1)])


def test_what_was_said_of_another_dictionary_is_not_shown_and_is_no_obstacle(tmp_path):
    ExplanationWriter(tmp_path, "old").add([one(1, "of the old one"), one(2, "of the old one")])
    writer = ExplanationWriter(tmp_path, "new")
    writer.add([one(1, "", scores={})])
    assert not writer.left
    new = {key: said.text for key, said in read_explanations(tmp_path, "new").items()}
    assert new == {(0, 1): ""}
    assert read_explanations(tmp_path, "old")[0, 2].text == "of the old one"
    assert len(read_explanations(tmp_path)) == 2

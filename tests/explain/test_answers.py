"""Descriptions and lists of numbers are found among thoughts and Markdown."""

from __future__ import annotations

import pytest

from dictlearn.explain.answers import LONGEST, description, numbers, spoken


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a\nDESCRIPTION: the token x\nmore", "the token x"),
        ("first\nthe token x\n", "the token x"),
        (" \n", ""),
        ("They look alike.\n\n**DESCRIPTION:** words near the cat", "words near the cat"),
        ("**DESCRIPTION: words near the cat**", "words near the cat"),
        ("**Description**: *words* near the cat", "*words* near the cat"),
        ("### DESCRIPTION:\n\n- words near\n- more", "words near"),
        ("> - _DESCRIPTION:_ words", "words"),
        ("**DESCRIPTION:**\n**all of it**", "all of it"),
        ("```\nDESCRIPTION: words\n```", "words"),
        ("```text\nwords\n```", "words"),
        ("`DESCRIPTION: words`", "words"),
        ("So DESCRIPTION: `self` after `(`", "`self` after `(`"),
        ("DESCRIPTION: `a` or `b`", "`a` or `b`"),
        ("DESCRIPTION: __init__ or the token *", "__init__ or the token *"),
        ('DESCRIPTION: "words"', "words"),
        ("DESCRIPTION: first\nDESCRIPTION: second", "second"),
        ("DESCRIPTION:", ""),
    ],
)
def test_a_description_is_what_follows_its_mark(answer, expected):
    assert description(answer) == expected


def test_of_a_cut_answer_only_what_is_marked_counts():
    assert description("I look at each\nand every", whole=False) == ""
    assert description("I must end with DESCRIPTION: and then", whole=False) == ""
    assert description("x\nDESCRIPTION: words ne", whole=False) == "words ne"


def test_a_description_is_no_book():
    said = description("DESCRIPTION: " + "A" * 10**6)
    assert len(said) == LONGEST and said.endswith("A…")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("<think>\nhm [1]\n</think>\nDESCRIPTION: x", "DESCRIPTION: x"),
        ("<Thinking>a</Thinking>b<think>c</think> d", "d"),
        ("the template opened it</think>x", "x"),  # its opening tag stands in the prompt
        ("<think>DESCRIPTION: I wonder", ""),
        ("[THINK]hm[/THINK]x", "x"),
        ("<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>x<|return|>", "x"),
        ("<|channel|>analysis<|message|>hm", ""),
        (
            "DESCRIPTION: the token `<think>` or `</think>`",
            "DESCRIPTION: the token `<think>` or `</think>`",
        ),
    ],
)
def test_thoughts_are_left_out(text, expected):
    assert spoken(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 0, 1]", [1, 0, 1]),
        ("I think [1, 0] or rather\n[0, 0, 1].", [0, 0, 1]),
        ("```json\n[1, 0, 1]\n```", [1, 0, 1]),
        ("[1, 0]", None),
        ("[1, 0, 2]", None),
        ("[true, 0, 1]", None),
        ("[NaN, 0, 1]", None),
        ("1, 0, 1", None),
        ("[1, 0, ", None),
    ],
)
def test_only_a_list_of_the_right_length_counts(text, expected):
    assert numbers(text, 3, 0, 1) == expected


def test_of_a_cut_answer_only_a_list_that_it_begins_with_counts():
    assert numbers(" [1, 0, 1] since [0, 0, 0]", 3, 0, 1, whole=False) == [1, 0, 1]
    assert numbers("maybe [1, 0, 1]", 3, 0, 1, whole=False) is None

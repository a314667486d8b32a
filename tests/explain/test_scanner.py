"""What surrounds a token, read from the text before it."""

from __future__ import annotations

import re

from dictlearn.explain.scanner import Surroundings, surroundings


def scanned(text: str, start: int = 0) -> dict[str, Surroundings]:
    """By token, the last of equal ones. A token is a word or a sign, with its white space."""
    pieces = re.findall(r"\s*\w+|\s*[^\w\s]|\s+", text)
    found = surroundings(pieces, [i == start for i in range(len(pieces))])
    return {piece.strip(): seen for piece, seen in zip(pieces, found, strict=True)}


def test_line_word_and_brackets():
    seen = scanned("import os\n\n    return f(self.width, [one, two)\n")
    assert seen["return"].indent == 4 and seen["return"].on_line == 0
    assert seen["return"].blank_above and seen["return"].above == "import"
    assert seen["self"].first == "return" and seen["self"].called == "f"
    assert (seen["width"].before, seen["width"].between) == ("self", ".")
    assert (seen["two"].bracket, seen["two"].depth, seen["two"].commas) == ("[", 2, 1)
    assert seen["one"].called == "" and seen["width"].bracket == "("


def test_strings_comments_and_apostrophes():
    seen = scanned("x = 'a # b' # c d'e f\ny = \"\"\"g ' h\ni\"\"\" j don't k '' l r'm\nn")
    inside = {word: seen[word].inside for word in "xbdfhijklmn"}
    assert inside["x"] == inside["j"] == inside["k"] == inside["l"] == inside["n"] == "code"
    assert inside["b"] == inside["m"] == "string"
    assert inside["d"] == inside["f"] == "comment"
    assert inside["h"] == inside["i"] == "docstring"


def test_an_escaped_quote_closes_nothing():
    assert scanned(r"'a\'b\\' c")["b"].inside == "string"
    assert scanned(r"'a\'b\\' c")["c"].inside == "code"


def test_a_word_in_pieces():
    pieces = [" as", "sert", "Equal", "(", "x", " as"]
    seen = surroundings(pieces, [False] * 6)
    assert [one.word for one in seen] == ["as", "assert", "assertEqual", "", "x", "as"]
    assert [one.pieces for one in seen] == [0, 1, 2, 0, 0, 0]
    assert seen[3].before == "assertEqual" and seen[4].called == "assertEqual"


def test_a_document_forgets_the_one_before():
    seen = surroundings(["'", "a", "b"], [False, False, True])
    assert [one.inside for one in seen] == ["code", "string", "code"]

"""Articles and plurals."""

from __future__ import annotations

import pytest

from dictlearn.words import a, counted


@pytest.mark.parametrize("noun", ["an int", "an sae", "an Array", "a list", "a uint8", "a clt"])
def test_an_article_is_that_of_the_sound(noun: str) -> None:
    assert a(noun.partition(" ")[2]) == noun


def test_one_is_not_several() -> None:
    assert counted(1, "document") == "1 document"
    assert counted(2048, "document") == "2,048 documents" and counted(0, "row") == "0 rows"
    assert counted(1, "is", "are") == "1 is" and counted(2, "is", "are") == "2 are"

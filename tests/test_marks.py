"""Code marks in descriptions, where there is code and where there is none."""

from __future__ import annotations

import pytest

from dictlearn import marks
from dictlearn.explain.wording import quoted

SAID = {
    "the token `a` or a line break": (
        "the token <code>a</code> or a line break",
        'the token "a" or a line break',
    ),
    "`<b>` & ` x`": ("<code>&lt;b&gt;</code> &amp; <code> x</code>", '"<b>" & " x"'),
    "`` ` `` or ```x`y```": ("<code>`</code> or <code>x`y</code>", '"`" or "x`y"'),
    "one ` alone, ``two": ("one ` alone, ``two", "one ` alone, ``two"),
    "`a`` b `c`": ("<code>a`` b </code>c`", '"a`` b "c`'),
    '`"`': ("<code>&quot;</code>", "'\"'"),
    "\x1b[31m`\x1b`": ("\\x1b[31m<code>\\x1b</code>", '\x1b[31m"\x1b"'),
    "": ("", ""),
}


@pytest.mark.parametrize(("text", "shown"), SAID.items(), ids=ascii)
def test_code_is_shown_as_code_and_as_quotations(text: str, shown: tuple[str, str]) -> None:
    assert (marks.html(text), marks.plain(text)) == shown


@pytest.mark.parametrize("token", ["self", " None", "`", "a`b", '"', "<script>"])
def test_a_quoted_token_comes_back(token: str) -> None:
    assert list(marks.parts(quoted(token))) == [(token, True)]


def test_marks_that_nothing_closes_cost_no_time() -> None:
    text = " ".join("`" * n for n in range(1, 2000))
    assert list(marks.parts(text)) == [(text, False)]

"""Strings of strangers, where they are shown."""

from __future__ import annotations

import io

import pytest
from rich.progress import Progress
from rich.table import Table

from dictlearn import escape

ORDERS = [
    "\x1b]0;PWNED\x07",
    "\x1b[31m",
    "\r",
    "\x00",
    "\x9b31m",
    "\u202e",
    "\u2066",
    "\u2028",
    "\ud800",
]


@pytest.mark.parametrize("order", ORDERS, ids=ascii)
def test_a_terminal_gets_no_orders(order, capsys):
    escape.say(f"a{order}b")
    said = capsys.readouterr().err
    assert said.startswith("a\\") and said.endswith("b\n") and order not in said
    assert escape.terminal(said[:-1]) == said[:-1]


@pytest.mark.parametrize("text", ["plain", "two\nlines\tof", "naïve 日本語 👩\u200d🚀", "", "a\\b"])
def test_what_is_harmless_stays(text):
    assert escape.terminal(text) == text


@pytest.mark.parametrize("odd", ["[/x]", "[bold]x", "\x1b[31mred", "[link=http://a]b[/link]"])
def test_tables_and_bars_show_text_as_it_is(odd):
    table = Table(odd)
    table.add_row(odd)
    shown = escape.console()
    shown.file = io.StringIO()
    shown.print(odd, table)
    printed = shown.file.getvalue()
    assert printed.count(escape.terminal(odd)) == 3 and "\x1b" not in printed
    bar = Progress(console=shown)
    bar.add_task(escape.markup(odd))
    shown.print(bar)
    assert shown.file.getvalue().count(escape.terminal(odd)) == 4


def test_colours_of_our_own_pass():
    shown = escape.console()
    written = io.StringIO()
    shown = type(shown)(file=written, force_terminal=True, color_system="standard", markup=False)
    shown.print("a\x1b[32mb", style="red", highlight=False)
    assert written.getvalue() == "\x1b[31ma\\x1b[32mb\x1b[0m\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("resid_post.1", "resid_post.1"),
        ("org/model-name", "org/model-name"),
        ("_a_ *b* `c` ~d~", r"\_a\_ \*b\* \`c\` \~d\~"),
        ("x |\n\n## Install\n", r"x \| ## Install"),
        ("# Official", r"\# Official"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("<img src=x onerror=alert(1)>", r"\<img src=x onerror=alert(1)\>"),
        ("[click](https://evil.example)", r"\[click\](https://evil.example)"),
        ("![x](y) &amp; $z$ \\", r"!\[x\](y) \&amp; \$z\$ \\"),
        ("a\x1b[31mb\u202e", r"a\\x1b\[31mb\\u202e"),
    ],
)
def test_markdown_shows_text_as_it_is(text, shown):
    assert escape.markdown(text) == shown


def test_html_shows_text_as_it_is():
    assert escape.html("<a href='x'>\"&\u202e") == "&lt;a href=&#x27;x&#x27;&gt;&quot;&amp;\\u202e"


def test_what_is_no_terminal_gets_whole_lines(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("name")
    table.add_row("x" * 300)
    shown = escape.console()
    shown.print("a " * 200, no_wrap=True, overflow="ellipsis")
    shown.print(table)
    printed = capsys.readouterr().out
    assert "a " * 200 in printed and "x" * 300 in printed
    monkeypatch.setenv("COLUMNS", "80")
    assert escape.console().width == 80

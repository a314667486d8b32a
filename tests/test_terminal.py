"""Terminals that cannot show every character."""

from __future__ import annotations

import io
import sys

import pytest

from dictlearn import escape, terminal


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_a_terminal_that_is_not_unicode_gets_signs_that_it_can_show(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table's minus sign once ended a finished run with status 2."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    terminal.show_what_can_be_shown()
    text = "\u22120.5 \u2500\u2502 \u2026 \U0001f642"
    print(text, file=out, flush=True)  # noqa: T201
    shown = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    if encoding == "utf-8":
        assert shown.strip() == text
    else:
        assert shown.startswith("-0.5 -| ") and shown.rstrip().endswith("?")


HELD = {  # what Python makes of the bytes of a path, and what is shown for it
    "donn\udcc3\udca9es": "donn\xe9es",  # a locale of ASCII
    "donn\udce9es": r"donn\xe9es",  # bytes of latin-1 in a locale of UTF-8
    "a\udcc3": r"a\xc3",
    repr("donn\udcc3\udca9es"): "'donn\xe9es'",
    "\udcc2\udc9b": r"\x9b",  # an order to a terminal stays harmless
    "plain \\n": "plain \\n",
}


@pytest.mark.parametrize("held", HELD, ids=ascii)
def test_bytes_of_paths_are_readable(held: str, capsys: pytest.CaptureFixture[str]) -> None:
    escape.say(held)
    assert capsys.readouterr().err == f"{HELD[held]}\n"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "é"), ("latin-1", "é"), ("ascii", r"\xe9"), ("cp1251", r"\xe9")],
)
def test_they_are_where_a_stream_cannot_show_them(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.show_what_can_be_shown()
    print("a\udcc3\udca9 \udcc2\udc9b", file=stream, flush=True)  # noqa: T201
    assert stream.buffer.getvalue().decode(encoding) == f"a{shown} \\x9b\n"  # type: ignore[attr-defined]

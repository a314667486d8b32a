"""Terminals that cannot show every character."""

from __future__ import annotations

import io
import sys

import pytest

from dictlearn import terminal


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

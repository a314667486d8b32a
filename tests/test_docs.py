"""What the README and docs/ show works: Python is run, commands are run or composed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dictlearn import cli

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^ {4}((?:dictlearn|python train\.py) .*)$", re.MULTILINE)
NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """("python" | "text" | "command", what it says) in the order of the page."""
    found = [(m.start(), m[1], m[2]) for m in FENCE.finditer(text)]
    found += [(m.start(), "command", m[1].split("  #")[0].strip()) for m in COMMAND.finditer(text)]
    for _, language, said in sorted(found):
        yield language, said


def run_python(source: str, names: dict[str, Any]) -> Any:
    """The value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "docs", "exec"), names)
        return None
    tree.body.pop()
    exec(compile(tree, "docs", "exec"), names)
    return eval(compile(ast.Expression(last.value), "docs", "eval"), names)


def like(printed: str) -> str:
    """The words without the numbers: these differ from machine to machine."""
    printed = re.sub(r"/\S*?(?=runs/)", "", printed)
    return re.sub(r"\s+", " ", NUMBER.sub("#", printed)).strip()


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 0, command


def test_the_page_on_python_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    value, shown = None, 0
    for language, said in blocks((ROOT / "docs/python.md").read_text(encoding="utf-8")):
        if language == "python":
            value = run_python(said, names)
        elif language == "text":
            assert like(repr(value)) == like(said)
            shown += 1
        else:
            run_command(said, monkeypatch)
    assert shown == 2
    assert names["x_hat"].shape == names["x"].shape == names["without"].shape
    assert names["pre"].shape == names["dense"].shape
    code, dictionary = names["code"], names["dictionary"]
    assert names["x_hat"].sub(dictionary.decode(code)).abs().max() < 1e-3
    assert not names["without"].equal(names["x_hat"])
    assert "mean ablation" in repr(names["evaluation"])
    assert len(names["table"]) == len(names["features"]) == 3072
    assert "<span" in names["features"][names["strongest"]]._repr_html_()

"""What commands print: now, or when it was put into benchmarks/results/printed.json."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benches.page import taken
from peers import results

from dictlearn import cli
from dictlearn.verbs import plan
from dictlearn.verbs.machine import Machine
from figures import newest

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 104
# The one that plans are for, so that every machine writes the same page. What a CPU takes for its
# selection depends on its own instructions, so no page shows a whole plan for a CPU.
LAPTOP = Machine(cores=8, memory=24e9, free=500e9, flops=4e11, bandwidth=4e10)
HOME = "/home/me"  # stands for the folder that a command ran in
PACKAGES = ("torch", "lightning", "transformers", "dictlearn-lm")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^ {4}((?:dictlearn|python train\.py) .*)$", re.MULTILINE)


def now(command: str, start: str | None = None) -> str:
    """Markdown of what a quick command prints, from the first line that begins with `start`."""
    return shown(command, said_by(command), start)


def recorded(commands: str, start: str | None = None) -> str:
    """The same of the last of several commands, as it is on record."""
    record = newest("printed", commands=commands)
    if is_page(commands):
        return f"```text\n{record['printed']}\n```"
    command = commands.split("; ")[-1]
    return shown(f"{command}    # {taken(record).rstrip(':')}", record["printed"], start)


def shown(command: str, text: str, start: str | None) -> str:
    lines = text.splitlines()
    if start:
        begins = [line.startswith(start) for line in lines]
        if not any(begins):
            raise ValueError(f"{command}: it prints no line that begins with {start!r}")
        lines = lines[begins.index(True) :]
    lines = [f"$ {command}", *(part for line in lines for part in wrapped(line))]
    return "\n".join(f"    {line}".rstrip() for line in lines)


def wrapped(line: str) -> list[str]:
    options = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": "  "}
    return textwrap.wrap(line, WIDTH, **options) if len(line) > WIDTH else [line]


def is_page(commands: str) -> bool:
    return commands.startswith("docs/")


@functools.cache
def said_by(command: str) -> str:
    """What it prints in an empty folder of LAPTOP."""
    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.enter_context(mock.patch.object(plan, "this_machine", lambda folder: LAPTOP))
        stack.enter_context(mock.patch.object(sys, "argv", shlex.split(command)))
        stack.enter_context(mock.patch.dict(os.environ, {"COLUMNS": str(WIDTH)}))
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        with contextlib.suppress(SystemExit):
            cli.main()
    return clean(said.getvalue())


def record(commands: str, to: Path = results.RESULTS) -> None:
    """Runs them, in a folder that is deleted, and appends what the last one prints to printed.json."""
    with tempfile.TemporaryDirectory() as folder:
        if is_page(commands):
            text = of_page(commands, Path(folder))
        else:
            text = [run(command, Path(folder)) for command in commands.split("; ")][-1]
        text = clean(text.replace(os.path.realpath(folder), HOME).replace(folder, HOME))
    found = {"versions": results.versions(PACKAGES), "commands": commands, "printed": text}
    results.append("printed", found, to)


def clean(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def run(command: str, folder: Path) -> str:
    """What it prints on stdout, or, if that is nothing, on stderr."""
    words = shlex.split(command)
    if words[0] == "python":
        words[:2] = [sys.executable, str(ROOT / words[1])]
    else:
        words[:1] = [sys.executable, "-m", "dictlearn"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{command}: exit status {done.returncode}: {done.stderr}")
    return done.stdout or done.stderr


# --- a page that is run from top to bottom -----------------------------------------------------


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


def of_page(place: str, folder: Path) -> str:
    """What the Python before the n-th text of a page gives: "docs/python.md, 2" is the second's."""
    page, _, number = place.partition(", ")
    value, shown, names = None, 0, {}
    with contextlib.chdir(folder):
        for language, said in blocks((ROOT / page).read_text(encoding="utf-8")):
            if language == "python":
                value = run_python(said, names)
            elif language == "command":
                run(said, folder)
            else:
                shown += 1
                if shown == int(number):
                    return repr(value)
    raise ValueError(f"{place}: the page has {shown} texts")

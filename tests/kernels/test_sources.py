"""A compiled loop that is kept on disk is never older than any source that it was made from."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dictlearn_kernels
import pytest
from dictlearn_kernels import compiled

ROOT = Path(dictlearn_kernels.__file__).parent
COMPILES = {"loop", "sums", "fused"}
# numba's version is part of its own key, and numpy's functions are numba's own inside a loop.
KEYED = {"numpy", "numba", "llvmlite"}


def decorated(tree: ast.AST, names: set[str]) -> list[ast.FunctionDef]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id in names for d in node.decorator_list)
    ]


def globals_of(node: ast.AST) -> set[str]:
    """The names that a statement reads from its module; of a function, those of its body."""
    if not isinstance(node, ast.FunctionDef):
        return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    inside = [part for statement in node.body for part in ast.walk(statement)]
    names = [part for part in inside if isinstance(part, ast.Name)]
    local = {n.id for n in names if not isinstance(n.ctx, ast.Load)}
    local |= {a.arg for a in ast.walk(node) if isinstance(a, ast.arg)}
    return {n.id for n in names} - local


def reached(tree: ast.Module) -> set[str]:
    """The modules that compiled loops of this file can hold code or constants from."""
    imports: dict[str, str] = {}
    statements: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            imports |= {(a.asname or a.name.split(".")[0]): a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {(a.asname or a.name): node.module or "" for a in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            statements[node.name] = node
        else:
            stored = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
            statements |= dict.fromkeys(stored, node)
    waiting = [node for node in statements.values() if decorated(node, COMPILES)]
    seen: set[str] = set()
    while waiting:
        names = globals_of(waiting.pop()) - seen
        seen |= names
        waiting += [statements[name] for name in names if name in statements]
    return {imports[name] for name in seen if name in imports}


def uncovered(source: str) -> set[str]:
    """Modules that the key of the loops in a file does not cover."""
    covered = {
        ".".join(p.relative_to(ROOT.parent).with_suffix("").parts) for p in compiled.sources()
    }
    covered |= {name.removesuffix(".__init__") for name in covered}
    return {
        name
        for name in reached(ast.parse(source))
        if name not in covered and name.split(".")[0] not in KEYED
    }


def with_loops() -> Iterator[Path]:
    return (path for path in ROOT.rglob("*.py") if decorated(ast.parse(path.read_text()), COMPILES))


def test_only_the_decorators_that_have_the_key_compile_loops():
    for path in ROOT.rglob("*.py"):
        imports = [
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
        ]
        names = {a.name for node in imports if node.module == "numba" for a in node.names}
        assert names <= ({"njit"} if path == ROOT / "compiled.py" else set()), path


@pytest.mark.parametrize("path", sorted(with_loops()), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_loop_holds_what_its_key_does_not_cover(path):
    assert uncovered(path.read_text()) == set()


def test_a_constant_from_outside_would_be_found():
    source = """
from dictlearn.types import SIZE
from dictlearn_kernels.compiled import loop
from dictlearn_kernels.rounded import SLACK
from torch import finfo
HALF = SIZE // 2
@loop
def rows(x):
    return inner(x) + SLACK
@loop
def inner(x):
    finfo = 1
    return x[HALF] + finfo
"""
    assert uncovered(source) == {"dictlearn.types"}


def test_no_function_is_longer_than_a_page():
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, (path, node.name)


SHOW = """
import numpy as np
from dictlearn_kernels import fixed_point
norms = np.zeros((3, 1), np.float32)
given = np.ones(4, np.float32), np.zeros(4, np.int16), tuple(norms), 0
fixed_point._round_row(*given)
print(float(norms[1, 0]), sum(fixed_point._round_row.stats.cache_hits.values()))
"""


def test_a_constant_that_changes_in_another_file_compiles_a_loop_anew_and_once(tmp_path):
    copy = tmp_path / "dictlearn_kernels"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("__pycache__"))
    told = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def shown() -> list[float]:
        """(the norm of a row of norm 2 times SLACK, how many loops were on disk)"""
        said = subprocess.run(
            [sys.executable, "-c", SHOW], env=told, capture_output=True, text=True, check=True
        )
        return [float(word) for word in said.stdout.split()]

    assert shown() == [2 * (1 + 2**-10), 0]
    file = copy / "rounded" / "__init__.py"
    text = file.read_text()
    assert text.count("SLACK = 1 + 2.0**-10") == 1
    file.write_text(text.replace("SLACK = 1 + 2.0**-10", "SLACK = 4.0"))
    assert shown() == [8, 0]
    assert shown() == [8, 1]

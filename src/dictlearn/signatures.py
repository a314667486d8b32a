"""Signatures read from source files, so that nothing is imported to know them.

A key's type is the annotation of the parameter that it sets. The parameter's module may import torch,
which takes seconds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

# Libraries' classes that a yaml here names, and our classes with the annotations to use for them.
LIBRARIES = {
    "lightning.pytorch.Trainer": "dictlearn.libraries.Trainer",
    "lightning.pytorch.loggers.WandbLogger": "dictlearn.libraries.WandbLogger",
}


class Parameter(NamedTuple):
    """A parameter's annotation and the module that its names are found in."""

    annotation: ast.expr | None
    module: Module


class Signature(NamedTuple):
    parameters: Mapping[str, Parameter]
    open: bool  # takes further keywords, or belongs to a library and is not known in full


class Module:
    """A source file, parsed; its names can be looked up."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        tree = _parsed(path)
        self.packages = list(_packages(tree.body))
        self._package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self._named: dict[str, ast.stmt | ast.expr] = {}
        self._imported: dict[str, str] = {}
        for statement in _statements(tree.body):
            self._keep(statement)

    def _keep(self, statement: ast.stmt) -> None:
        match statement:
            case ast.ClassDef() | ast.FunctionDef():
                self._named[statement.name] = statement
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self._named[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                self._named[name] = value
            case ast.ImportFrom(module=module, names=names, level=level):
                start = self._package.split(".")
                start = start[: len(start) - level + 1] if level else []
                source = ".".join([*start, *([module] if module else [])])
                self._imported |= {n.asname or n.name: f"{source}.{n.name}" for n in names}

    def path_of(self, name: str) -> str:
        """The dotted path of a name used here, such as `Term` or `train.Keys`."""
        first, _, rest = name.partition(".")
        path = f"{self.name}.{first}" if first in self._named else self._imported.get(first, first)
        return f"{path}.{rest}" if rest else path

    def find(self, name: str) -> tuple[ast.stmt | ast.expr, Module] | None:
        """The definition of `name`, followed through imports, and the module that holds it."""
        if name in self._named:
            return self._named[name], self
        if name in self._imported:
            return definition_of(self._imported[name])
        return None


def _parsed(path: Path) -> ast.Module:
    """Raises ValueError, with the line, for a file that is not Python."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    except ValueError as error:  # bytes that are not UTF-8, or null bytes
        raise ValueError(f"{path}: {error}") from error


def _packages(body: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """(line, package) of each import that a module makes in any case: not below an if or a try."""
    for statement in body:
        match statement:
            case ast.Import(names=names):
                yield from ((statement.lineno, n.name.partition(".")[0]) for n in names)
            case ast.ImportFrom(module=str(name), level=0):
                yield statement.lineno, name.partition(".")[0]


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a module, those under `if TYPE_CHECKING:` among them."""
    return [
        inner
        for outer in body
        for inner in (_statements(outer.body) if isinstance(outer, ast.If) else [outer])
    ]


@cache
def module(name: str) -> Module | None:
    """The module `name` of an installed package, not imported; None if there is no source."""
    folders = None
    for part in name.split("."):
        spec = PathFinder.find_spec(part, folders)
        if spec is None:
            return None
        folders = list(spec.submodule_search_locations or [])
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Module(name, Path(spec.origin))


def definition_of(target: str) -> tuple[ast.stmt | ast.expr, Module] | None:
    """The definition that a dotted name means, and the module that holds it."""
    where, _, name = target.rpartition(".")
    source = module(where) if where else None
    return source.find(name) if source else None


@cache
def signature(target: str) -> Signature | None:
    """The signature of the function or class `target`; None if there is no source."""
    definition = definition_of(LIBRARIES.get(target, target))
    if definition is None:
        return None
    node, source = definition
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, source)
    if isinstance(node, ast.ClassDef):
        own = _of_class(node, source)
        return own._replace(open=True) if target in LIBRARIES else own
    return None


def _of_function(node: ast.FunctionDef, source: Module, method: bool = False) -> Signature:
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args][int(method) :]
    parameters = {a.arg: Parameter(a.annotation, source) for a in [*plain, *arguments.kwonlyargs]}
    unpacked = _unpacked(arguments.kwarg.annotation, source) if arguments.kwarg else None
    is_open = arguments.kwarg is not None and unpacked is None
    return Signature(parameters | (unpacked or {}), is_open)


def _unpacked(annotation: ast.expr | None, source: Module) -> dict[str, Parameter] | None:
    """The keys of a TypedDict whose values a function takes as `**options: Unpack[Options]`."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Unpack"), slice=ast.Name(id=name)):
            keys = source.find(name)
            if keys and isinstance(keys[0], ast.ClassDef):
                return fields(keys[0], keys[1])
    return None


def _of_class(node: ast.ClassDef, source: Module) -> Signature:
    """The signature of a class's constructor, which may be a parent's, or else its fields."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _of_function(statement, source, method=True)
    inherited: dict[str, Parameter] = {}
    further = False
    for base in node.bases:
        parent = _parent(base, source)
        if parent and isinstance(parent[0], ast.ClassDef):
            above = _of_class(parent[0], parent[1])
            inherited |= above.parameters
            further |= above.open
        elif ast.unparse(base) not in ("ABC", "Protocol", "NamedTuple", "object"):
            further = True  # a library's class
    return Signature(inherited | fields(node, source), further)


def fields(node: ast.ClassDef, source: Module) -> dict[str, Parameter]:
    """The annotated names of a class's body."""
    return {
        field.target.id: Parameter(field.annotation, source)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _parent(base: ast.expr, source: Module) -> tuple[ast.stmt | ast.expr, Module] | None:
    """The definition of a base class; None if it belongs to a library."""
    if isinstance(base, ast.Subscript):
        base = base.value
    path = source.path_of(ast.unparse(base))
    return definition_of(path) if path.split(".")[0] == source.name.split(".")[0] else None

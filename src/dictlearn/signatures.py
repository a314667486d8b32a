"""Signatures read from source files, so that nothing is imported to know them.

A key's type is the annotation of the parameter that it is bound to, and the module that holds the
parameter may import torch, which takes seconds.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

# Of libraries that a yaml here names: the keys that it sets, and what we take for them.
LIBRARIES = {
    "lightning.pytorch.Trainer": "dictlearn.libraries.Trainer",
    "lightning.pytorch.loggers.WandbLogger": "dictlearn.libraries.WandbLogger",
}


class Parameter(NamedTuple):
    """A parameter's annotation and the module that its names are found in."""

    annotation: ast.expr | None
    module: Module
    required: bool


class Signature(NamedTuple):
    parameters: Mapping[str, Parameter]
    open: bool  # takes further keywords, or is a library's and not known in full


class Module:
    """A source file, parsed; its names can be looked up."""

    def __init__(self, name: str, path: Path):
        self.name = name
        tree = ast.parse(path.read_text(encoding="utf-8"))
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
        """What `name` stands for here, followed through imports, and the module that says so."""
        if name in self._named:
            return self._named[name], self
        if name in self._imported:
            return found(self._imported[name])
        return None


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a module, those under `if TYPE_CHECKING:` among them."""
    return [
        inner
        for one in body
        for inner in (_statements(one.body) if isinstance(one, ast.If) else [one])
    ]


@cache
def module(name: str) -> Module | None:
    """The module `name` of an installed package, not imported; None where there is no such source."""
    places = None
    for part in name.split("."):
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Module(name, Path(spec.origin))


def found(target: str) -> tuple[ast.stmt | ast.expr, Module] | None:
    """The definition that a dotted name means, and the module that holds it."""
    where, _, name = target.rpartition(".")
    source = module(where) if where else None
    return source.find(name) if source else None


@cache
def signature(target: str) -> Signature | None:
    """What the function or class `target` takes; None where no source says."""
    definition = found(LIBRARIES.get(target, target))
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
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    due = len(plain) - len(given.defaults)
    parameters = {
        one.arg: Parameter(one.annotation, source, place < due) for place, one in enumerate(plain)
    }
    parameters |= {
        one.arg: Parameter(one.annotation, source, default is None)
        for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    }
    if method:
        del parameters[plain[0].arg]
    unpacked = _unpacked(given.kwarg.annotation, source) if given.kwarg else None
    return Signature(parameters | (unpacked or {}), given.kwarg is not None and unpacked is None)


def _unpacked(annotation: ast.expr | None, source: Module) -> dict[str, Parameter] | None:
    """The keys of a TypedDict whose values a function takes as `**options: Unpack[Options]`."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Unpack"), slice=ast.Name(id=name)):
            keys = source.find(name)
            if keys and isinstance(keys[0], ast.ClassDef):
                return {k: p._replace(required=False) for k, p in fields(*keys).items()}  # type: ignore[arg-type]
    return None


def _of_class(node: ast.ClassDef, source: Module) -> Signature:
    """Of its constructor, which may be a parent's; of a class that only has fields, these."""
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
        one.target.id: Parameter(one.annotation, source, one.value is None)
        for one in node.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }


def _parent(base: ast.expr, source: Module) -> tuple[ast.stmt | ast.expr, Module] | None:
    """A base class of the same package; a library's is not read."""
    if isinstance(base, ast.Subscript):
        base = base.value
    path = source.path_of(ast.unparse(base))
    return found(path) if path.split(".")[0] == source.name.split(".")[0] else None

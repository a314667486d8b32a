"""Build a dictionary from its description: the result of `Dictionary.to_json`, or a file's.

The description may come from anybody. Every value must have the type that `Shape`, the link or the
sparsity declares for its key; this is checked before anything is allocated.
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from dictlearn import own
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.link import ALWAYS_WRITTEN, Link, links
from dictlearn.dicts.shape import Shape
from dictlearn.ranges import Range
from dictlearn.sparsity import registry as sparsity_registry
from dictlearn.sparsity.protocol import Sparsity

SIZES = ("n_sources", "n_features")  # arguments of a sparsity that are not its options
MOST_SITES = 1000
NAME = re.compile(r"[A-Za-z][\w-]{0,63}")
SITE = re.compile(r"[\w.:\[\]-][\w.:/\[\]-]{0,299}")  # exports name folders after sites
T = typing.TypeVar("T")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def from_json(description: Mapping[str, Any]) -> Dictionary:
    """An untrained dictionary of the described shape. Names are looked up, never imported.

    Raises:
        ValueError: one sentence with the key, its value and what would be accepted.
    """
    shape = shape_from_json(description)
    sparsity, options = _sparsity(description.get("sparsity"))
    return Dictionary(shape, lambda **sizes: sparsity(**sizes, **options))


def shape_from_json(description: Mapping[str, Any]) -> Shape:
    """The described shape; allocates nothing. Raises ValueError as `from_json` does."""
    if not isinstance(description, Mapping):
        raise ValueError(f"dictionary={shown(description)}: want an object")
    link, others = _link({key: v for key, v in description.items() if key != "sparsity"})
    hints = typing.get_type_hints(Shape)
    required = [field.name for field in fields(Shape) if field.default is MISSING]
    shape = Shape(**check_types(others, hints, required, "a dictionary"), link=link)
    if not NAME.fullmatch(shape.kind):
        raise ValueError(f"kind={shown(shape.kind)}: want a word")
    for key in ("width", "n_features"):
        if getattr(shape, key) < 1:
            raise ValueError(f"{key}={shown(getattr(shape, key))}: want at least 1")
    _check_sites(shape)
    shape.check()
    return shape


def _link(description: Mapping[str, Any]) -> tuple[Link, dict[str, Any]]:
    """(the link, the entries that are not its options)."""
    others = dict(description)
    name = others.pop("link", Shape.link.name)
    if not isinstance(name, str):
        raise ValueError(f"link={shown(name)}: want a text")
    kind = _look_up("link", name, links, "dict")
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    options = {key: others.pop(key) for key in names if key in others}
    for key in [key for key in ALWAYS_WRITTEN if key in others]:
        value, default = others.pop(key), ALWAYS_WRITTEN[key]
        value = tuple(value) if type(value) is list else value
        if type(value) is not type(default) or value != default:
            raise ValueError(f"{key}={shown(value)}: link={name} has none")
    hints = typing.get_type_hints(kind, include_extras=True)
    required = [field.name for field in fields(kind) if field.default is MISSING]  # type: ignore[arg-type]
    own_hints = {key: hints[key] for key in names}
    return kind(**check_types(options, own_hints, required, f"link={name}")), others


def _look_up(what: str, name: str, known: Callable[[], Mapping[str, T]], group: str) -> T:
    """The class of this name, in this package or in a module of the user's own."""
    if name not in known():
        own.import_modules(group)
    if name not in known():
        raise ValueError(f"{what} {shown(name)} is not one of {sorted(known())}; {own.HINT}")
    return known()[name]


def check_types(
    values: Mapping[str, Any], hints: Mapping[str, Any], required: typing.Iterable[str], what: str
) -> dict[str, Any]:
    """`values`, each of the type that `hints` declares for its key; lists become tuples."""
    for key in values:
        if key not in hints:
            raise ValueError(f"{shown(key)}: {what} has no such key; want {', '.join(hints)}")
    for key in required:
        if key not in values:
            raise ValueError(f"{key}: {what} must have it")
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise ValueError(f"{key}={shown(value)}: want {_words(hints[key])}")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def shown(value: object) -> str:
    """A value from a file for a message: shortened, and without control characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def _sparsity(described: Any) -> tuple[type[Sparsity], dict[str, Any]]:
    """(the sparsity's class, its options)."""
    if not isinstance(described, Mapping) or not isinstance(described.get("name"), str):
        raise ValueError(f"sparsity={shown(described)}: want its name and options")
    name = described["name"]
    kind = _look_up("sparsity", name, sparsity_registry, "sparsity")
    hints = typing.get_type_hints(kind.__init__, include_extras=True)
    own_hints = {key: hint for key, hint in hints.items() if key not in (*SIZES, "return")}
    parameters = inspect.signature(kind).parameters
    required = [key for key in own_hints if parameters[key].default is inspect.Parameter.empty]
    options = {key: value for key, value in described.items() if key != "name"}
    return kind, check_types(options, own_hints, required, f"sparsity {name}")


def _check_sites(shape: Shape) -> None:
    for key in ("sources", "targets"):
        names = getattr(shape, key)
        if not 1 <= len(names) <= MOST_SITES:
            raise ValueError(f"{key}: {len(names):,} sites; want 1 to {MOST_SITES:,}")
        for name in names:
            if not SITE.fullmatch(name) or ".." in name.split("/"):
                raise ValueError(f"{key}: {shown(name)} is no site's name")


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Annotated:
        kind, *notes = typing.get_args(hint)
        ranges = [note for note in notes if isinstance(note, Range)]
        return _fits(value, kind) and all(value in r for r in ranges)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return type(value) is str and value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(
            _fits(item, typing.get_args(hint)[0]) for item in value
        )
    if hint is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is hint


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        kind, *notes = typing.get_args(hint)
        return _words(kind) + "".join(str(note) for note in notes if isinstance(note, Range))
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(map(_words, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_words(typing.get_args(hint)[0])}"
    return "null" if hint is type(None) else WORDS.get(hint, str(hint))

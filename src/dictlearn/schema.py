"""The values that every key takes, checked before anything is built or written.

The type of a key below a `_target_` is the annotation of the parameter of that name. The type of a key
in a verb's own yaml is that in the class `Keys` of verbs/<verb>.py, else that of its value in the yaml.
Sources are read, not imported, so that wrong names and numbers are refused at once.
"""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf

from dictlearn import ranges, signatures
from dictlearn.ranges import Range
from dictlearn.signatures import Module, Parameter

EVERY = Range(-(2.0**63), 2.0**63 - 1)  # whole numbers that a tensor can hold
FINITE = Range(-1e300, 1e300)
MISFIT = object()
NAMED_BY_USERS = (
    "parts",
    "weights",
    "template_values",
    "names",
)  # keys of mappings whose names are a user's own
COLLECTIONS = ("callbacks", "eval", "logger", "objective.terms")  # of parts that are built, by name
PATHS = (
    *("run", "runs", "run_dir", "dictionary", "output", "resume", "init", "graph", "vector"),
    *("folder", "path", "paths", "other", "tokenizer", "save_dir"),
)


@dataclass(frozen=True)
class Wanted:
    """The values that a key takes, as a union of kinds."""

    whole: Range | None = None
    number: Range | None = None
    switch: bool = False
    text: bool = False
    choices: tuple[str, ...] = ()
    null: bool = False
    items: Wanted | None = None  # a list of these
    length: int | None = None  # the list's
    part: bool = False  # an object, built from the keys below it
    anything: bool = False
    note: str = ""

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(
            whole=self.whole or other.whole,
            number=self.number or other.number,
            switch=self.switch or other.switch,
            text=self.text or other.text,
            choices=self.choices + other.choices,
            null=self.null or other.null,
            items=self.items or other.items,
            length=self.length or other.length,
            part=self.part or other.part,
            anything=self.anything or other.anything,
            note=self.note or other.note,
        )

    def fitted(self, value: object) -> object:
        """`value` converted for the key (1e3 to 1000, a word to a list of one), or MISFIT."""
        if self.anything or (value is None and self.null):
            return value
        match value:
            case bool():
                return value if self.switch else MISFIT
            case int() | float():
                return self._number(value)
            case str():
                return self._word(value)
            case dict():
                return value if self.part else MISFIT
            case list() | tuple() if self.items is not None:
                fitted = [self.items.fitted(item) for item in value]
                wrong = MISFIT in fitted or self.length not in (None, len(fitted))
                return MISFIT if wrong else fitted
        return MISFIT

    def _number(self, value: int | float) -> object:
        finite = math.isfinite(value) if isinstance(value, float) else value in EVERY
        if finite and self.whole is not None and value == int(value) and value in self.whole:
            return int(value) if value in EVERY else MISFIT
        if finite and self.number is not None and value in self.number and value in FINITE:
            return value
        if self.text or str(value) in self.choices:
            return str(value)
        return self._alone(value)

    def _word(self, value: str) -> object:
        if self.text:
            return value
        for choice in self.choices:  # gpu=h200 is clear enough
            if choice.lower() == value.lower():
                return choice
        return self._alone(value)

    def _alone(self, value: object) -> object:
        """A list of one value, if the key takes a list."""
        if self.items is None or self.length not in (None, 1):
            return MISFIT
        fitted = self.items.fitted(value)
        return MISFIT if fitted is MISFIT else [fitted]

    def __str__(self) -> str:
        return ", or ".join(self._words()) + (f" ({self.note})" if self.note else "")

    def _words(self) -> Iterator[str]:
        if self.whole is not None:
            yield f"a whole number{'' if self.whole == EVERY else self.whole}"
        if self.number is not None:
            yield f"a number{'' if self.number == FINITE else self.number}"
        if self.text:
            yield "text"
        words = [*self.choices, *(["true", "false"] if self.switch else [])]
        if words:
            yield words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
        if self.items is not None:
            several = re.sub(r"\ba ((?:whole )?number)", r"\1s", str(self.items))
            count = f" of {self.length}" if self.length else ""
            yield f"a list{count} of {several}" if not count else f"a list{count} {several}"
        if self.part:
            yield "the keys below it"
        if self.null:
            yield "null"


ANYTHING, PART, NULL = Wanted(anything=True), Wanted(part=True), Wanted(null=True)
PLAIN = {
    "int": Wanted(whole=EVERY),
    "float": Wanted(number=FINITE),
    "bool": Wanted(switch=True),
    "str": Wanted(text=True),
    "Path": Wanted(text=True),
    "None": NULL,
    "Any": ANYTHING,
    "object": ANYTHING,
}
LISTS = ("Sequence", "list", "tuple", "Iterable")


def _ranged() -> dict[str, Wanted]:
    """The annotations of dictlearn.ranges: Count, Fraction, ..."""
    named = {}
    for name, annotation in vars(ranges).items():
        match get_args(annotation):
            case (kind, Range() as limits):
                named[name] = Wanted(whole=limits) if kind is int else Wanted(number=limits)
    return named


NAMED = PLAIN | _ranged()


def wanted(annotation: ast.expr | None, module: Module) -> Wanted:
    """The values that a parameter with this annotation takes; names are looked up in its module."""
    match annotation:
        case None:
            return ANYTHING
        case ast.Constant(value=None):
            return NULL
        case ast.Constant(value=str(text)):  # an annotation in quotes
            return wanted(ast.parse(text, mode="eval").body, module)
        case ast.Name(id=name) if name in NAMED:
            return NAMED[name]
        case ast.Name(id=name):
            alias = module.find(name)
            return wanted(alias[0], alias[1]) if alias and isinstance(alias[0], ast.expr) else PART
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return wanted(left, module) | wanted(right, module)
        case ast.Subscript(value=value, slice=inside):
            return _subscripted(ast.unparse(value).split(".")[-1], inside, module)
    return PART


def _subscripted(name: str, inside: ast.expr, module: Module) -> Wanted:
    parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
    if name == "Literal":
        return Wanted(choices=tuple(str(ast.literal_eval(part)) for part in parts))
    if name == "Annotated":
        note = parts[1].value if isinstance(parts[1], ast.Constant) else ""
        return replace(wanted(parts[0], module), note=str(note))
    if name == "Optional":
        return wanted(parts[0], module) | NULL
    if name in LISTS:
        same = name != "tuple" or ast.unparse(parts[-1]) == "..."
        return Wanted(items=wanted(parts[0], module), length=None if same else len(parts))
    return PART


# --- a configuration --------------------------------------------------------------------------


def declared(verb: str) -> dict[str, Wanted]:
    """The keys of a verb's own yaml, as the class Keys in its verbs/<verb>.py declares them."""
    known = signatures.signature(f"dictlearn.verbs.{verb}.Keys")
    parameters = known.parameters if known else {}
    return {name: wanted(p.annotation, p.module) for name, p in parameters.items()}


def _shown_by(default: object) -> Wanted:
    """The values that a key without a declared type takes, judged by its value in the yaml."""
    match default:
        case bool():
            return Wanted(switch=True)
        case int():
            return Wanted(whole=EVERY, null=True)
        case float():
            return Wanted(number=FINITE, null=True)
        case str() if default != "???" and "${" not in default:
            return Wanted(text=True, null=True)
        case list():
            return Wanted(items=ANYTHING, null=True)
    return ANYTHING


def keys(verb: str, tree: Mapping[Any, Any]) -> dict[str, Wanted]:
    """The values that every key of an unresolved configuration takes, by dotted name."""
    return dict(_below(tree, "", declared(verb)))


def _below(
    node: Mapping[Any, Any], prefix: str, known: Mapping[str, Wanted]
) -> Iterator[tuple[str, Wanted]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if str(name).startswith("_"):  # _target_ and _partial_ belong to the yaml, not to users
            continue
        if "." in str(name):  # an entry of a user's own mapping, such as a site's name
            continue
        if isinstance(value, dict):
            # An entry of a collection (callbacks, eval, objective.terms) can be switched off.
            in_collection = prefix and "_target_" not in node
            yield key, replace(PART, null=bool(in_collection)) | known.get(str(name), PART)
            yield from _below(value, f"{key}.", _of_target(value))
        else:
            yield key, known.get(str(name)) or _shown_by(value)


def _of_target(node: Mapping[Any, Any]) -> dict[str, Wanted]:
    """The parameters of the class or function that builds a node."""
    known = signatures.signature(str(node.get("_target_", "")))
    if known is None:
        return {}
    parameters: Mapping[str, Parameter] = known.parameters
    return {name: wanted(p.annotation, p.module) for name, p in parameters.items()}


def check(verb: str, cfg: DictConfig) -> None:
    """Converts every value to its key's type (1e3 to 1000), in place.

    Missing values (???) are left alone.

    Raises:
        ValueError: one sentence on the first wrong value, with its key and the values that the key
            takes; or on a key that its class or function has no parameter for; or on an entry of a
            collection that nothing can be built of.
    """
    tree = OmegaConf.to_container(cfg)
    assert isinstance(tree, dict)
    takes = keys(verb, tree)
    for key, takes_here in takes.items():
        raw = _at(tree, key)
        if raw == "???" or isinstance(raw, dict):
            continue
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        fitted = _at_home(key, takes_here.fitted(plain))
        if fitted is MISFIT:
            raise ValueError(_refusal(key, raw, plain, takes_here))
        if fitted is not plain and fitted != plain or type(fitted) is not type(plain):
            OmegaConf.update(cfg, key, fitted)
    _refuse_unknown(tree)
    _refuse_unbuilt(tree)


def _at_home(key: str, value: object) -> object:
    """A path with ~ expanded, which shells do not do behind an equals sign."""
    if key.rpartition(".")[2] not in PATHS:
        return value
    if isinstance(value, list):
        return [_at_home(key, item) for item in value]
    if isinstance(value, str) and re.match(r"~[\w.-]*(/|$)", value):
        return os.path.expanduser(value)
    return value


def _at(tree: Mapping[Any, Any], key: str) -> Any:
    node: Any = tree
    for name in key.split("."):
        node = node[name]
    return node


def _refusal(key: str, raw: object, value: object, takes: Wanted) -> str:
    """The sentence on a wrong value. It names the key that was set, if this one copies its value."""
    copied = re.fullmatch(r"\$\{([\w.]+)\}", raw) if isinstance(raw, str) else None
    if copied:
        return f"{copied[1]}={shown(value)}: {key}, which takes its value, wants {takes}"
    return f"{key}={shown(value)}: want {takes}"


def shown(value: object) -> str:
    """A value as an override writes it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return f"[{','.join(map(shown, value))}]"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse_unknown(node: object, prefix: str = "") -> None:
    if not isinstance(node, dict):
        return
    known = signatures.signature(str(node["_target_"])) if "_target_" in node else None
    for name, value in node.items():
        if (
            known
            and not known.open
            and not str(name).startswith("_")
            and name not in known.parameters
        ):
            raise ValueError(f"{prefix}{name}: {node['_target_']} takes no such argument")
        _refuse_unknown(value, f"{prefix}{name}.")


def _refuse_unbuilt(tree: Mapping[Any, Any]) -> None:
    """Refuses an entry of a collection without a `_target_`: keys of a part that was not chosen."""
    for collection in COLLECTIONS:
        entries: Any = tree
        for name in collection.split("."):
            entries = entries.get(name) if isinstance(entries, Mapping) else None
        for name, entry in (entries if isinstance(entries, Mapping) else {}).items():
            built = isinstance(entry, Mapping) and "_target_" in entry
            if str(name).startswith("_") or entry is None or built:
                continue
            key = f"{collection}.{name}"
            group = collection.partition(".")[0]
            raise ValueError(
                f"{key}: nothing can be built of it, as the {group} that was chosen has no part of "
                f"that name; choose one that has it, or leave it out with ~{key}"
            )

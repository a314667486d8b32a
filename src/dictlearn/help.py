"""`dictlearn <verb> --help`: the groups, and each key with its value and its yaml's comment."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from dictlearn import config, schema

TEXT = """\
{summary}

    {command} [group=option ...] [key=value ...] [-m]

-m runs every combination of values given with commas.

Groups: the option now is in brackets

{groups}

{title}

{keys}
"""
OFTEN: dict[str, tuple[str, ...]] = {
    "train": (
        *("name", "steps", "batch_tokens", "seed", "resume", "init", "eval_tokens"),
        *("dict.layer", "dict.layers", "dict.n_features", "dict.k", "data.paths", "data.path"),
        *("data.context", "data.max_tokens", "optim.lr", "callbacks.checkpoint.every_steps"),
    )
}
OFTEN["plan"] = ("gpu", *OFTEN["train"])
WIDEST = 100


def text(verb: str, command: str, overrides: Sequence[str], everything: bool = False) -> str:
    """The help of a verb: the keys that are set most, or all of them with `everything`."""
    cfg = config.raw(verb, overrides)
    choices = {group: cfg.hydra.runtime.choices.get(group) for group in config.groups(verb)}
    del cfg.hydra
    comment, keys = spoken(verb, choices), dict(_settable(OmegaConf.to_container(cfg)))
    shown = keys if everything else _often(verb, keys, choices)
    more = f"Keys set most; `{command} --help all` shows all {len(keys)}"
    return TEXT.format(
        summary=config.verbs()[verb],
        command=command,
        groups="\n\n".join(_group(verb, *item) for item in choices.items()),
        title="Keys" if len(shown) == len(keys) else more,
        keys="\n".join(
            _line(_setting(key, value), comment.get(key, "")) for key, value in shown.items()
        ),
    )


def _setting(key: str, value: object) -> str:
    """A key with its value, which is left out if it interpolates several others."""
    composed = isinstance(value, str) and value.count("${") > 1
    return f"{key}=" if composed else f"{key}={schema.shown(value)}"


def _settable(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key that holds a value, in order."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from _settable(value, f"{prefix}{name}.")
            elif not str(name).startswith("_"):
                yield f"{prefix}{name}", value


def _often(
    verb: str, keys: Mapping[str, object], choices: Mapping[str, str | None]
) -> dict[str, object]:
    """The keys that OFTEN lists for the verb; for other verbs, the keys outside of groups."""
    own = OFTEN.get(verb)
    if own is None:
        return {key: value for key, value in keys.items() if key.split(".")[0] not in choices}
    return {key: keys[key] for key in own if key in keys}


def _group(verb: str, group: str, choice: str | None) -> str:
    """A group's purpose, and a line for each of its options."""
    yaml = config.conf_dir() / group
    lines = [_line(f"{group}=", _purpose(verb, group))]
    for name in config.options(group):
        shown = f"  [{name}]" if name == choice else f"   {name}"
        lines.append(_line(shown, config.summary(yaml / f"{name}.yaml")))
    return "\n".join(lines)


def _purpose(verb: str, group: str) -> str:
    """The comment on a group in a verb's defaults list, or in that of the verb it builds on."""
    for line in (config.conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8").splitlines():
        if match := re.match(rf"  - (?:optional |override )?/?{group}: [^#]*# (.*)", line):
            return match[1]
        base = re.fullmatch(r"  - (?!_self_)(\w+)", line)
        if base and (purpose := _purpose(base[1], group)):
            return purpose
    return ""


def _line(what: str, comment: str) -> str:
    """A key or an option beside its comment, which is wrapped if it is long."""
    head = f"    {what}"
    if not comment:
        return head.rstrip()
    return beside(head, comment, margin=36)


def beside(head: str, comment: str, margin: int) -> str:
    """`comment` to the right of `head`, wrapped to the terminal's width."""
    width = max(60, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))
    lines = textwrap.wrap(comment, width - margin, break_on_hyphens=False)
    start = f"{head:<{margin}}" if len(head) < margin else f"{head}\n{'':<{margin}}"
    return f"\n{'':<{margin}}".join([start + lines[0], *lines[1:]])


def spoken(verb: str, choices: Mapping[str, str | None]) -> dict[str, str]:
    """The comment on each key in the yamls of a verb and of the chosen options."""
    result = comments(config.conf_dir() / f"{verb}.yaml")
    for group, choice in choices.items():
        path = config.conf_dir() / group / f"{choice}.yaml"
        reaches_out = path.is_file() and path.read_text(encoding="utf-8").startswith(
            "# @package _global_"
        )
        for key, comment in comments(path).items():
            result[key if reaches_out else f"{group}.{key}"] = comment
    return result


def comments(path: Path) -> dict[str, str]:
    """The comments on keys in a yaml, or in the one it builds on: beside a key or right above it.

    A comment beside a key goes on in the lines below it that begin at the same column.
    """
    result: dict[str, str] = {}
    if not path.is_file():
        return result
    above: list[str] = []
    last, column = "", -1
    for key, line in _keyed(path.read_text(encoding="utf-8").splitlines()):
        if inherited := re.fullmatch(r"\s*- (\w+)", line):
            result |= comments(path.with_name(f"{inherited[1]}.yaml"))
        if line.lstrip().startswith("#"):
            if line.index("#") == column:
                result[last] += f" {line.strip(' #')}"
            else:
                above += [] if "@package" in line else [line.strip(" #")]
            continue
        beside = re.search(r"\s#\s*(.*)$", line)
        if key and (comment := beside[1] if beside else " ".join(above)):
            result[key] = comment
        last, column = key, line.index("#", beside.start()) if key and beside else -1
        above = []
    return result


def _keyed(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each line of a yaml with the dotted key it sets, "" for lines that set none."""
    parents: list[tuple[int, str]] = []
    for line in lines:
        match = re.match(r"( *)([\w/]+):", line)
        if not match:
            yield "", line
            continue
        indent, name = len(match[1]), match[2]
        parents = [parent for parent in parents if parent[0] < indent]
        parents.append((indent, name))
        yield ".".join(name for _, name in parents), line

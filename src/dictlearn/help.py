"""`dictlearn <verb> --help`: the groups, and each key with its value and its yaml's comment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dictlearn import config

TEXT = """\
{summary}

    {command} [group=option ...] [key=value ...] [-m]

-m runs every combination of values given with commas. model= and resume= complete paths.

Groups, the choice now in brackets

{groups}

Keys

{keys}
"""


def text(verb: str, command: str, overrides: Sequence[str]) -> str:
    cfg = config.raw(verb, overrides)
    choices = {group: cfg.hydra.runtime.choices.get(group) for group in config.groups(verb)}
    del cfg.hydra
    groups = "\n".join(_group(group, choice) for group, choice in choices.items())
    keys = "\n".join(f"    {line}".rstrip() for line in _lines(verb, cfg, choices))
    summary = config.verbs()[verb]
    return TEXT.format(summary=summary, command=command, groups=groups, keys=keys)


def _group(group: str, choice: str | None) -> str:
    names = [f"[{name}]" if name == choice else name for name in config.options(group)]
    return f"    {group:<12}{' '.join(names)}".rstrip()


def _lines(verb: str, cfg: DictConfig, choices: Mapping[str, str | None]) -> Iterator[str]:
    said = spoken(verb, choices)
    for key, line in _keyed(OmegaConf.to_yaml(cfg).splitlines()):
        comment = said.get(key, "")
        yield f"{line:<44}  # {comment}" if comment else line


def spoken(verb: str, choices: Mapping[str, str | None]) -> dict[str, str]:
    """What the yamls of a verb and of the options chosen say of each key."""
    said = comments(config.conf_dir() / f"{verb}.yaml")
    for group, choice in choices.items():
        path = config.conf_dir() / group / f"{choice}.yaml"
        reaches_out = path.is_file() and path.read_text().startswith("# @package _global_")
        for key, comment in comments(path).items():
            said[key if reaches_out else f"{group}.{key}"] = comment
    return said


def comments(path: Path) -> dict[str, str]:
    """What a yaml, or the one it builds on, says of its keys: beside them or right above."""
    found: dict[str, str] = {}
    if not path.is_file():
        return found
    above: list[str] = []
    for key, line in _keyed(path.read_text().splitlines()):
        if inherited := re.fullmatch(r"\s*- (\w+)", line):
            found |= comments(path.with_name(f"{inherited[1]}.yaml"))
        if line.lstrip().startswith("#"):
            above += [] if "@package" in line else [line.strip(" #")]
            continue
        beside = re.search(r"\s#\s*(.*)$", line)
        if key and (comment := beside[1] if beside else " ".join(above)):
            found[key] = comment
        above = []
    return found


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

"""Published dictionaries by name: conf/published/<release>.yaml and a layer, gemma_scope_2b_res_l12.

A release's yaml says where it lies (`path`, a hub id, with {layer} where it has one for each layer and
{l0} where its folders' names say that), its `site`, and which `model` it reads: a preset of conf/model or
a hub id. `l0` are those of the layers; `layers` how many there are, or which. `text` is a data set of the
hub to read where the command names none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dictlearn import config

KEYS = ("dictionary", "init")
TEXT_TOKENS = 2_000_000  # read of `text`: what features and evaluate ask for by default, twice


@dataclass(frozen=True)
class Published:
    """One dictionary of a release."""

    path: str
    site: str
    model: str
    text: str | None


def releases() -> list[str]:
    return config.options("published")


def expanded(verb: str, overrides: Iterable[str]) -> list[str]:
    """`overrides`, with a published name in dictionary= or init= replaced by its path.

    Beside dictionary=, its model and a text are chosen too where the verb takes them and the command
    names none. Several names, for a multirun, must be of one model.

    Raises:
        ValueError: a name that is not quite one of a release.
    """
    overrides = list(overrides)
    return [part for one in overrides for part in _expanded(verb, one, overrides)]


def _expanded(verb: str, override: str, overrides: Sequence[str]) -> list[str]:
    key, _, value = override.partition("=")
    if key not in KEYS or not re.fullmatch(r"[\w,]+", value) or Path(value).exists():
        return [override]
    found = [named(name) for name in value.split(",")]
    ones = [one for one in found if one is not None]
    if len(ones) < len(found):
        return [override]
    parts = [f"{key}={','.join(one.path for one in ones)}"]
    if key == "init":
        return parts
    if len({(one.model, one.text) for one in ones}) > 1:
        raise ValueError(f"{override}: these are of several models; want those of one")
    groups = [group for group in config.groups(verb) if not _names(group, overrides)]
    if "model" in groups:
        parts.append(f"model={ones[0].model}")
    if "data" in groups and ones[0].text is not None:
        parts += ["data=hub", f"data.path={ones[0].text}", f"data.max_tokens={TEXT_TOKENS}"]
    return parts


def named(name: str) -> Published | None:
    """What is published under a name; None where nothing has one like it.

    Raises:
        ValueError: one sentence: a release of that name has no such layer, or which name was meant.
    """
    parts = re.fullmatch(r"(\w+?)(?:_l(\d+))?", name)
    if parts is None:
        return None
    release, layer = (name, None) if name in releases() else (parts[1], parts[2])
    if release not in releases():
        near = config.nearest(release, releases(), 0.75)
        if near is None:
            return None
        numbers, ending = _layers_of(_read(near))
        if layer is not None and int(layer) in numbers:
            ending = f"_l{int(layer)}"
        raise ValueError(f"{name}: no such folder; did you mean {near}{ending}?")
    found = _read(release)
    numbers, ending = _layers_of(found)
    if (layer is None) != (not numbers) or (layer is not None and int(layer) not in numbers):
        shown = f"{numbers[0]} to {numbers[-1]}" if _all(numbers) else ", ".join(map(str, numbers))
        if not numbers:
            raise ValueError(
                f"{name}: {release} is one dictionary; want {release}, without a layer"
            )
        has = "want a layer too" if layer is None else f"there is no layer {layer}"
        raise ValueError(
            f"{name}: {has}; {release} has {'layers' if numbers[1:] else 'layer'} {shown}, so want such "
            f"as {release}{ending}"
        )
    number = None if layer is None else int(layer)
    l0 = found["l0"][number] if "l0" in found else None
    path = found["path"].format(layer=number, l0=l0)
    return Published(path, found["site"].format(layer=number), found["model"], found.get("text"))


def _read(release: str) -> dict[str, Any]:
    found = OmegaConf.to_container(
        OmegaConf.load(config.conf_dir() / "published" / f"{release}.yaml")
    )
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _layers_of(found: dict[str, Any]) -> tuple[list[int], str]:
    """(the layers that a release has, none if it is one dictionary; what a name ends in)."""
    layers = found.get("layers", len(found.get("l0", [])))
    numbers = list(range(layers)) if isinstance(layers, int) else list(layers)
    return numbers, f"_l{numbers[len(numbers) // 2]}" if numbers else ""


def _all(numbers: Sequence[int]) -> bool:
    return len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))


def _names(group: str, overrides: Iterable[str]) -> bool:
    """Whether the command says something about a group."""
    return any(re.match(rf"[+~]*{group}\b", override) for override in overrides)

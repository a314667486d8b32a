"""What is wrong with an override, in one sentence, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from dictlearn import config, help


def checked(
    verb: str, texts: Sequence[str], multirun: bool = False, config_dir: str | None = None
) -> list[str]:
    """The overrides `texts`, whole numbers written as floats (1e4) made integers where one is due.

    Raises ValueError, one sentence on the first override that cannot be: a key or an option that
    doesn't exist, with the nearest that does; text where a number belongs; null where the key's
    comment in its yaml doesn't speak of null; several values without `multirun`.
    `config_dir` is a folder of further yaml.
    """
    folders = [config.conf_dir(), *([Path(config_dir)] if config_dir else [])]
    groups = config.groups(verb)
    overrides = [_parsed(text) for text in texts]
    choices = []
    for text, override in zip(texts, overrides, strict=True):
        if override.is_sweep_override() and not multirun:
            raise ValueError(
                f"{text}: several values want -m, which runs each of them; "
                f"a list goes in brackets, {override.key_or_group}=[...]"
            )
        if override.key_or_group in groups:
            _check_choice(text, override, folders)
            choices += [] if override.is_sweep_override() else [text]

    where = config.quoted(f"file://{folders[-1].resolve()}")
    cfg = config.raw(verb, [*choices, f"hydra.searchpath=[{where}]"])
    choices = cfg.hydra.runtime.choices
    keys = dict(dotted(OmegaConf.to_container(cfg)))
    said = help.spoken(verb, {group: choices.get(group) for group in groups})
    result = []
    for text, override in zip(texts, overrides, strict=True):
        key = override.key_or_group
        outside = override.is_add() or key in groups or key.startswith("hydra/")
        if not outside and key not in keys:
            near = config.nearest(key, [*keys, *groups])
            meant = f"; did you mean {near}?" if near else ""
            raise ValueError(f"{text}: no such key{meant}")
        if not outside:
            _check_null(text, override, keys, said.get(key, ""))
        result.append(text if outside else _typed(text, override, keys))
    return result


def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except OverrideParseException as error:
        raise ValueError(
            f"{text}: want key=value, with quotes around a value that has spaces or brackets"
        ) from error


def _check_choice(text: str, override: Override, folders: Sequence[Path]) -> None:
    group = override.key_or_group
    names = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
    for choice in _values(override):
        if choice not in names:
            raise ValueError(f"{text}: {config.choose_from(str(choice), sorted(names))}")


def _check_null(text: str, override: Override, keys: Mapping[str, object], comment: str) -> None:
    default = keys[override.key_or_group]
    plain = isinstance(default, int | float | str) and not isinstance(default, bool)
    if plain and None in _values(override) and not re.search(r"\bnull\b", comment):
        if _target(override.key_or_group, keys).startswith("lightning."):
            return
        raise ValueError(f"{text}: want a value, such as {default}")


def _target(key: str, keys: Mapping[str, object]) -> str:
    """What is built from the group of keys that this one is in."""
    return str(keys.get(f"{key.rpartition('.')[0]}._target_"))


def _typed(text: str, override: Override, keys: Mapping[str, object]) -> str:
    """Refuses text in the place of a number or a switch; writes 1e4 as 10000 in an integer's."""
    key = override.key_or_group
    default = keys[key]
    values = _values(override)
    # Lightning takes words for numbers (devices=auto) and says itself what they may be.
    words = _target(key, keys).startswith("lightning.")
    if isinstance(default, bool | int | float) and not words:
        for value in values:
            if isinstance(value, QuotedString | str) and "${" not in str(value):
                wanted = "true or false" if isinstance(default, bool) else "a number"
                raise ValueError(f"{text}: want {wanted}, such as {str(default).lower()}")
    whole = [value for value in values if isinstance(value, float) and value.is_integer()]
    if type(default) is int and values and len(whole) == len(values):
        return f"{key}={','.join(str(int(value)) for value in whole)}"
    return text


def _values(override: Override) -> list[object]:
    """What an override may set; nothing for a deletion and for what only a sweeper can list."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return list(value.list)
    if override.is_sweep_override() or override.is_delete():
        return []
    return value if isinstance(value, list) else [value]


def dotted(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key of a configuration as an override would write it, with its value."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield f"{prefix}{name}", value
            yield from dotted(value, f"{prefix}{name}.")

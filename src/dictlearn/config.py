"""The configuration: where it lives, how it is composed, and what a wrong override meant to say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict

OmegaConf.register_new_resolver("last", lambda path: Path(str(path)).name, replace=True)


def conf_dir() -> Path:
    """The folder of yaml: inside the installed package, or the checkout's own, live."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def verbs() -> dict[str, str]:
    """Every verb, which is a verbs/<verb>.py and a conf/<verb>.yaml, and that yaml's first line."""
    code = Path(__file__).parent / "verbs"
    roots = [path for path in conf_dir().glob("*.yaml") if (code / f"{path.stem}.py").is_file()]
    return {root.stem: root.read_text().split("\n", 1)[0].strip("# ") for root in sorted(roots)}


def groups(verb: str) -> list[str]:
    """The groups in a verb's defaults list, in its order, but for Hydra's own."""
    root = OmegaConf.load(conf_dir() / f"{verb}.yaml")
    assert isinstance(root, DictConfig)
    names = [str(name).split()[-1] for item in root.defaults if item != "_self_" for name in item]
    return [name for name in names if name != "hydra"]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def compose(verb: str = "train", overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that `dictlearn <verb> <overrides>` would run with."""
    cfg = raw(verb, overrides)
    HydraConfig.instance().set_config(cfg)
    return settled(cfg)


def raw(verb: str, overrides: Sequence[str]) -> DictConfig:
    """The same with nothing resolved, and with Hydra's own part."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose(verb, with_model_paths(overrides), return_hydra_config=True)


def settled(cfg: DictConfig) -> DictConfig:
    """`cfg` without Hydra's own part, its name decided: nothing asks the clock from here on."""
    with open_dict(cfg):
        if "name" in cfg:
            cfg.name = cfg.name
        cfg.pop("hydra", None)
    return cfg


def with_model_paths(overrides: Iterable[str]) -> list[str]:
    """`model=<folder or hub id>` as `model=hf model.path=<folder or hub id>`; the rest as it is."""
    return [part for override in overrides for part in _with_model_path(override)]


def _with_model_path(override: str) -> list[str]:
    name, equals, value = override.partition("=")
    presets = options("model")
    if name != "model" or not equals or not value or value in presets:
        return [override]
    if "," in value:
        if set(value.split(",")) <= set(presets):
            return [override]
        raise ValueError(
            f"{override}: to go through folders or hub ids, use model=hf model.path={value}"
        )
    if "/" not in value and not Path(value).is_dir() and (near := _nearest(value, presets, 0.75)):
        raise ValueError(
            f"{override}: choose from {', '.join(presets)}, or give a folder or a hub id; "
            f"did you mean {near}?"
        )
    path = str(Path(value).expanduser()) if value.startswith("~") else value
    return ["model=hf", f"model.path={quoted(path)}"]


def quoted(value: str) -> str:
    """`value` as Hydra's grammar reads it back."""
    if re.fullmatch(r"[\w./@+-]+", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def check(
    verb: str, overrides: Sequence[str], multirun: bool = False, config_dir: str | None = None
) -> None:
    """Says in one sentence what is wrong with the first override that cannot be.

    Raises ValueError: a key or an option that doesn't exist, with the nearest that does; text where
    a number belongs; several values without `multirun`. `config_dir` is a folder of further yaml.
    """
    folders = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
    known = groups(verb)
    parsed = [_parsed(text) for text in overrides]
    for override in parsed:
        if override.is_sweep_override() and not multirun:
            raise ValueError(
                f"{override.input_line}: several values want -m, which runs each of them; "
                f"a list goes in brackets, {override.key_or_group}=[...]"
            )
        group = override.key_or_group
        names = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
        for choice in _chosen(override) if group in known else ():
            if choice not in names:
                raise ValueError(f"{override.input_line}: {choose_from(choice, sorted(names))}")

    chosen = [
        text
        for text, override in zip(overrides, parsed, strict=True)
        if override.key_or_group in known and not override.is_sweep_override()
    ]
    where = quoted(f"file://{folders[-1].resolve()}")
    cfg = raw(verb, [*chosen, f"hydra.searchpath=[{where}]"])
    keys = list(dotted(cfg))
    for override in parsed:
        key = override.key_or_group
        if override.is_add() or key in known or key.startswith("hydra/"):
            continue
        if key not in keys:
            near = _nearest(key, [*keys, *known])
            meant = f"; did you mean {near}?" if near else ""
            raise ValueError(f"{override.input_line}: no such key{meant}")
        if not (override.is_sweep_override() or override.is_delete()):
            _check_type(override, cfg)


def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except OverrideParseException as error:
        raise ValueError(
            f"{text}: want key=value, with quotes around a value that has spaces or brackets"
        ) from error


def _chosen(override: Override) -> list[str]:
    """The options a group override names; none for null and for what only a sweeper can list."""
    if override.is_choice_sweep():
        return [str(choice) for choice in override.sweep_string_iterator()]
    if override.is_sweep_override():
        return []
    value = override.value()
    several = value if isinstance(value, list) else [value]
    return [str(choice) for choice in several if choice is not None]


def _check_type(override: Override, cfg: DictConfig) -> None:
    """A number's and a switch's place take no text, a count's no fraction written as one."""
    node = OmegaConf.select(cfg, override.key_or_group, throw_on_missing=False)
    value = override.value()
    if isinstance(value, QuotedString) or (isinstance(value, str) and "${" not in value):
        wanted = {bool: "true or false", int: "a number", float: "a number"}.get(type(node))
        if wanted:
            raise ValueError(f"{override.input_line}: want {wanted}, such as {_plain(node)}")
    if type(node) is int and isinstance(value, float) and value.is_integer() and abs(value) >= 10:
        raise ValueError(f"{override.input_line}: want a whole number; write {int(value)}")


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def choose_from(value: str, names: Sequence[str]) -> str:
    near = _nearest(value, names)
    return f"choose from {', '.join(names)}" + (f"; did you mean {near}?" if near else "")


def dotted(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every key of `cfg` and below, as an override would write it."""
    for name in cfg:
        key = f"{prefix}{name}"
        yield key
        node = cfg._get_node(name)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_interpolation()):
            yield from dotted(node, f"{key}.")


def _nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that `name` meant: the shortest that ends in it, else the one spelt most like it."""
    names = sorted(names, key=len)
    ends = [full for full in names if full.rpartition(".")[2] == name]
    return next(iter(ends or get_close_matches(name, names, n=1, cutoff=cutoff)), None)

"""Checks overrides before anything runs; a mistake is one sentence."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from dictlearn import config, schema, usual_names
from dictlearn.ckpt.resume import CONFIG
from dictlearn.disk.strict_json import read_json

MOST_OPTIONS = 3  # that are named because they have a key


def checked(
    verb: str, texts: Sequence[str], multirun: bool = False, config_dir: str | None = None
) -> list[str]:
    """The overrides `texts`, with quotes around numbers that are meant as text (name=1e3).

    Raises ValueError, one sentence on the first wrong override: a key or an option that doesn't
    exist, with the nearest that does; a value that its key doesn't take; several values without
    `multirun`. `config_dir` is a folder of further yaml.
    """
    folders = [config.conf_dir(), *([Path(config_dir)] if config_dir else [])]
    groups = config.groups(verb)
    for text in texts:
        _refuse_bare(verb, text)
    overrides = [_parsed(text) for text in texts]
    choices = []
    for text, override in zip(texts, overrides, strict=True):
        if override.is_sweep_override() and not multirun:
            raise ValueError(
                f"{text}: several values want -m, which runs each of them; "
                f"a list goes in brackets, {override.key_or_group}=[...]"
            )
        if override.key_or_group in groups:
            _check_choice(verb, text, override, folders)
            choices += [] if override.is_sweep_override() else [text]

    where = config.quoted(f"file://{folders[-1].resolve()}")
    tree = OmegaConf.to_container(config.raw(verb, [*choices, f"hydra.searchpath=[{where}]"]))
    assert isinstance(tree, dict)
    keys = dict(dotted(tree))
    if chosen := _choices_of_the_run(overrides, groups, keys):
        both = [*chosen, *texts]
        return checked(verb, both, multirun, config_dir)
    takes = schema.keys(verb, {name: node for name, node in tree.items() if name != "hydra"})
    result = []
    for text, override in zip(texts, overrides, strict=True):
        key = override.key_or_group
        outside = override.is_add() or key in groups or key.split(".")[0].split("/")[0] == "hydra"
        if not outside and key not in keys:
            ours = [name for name in keys if name.split(".")[0] != "hydra"]
            meant = _meant(verb, key, [*ours, *groups])
            if config.LISTED in ours and key in config.NAMES_A_RUN:
                path = text.partition("=")[2]
                meant = f"; folders stand without a key: dictlearn {verb} {path} <another folder>"
            raise ValueError(f"{text}: no such key{meant}")
        result.append(text if outside else _fitted(text, override, takes))
    return result


def _choices_of_the_run(
    overrides: Sequence[Override], groups: Sequence[str], keys: Collection[str]
) -> list[str]:
    """The options, such as data=text, that have the keys which only the run to go on with has."""
    typed = {override.key_or_group for override in overrides}
    lacking = [
        key for key in typed - {*keys} if key.partition(".")[0] in {*groups} - typed and "." in key
    ]
    saved = _saved(overrides) if lacking else {}
    found = {}
    for key in lacking:
        group, _, below = key.partition(".")
        own = saved.get(group)
        if not isinstance(own, dict):
            continue
        for option in config.options(group):
            same = _yaml(f"{group}/{option}").get("_target_") == own.get("_target_")
            if same and below in _below(group, option):
                found.setdefault(group, f"{group}={option}")
    return list(found.values())


def _saved(overrides: Sequence[Override]) -> dict[str, Any]:
    """The configuration of the run that resume= names; empty if there is none."""
    given = {one.key_or_group: one.value() for one in overrides if not one.is_sweep_override()}
    resume, name = given.get("resume"), given.get("name")
    if resume is None:
        return {}
    run = Path(str(given.get("run_dir", f"runs/{name}") if resume == "auto" else resume))
    steps = [*run.glob("step-*"), *run.glob("checkpoints/step-*")]
    newest = max(steps, key=lambda step: (len(step.name), step.name), default=run)
    try:
        saved = read_json(newest / CONFIG)
    except ValueError:  # it is refused once the run goes on from it
        return {}
    return saved if isinstance(saved, dict) else {}


def _meant(verb: str, key: str, there: Sequence[str]) -> str:
    """The end of the sentence on a key that doesn't exist: where it does, or which is like it."""
    group, _, below = key.partition(".")
    near = usual_names.meant_by(key, there)
    if not near:
        if key in ("run", "dictionary") and "resume" in there:
            return (
                f"; {verb} takes the keys of a training run, where resume=<run> goes on with one and "
                f"init=<run> starts from its dictionary"
            )
        here = config.groups(verb)
        options = config.options(group) if group in here else []
        having = [f"{group}={one}" for one in options if below in _below(group, one)]
        if having:
            return f" here; {' or '.join(having[:MOST_OPTIONS])} has it"
        others = [] if group in there else [one for one in config.verbs() if _takes(one, group)]
        if others:
            what = "group" if (config.conf_dir() / group).is_dir() else "key"
            return f" of {verb}; {group}= is a {what} of {', '.join(others)}"
        plain = [name for name in there if not name.rpartition(".")[2].startswith("_")]
        near = [name for name in (config.nearest(key, plain),) if name]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _takes(verb: str, name: str) -> bool:
    """Whether a verb has a group or a key of this name, in its own yaml or that which it builds on."""
    root = _yaml(verb)
    bases = [
        item for item in root.get("defaults", []) if isinstance(item, str) and item != "_self_"
    ]
    return (
        name in config.groups(verb)
        or name in {str(key) for key in root} - {"defaults"}
        or any(_takes(base, name) for base in bases)
    )


def _below(group: str, option: str) -> set[str]:
    """The keys that an option's own yaml sets below its group."""
    tree = _yaml(f"{group}/{option}")
    own = tree.get(group) if isinstance(tree.get(group), dict) else tree
    return {key for key, _ in dotted(own)}


def _yaml(name: str) -> dict[Any, Any]:
    tree = OmegaConf.to_container(OmegaConf.load(config.conf_dir() / f"{name}.yaml"))
    assert isinstance(tree, dict)
    return tree


def sweeps(text: str) -> bool:
    """Whether an override holds several values, one for each run of a multirun."""
    return _parsed(text).is_sweep_override()


def value(text: str) -> str:
    """The value of an override, without the quotes of Hydra's grammar."""
    return str(_parsed(text).value())


def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except OverrideParseException as error:
        raise ValueError(
            f"{text}: want key=value, with quotes around a value that has spaces or brackets"
        ) from error


def _refuse_bare(verb: str, text: str) -> None:
    """Raises ValueError for a file or folder without a key, with the keys that would take it."""
    path = Path(text)
    if "=" in text or not path.exists():
        return
    keys, groups = set(map(str, config.raw(verb).keys())), config.groups(verb)
    takes = [f"{key}={text}" for key in ("run", "dictionary", "resume") if key in keys]
    if path.is_file():
        takes = [f"{key}={text}" for key in ("vector", "graph") if key in keys]
        takes += [f"data=text data.paths={text}"] if "data" in groups else []
    elif (path / "config.json").is_file() and "model" in groups:
        takes = [f"model={text}"]
    such = f", such as {' or '.join(takes)}" if takes else ""
    raise ValueError(f"{text}: want key=value{such}")


def _check_choice(verb: str, text: str, override: Override, folders: Sequence[Path]) -> None:
    group = override.key_or_group
    names = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
    if override.is_delete():
        if group not in config.optional_groups(verb):
            raise ValueError(f"{group}=null: {config.choose_from('', sorted(names))}")
        return
    if not override.is_sweep_override() and isinstance(override.value(), list):
        raise ValueError(f"{text}: want one option; {config.choose_from('', sorted(names))}")
    for choice in _values(override):
        if group == "data" and str(choice) not in names and Path(str(choice)).is_file():
            raise ValueError(f"{text}: is a file; files are read by data=text data.paths={choice}")
        if str(choice) not in names:
            raise ValueError(f"{text}: {config.choose_from(schema.shown(choice), sorted(names))}")


def _fitted(text: str, override: Override, takes: Mapping[str, schema.Wanted]) -> str:
    """Refuses a value that its key doesn't take; text that reads as a number gets quotes."""
    key = override.key_or_group
    if key.rpartition(".")[2].startswith("_"):
        raise ValueError(f"{text}: what a yaml builds is not set on the command line")
    wanted = takes[key]
    if override.is_delete():
        if wanted.part and wanted.null:
            return text
        raise ValueError(f"~{key}: a key can't be left out; set it to {wanted}")
    quote = False
    for value in _values(override):
        plain = _plain(value)
        if isinstance(plain, str) and ("${" in plain or plain == "???"):
            continue  # known only once everything is composed
        if wanted.fitted(plain) is schema.MISFIT:
            typed = text.partition("=")[2]  # 1e999 is read as infinity
            own = isinstance(plain, float) and not override.is_sweep_override()
            raise ValueError(f"{key}={typed if own else schema.shown(plain)}: want {wanted}")
        number = isinstance(plain, int | float) and not isinstance(plain, bool)
        quote |= number and isinstance(wanted.fitted(plain), str)
    if quote and not override.is_sweep_override():
        return f"{key}={config.quoted(text.partition('=')[2], always=True)}"
    return text


def _values(override: Override) -> list[object]:
    """The values that an override may set; none for a deletion or a sweep that is no list."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return list(value.list)
    if override.is_sweep_override() or override.is_delete():
        return []
    return [_plain(value)]


def _plain(value: object) -> object:
    """Lists and mappings without Hydra's own quoted strings inside."""
    match value:
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case QuotedString():
            return value.text
    return value


def dotted(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key of a configuration as an override would write it, with its value."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield f"{prefix}{name}", value
            yield from dotted(value, f"{prefix}{name}.")

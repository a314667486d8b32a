"""The configuration: its folder, how it is composed, and the names in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict

from dictlearn import schema
from dictlearn.disk.errors import error_text
from dictlearn.disk.leftovers import LONGEST_NAME
from dictlearn.sources import mixture

# Groups that take a folder or hub id, and the option that it selects.
TAKES_A_PATH = {"model": "hf", "teacher": "model"}
# Keys whose value may be a run's folder. A multirun's folders have commas in their names.
NAMES_A_RUN = ("run", "dictionary", "resume", "init", "name")
PLACES = ("run_dir", "output", "run", "dictionary")  # empty if a shell variable is not set
LISTED = "runs"  # the key of a verb that takes folders without a key: dictlearn compare a b

OmegaConf.register_new_resolver("last", lambda path: Path(str(path)).name, replace=True)


def conf_dir() -> Path:
    """The folder of yaml: inside the installed package, or the checkout's own, live."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


# The verbs in the order of work; a verb that is not here comes after these.
ORDER = ("plan", "train", "evaluate", "report", "compare", "features", "explain", "pages", "lookup")
ORDER += ("vector", "steer", "attribute", "export", "label", "targets", "cache")


def verbs() -> dict[str, str]:
    """Every verb with the first line of its conf/<verb>.yaml; its code is verbs/<verb>.py."""
    code = Path(__file__).parent / "verbs"
    roots = [path for path in conf_dir().glob("*.yaml") if (code / f"{path.stem}.py").is_file()]
    rank = {verb: number for number, verb in enumerate(ORDER)}
    roots.sort(key=lambda root: (rank.get(root.stem, len(ORDER)), root.stem))
    return {root.stem: summary(root) for root in roots}


def summary(yaml: Path) -> str:
    """A yaml's description of itself: its first line of comment."""
    lines = yaml.read_text(encoding="utf-8").splitlines()
    comments = (
        line.strip("# ") for line in lines if line.startswith("#") and "@package" not in line
    )
    return next(comments, "")


def groups(verb: str) -> list[str]:
    """The groups in a verb's defaults list, in its order, without Hydra's own."""
    root = OmegaConf.load(conf_dir() / f"{verb}.yaml")
    assert isinstance(root, DictConfig)
    names: list[str] = []
    for item in root.get("defaults", []):
        if isinstance(item, DictConfig):
            names += [str(name).split()[-1] for name in item if name != "hydra"]
        elif item != "_self_":  # another verb's yaml, which this one builds on
            names += groups(item)
    return names


def optional_groups(verb: str) -> set[str]:
    """The groups of a verb that can be left out: those off by default, and collections."""
    root = OmegaConf.load(conf_dir() / f"{verb}.yaml")
    assert isinstance(root, DictConfig)
    names = {"callbacks", "eval", "logger", "local"}
    for item in root.get("defaults", []):
        if isinstance(item, DictConfig):
            names |= {str(name).split()[-1] for name, option in item.items() if option is None}
        elif item != "_self_":
            names |= optional_groups(item)
    return names


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def compose(verb: str = "train", overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that `dictlearn <verb> <overrides>` would run with.

    Raises:
        ValueError: one sentence on a value that its key doesn't take.
    """
    cfg = raw(verb, overrides)
    HydraConfig.instance().set_config(cfg)
    return settled(verb, cfg)


def raw(verb: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The same configuration, unresolved and with Hydra's own part."""
    with _apart(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose(verb, translated(overrides, verb), return_hydra_config=True)


@contextmanager
def _apart() -> Iterator[None]:
    """Lets a configuration be composed while Hydra runs a job."""
    everywhere = GlobalHydra.instance()
    running = everywhere.hydra
    everywhere.clear()
    try:
        yield
    finally:
        everywhere.clear()
        everywhere.hydra = running


def settled(verb: str, cfg: DictConfig) -> DictConfig:
    """`cfg` without Hydra's own part and with a fixed name, so nothing reads the clock after this.

    Every value has its key's type (1e3 becomes 1000 for a whole number). Raises ValueError if a
    value cannot have it.
    """
    with open_dict(cfg):
        if "name" in cfg:
            cfg.name = str(cfg.name)
            check_name(cfg.name)
        for key in PLACES:
            if cfg.get(key) == "":
                raise ValueError(f"{key}=: nothing stands after it; want a path, or leave it out")
        if isinstance(cfg.get("data"), DictConfig):
            cfg.data = mixture.with_kinds(cfg.data, _folders(cfg))
        cfg.pop("hydra", None)
        schema.check(verb, cfg)
    return cfg


def _folders(cfg: DictConfig) -> list[str]:
    """The folders of yaml that a configuration was composed from, the user's own last."""
    sources = OmegaConf.select(cfg, "hydra.runtime.config_sources") or []
    own = [str(source.path) for source in sources if source.schema == "file" and source.path]
    return [str(conf_dir()), *own]


def check_name(name: str) -> None:
    """Raises ValueError for a run's name that leads out of runs/, or is runs/ itself."""
    parts = name.split("/")
    odd = any(part in ("", ".", "..") for part in parts) or not name.isprintable()
    if odd or any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        raise ValueError(
            f"name={name!r}: want the name of a folder in runs/, or of one in such a folder (a/b): not "
            f"empty, without . and .. among its parts, each of at most {LONGEST_NAME} bytes"
        )


def listed(verb: str, args: Sequence[str]) -> list[str]:
    """`args`, with folders that have no key put into the verb's list of folders, if it has one."""
    root = OmegaConf.load(conf_dir() / f"{verb}.yaml")
    if LISTED not in root:
        return list(args)
    keys = (*map(str, root), "hydra")
    folders = [arg for arg in args if not arg.startswith("-") and not _sets(arg, keys)]
    others = [arg for arg in args if arg not in folders]
    if folders and any(arg.startswith(f"{LISTED}=") for arg in others):
        raise ValueError(f"{folders[0]}: name all folders without a key, or all in {LISTED}=[...]")
    return [*others, f"{LISTED}=[{','.join(map(quoted, folders))}]"] if folders else others


def _sets(arg: str, keys: Iterable[str]) -> bool:
    """Whether an argument is key=value and not a path that contains an =."""
    name, equals, _ = arg.partition("=")
    return bool(equals) and (name.lstrip("+~") in keys or "/" not in name)


def translated(overrides: Iterable[str], verb: str = "") -> list[str]:
    """`overrides` in Hydra's grammar.

    `prompt=<text>` becomes `prompts='<text>'` for a verb that has such a key: Hydra would take it for
    the group of that name, which another verb has.

    `model=<folder or hub id>` becomes `model=hf model.path=<folder or hub id>`, and a teacher given
    as a preset of model, a folder or a hub id becomes `teacher=model teacher.path=...`. Python's
    None, which a W&B sweep writes for null, becomes null; a group set to null is left out, `~group`.
    `+trainer.<key>` adds a key of Lightning's Trainer, or sets it where the yaml has it already.
    """
    return [part for one in overrides for part in _translated(_with_prompts(verb, one))]


def _with_prompts(verb: str, override: str) -> str:
    name, equals, value = override.partition("=")
    if not verb or name != "prompt" or not equals or "prompts" not in _own_keys(verb):
        return override
    is_written = value[:1] in ("[", "'", '"') or value in ("", "null", "None")
    return f"prompts={value if is_written else quoted(value)}"


def _own_keys(verb: str) -> list[str]:
    root = OmegaConf.load(conf_dir() / f"{verb}.yaml")
    return [str(key) for key in root]


def _translated(override: str) -> list[str]:
    if override.startswith("+trainer."):
        override = f"+{override}"  # sets a key that this version's yaml has as well
    name, _, value = override.partition("=")
    if value in ("None", "null"):
        return [f"~{name}" if (conf_dir() / name).is_dir() else f"{name}=null"]
    if name in NAMES_A_RUN and re.search("[,=]", value) and _is_there(name, value):
        return [f"{name}={quoted(value)}"]
    if (
        name not in TAKES_A_PATH
        and not value.isascii()
        and not re.search(r"""[,\[\]{}'"$]""", value)
    ):
        return [f"{name}={quoted(value)}"]  # Hydra's grammar has only ASCII outside of quotes
    # Hydra's grammar has no ~ in a value.
    if "~" in value and name.rpartition(".")[2] in schema.PATHS:
        home = str(Path.home())
        value = re.sub(r"(^|[\[,])~(?=/|$)", lambda before: before[1] + home, value)
        override = f"{name}={value}"
    if name not in TAKES_A_PATH or not value or value in options(name):
        return [override]
    option, presets = TAKES_A_PATH[name], sorted({*options(name), *_paths()})
    if "," in value:
        if set(value.split(",")) <= set(options(name)):
            return [override]
        raise ValueError(
            f"{override}: to go through folders or hub ids, use {name}={option} {name}.path={value}"
        )
    if path := _paths().get(value):
        return [f"{name}={option}", f"{name}.path={path}"]
    if "/" not in value and not Path(value).is_dir() and (near := nearest(value, presets, 0.75)):
        raise ValueError(
            f"{override}: choose from {', '.join(presets)}, or give a folder or a hub id; "
            f"did you mean {near}?"
        )
    path = str(Path(value).expanduser()) if value.startswith("~") else value
    return [f"{name}={option}", f"{name}.path={quoted(path)}"]


def _is_there(name: str, value: str) -> bool:
    return Path("runs" if name == "name" else "", value).expanduser().exists()


def _paths() -> dict[str, str]:
    """The model's path for each preset of the model group."""
    yamls = {o: OmegaConf.load(conf_dir() / "model" / f"{o}.yaml") for o in options("model")}
    paths = {o: OmegaConf.select(y, "path", throw_on_missing=False) for o, y in yamls.items()}
    return {option: path for option, path in paths.items() if path is not None}


def sentence(error: Exception) -> str:
    """An error's message on one line; for an error inside an instantiation, only the inner one."""
    cause = error.__cause__
    if isinstance(error, InstantiationException) and isinstance(cause, ValueError | OSError):
        return sentence(cause)
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", str(error)):
        return f"{missing[1]}: no value was given; pass {missing[1]}=<value>"
    said = error_text(error)
    if isinstance(error, OSError) and error.filename and said != str(error):
        said = f"{error.filename}: {said}"
    return " ".join(said.split())


def quoted(value: str, always: bool = False, mark: str = "'") -> str:
    """`value` for Hydra's grammar, between `mark`s if the grammar needs them, or `always`."""
    if re.fullmatch(r"[\w./@+-]+", value, re.ASCII) and not always:
        return value
    # Backslashes are doubled only before a quote: elsewhere the grammar takes them literally.
    value = re.sub(rf"(\\*){mark}", rf"\1\1\\{mark}", value)
    return mark + re.sub(r"(\\+)$", r"\1\1", value) + mark


def literal(value: Any) -> Any:
    """Escapes `${` in all strings of `value`, so that OmegaConf interpolates nothing."""
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [literal(item) for item in value]
    if isinstance(value, str) and value != "???":
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def choose_from(value: str, names: Sequence[str]) -> str:
    near = nearest(value, names)
    return f"choose from {', '.join(names)}" + (f"; did you mean {near}?" if near else "")


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that a user meant by `name`: the shortest that ends in it, else the most similar."""
    names = sorted(names, key=len)
    ends = [full for full in names if full.rpartition(".")[2] == name]
    return next(iter(ends or get_close_matches(name, names, n=1, cutoff=cutoff)), None)

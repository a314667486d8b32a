"""Every yaml composes, and every key in it is an argument of what it instantiates.

The yaml are found on disk: a new one is tested without an edit here.
"""

from __future__ import annotations

import inspect
import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dictlearn import config, signatures
from dictlearn.dicts.options import Options
from dictlearn.overrides import dotted

# Folders that no verb composes: Hydra's own settings, files for the W&B agent (test_sweeps.py), and
# published dictionaries (test_published.py).
ELSEWHERE = {"hydra", "sweep", "local", "published"}
# Arguments that a target only hands on, and to whom.
HANDED_ON: dict[str, Callable[..., Any]] = {"wandb_logger": wandb.init}

VERBS = sorted(path.stem for path in config.conf_dir().glob("*.yaml"))
FILES = sorted(
    {
        (group, option): (verb, group, option)
        for verb in VERBS
        for group in config.groups(verb)
        for option in config.options(group)
        if group not in ELSEWHERE
    }.values()
)


def composed(verb: str, *overrides: str) -> DictConfig:
    """As the command line composes it; what a user must give is given."""
    cfg = config.raw(verb, overrides)
    HydraConfig.instance().set_config(cfg)
    tree = OmegaConf.to_container(cfg)
    assert isinstance(tree, dict)
    del tree["hydra"]
    for key, value in dotted(tree):
        if value == "???":
            OmegaConf.update(cfg, key, "given")
    return config.settled(verb, cfg)


def problems(node: Any, key: str = "") -> Iterator[str]:
    """What is wrong with the keys at and below `node`, against the signatures they name."""
    if isinstance(node, list):
        for place, item in enumerate(node):
            yield from problems(item, f"{key}[{place}]")
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        yield from problems(value, f"{key}.{name}" if key else str(name))
    if "_target_" not in node:
        return
    target = get_object(node["_target_"])
    parameters = inspect.signature(target).parameters
    known = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    for p in parameters.values():
        if p.kind is p.VAR_KEYWORD and str(p.annotation).startswith("Unpack["):
            known |= set(get_type_hints(target)[p.name].__args__[0].__annotations__)
    if target.__name__ in HANDED_ON:
        known |= set(inspect.signature(HANDED_ON[target.__name__]).parameters)
    given = {name for name in node if not (name.startswith("_") and name.endswith("_"))}
    for name in sorted(given - known):
        yield f"{key}.{name}: {node['_target_']} takes no such argument"
    if not node.get("_partial_"):
        for name, p in parameters.items():
            due = p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            if due and name not in given:
                yield f"{key}.{name}: {node['_target_']} needs it"


def assert_binds(cfg: DictConfig) -> None:
    tree = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert not list(problems(tree))


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_composes_as_it_stands(verb: str) -> None:
    assert_binds(composed(verb))


@pytest.mark.parametrize(("verb", "group", "option"), FILES, ids=str)
def test_a_yaml_binds(verb: str, group: str, option: str) -> None:
    assert_binds(composed(verb, f"{group}={option}"))


@pytest.mark.parametrize("objective", config.options("objective"))
def test_a_short_run_goes_with_every_objective(objective: str) -> None:
    """They read from different sources, which take different keys."""
    assert_binds(composed("train", "debug=fast", f"objective={objective}"))


@pytest.mark.parametrize("option", config.options("eval"))
def test_a_short_run_goes_with_every_eval(option: str) -> None:
    """Only the baselines have a text to fit on, which a short run makes shorter."""
    cfg = composed("train", "debug=fast", f"eval={option}")
    assert_binds(cfg)
    assert all("_target_" in entry for entry in cfg.eval.values())
    assert "baselines" not in cfg.eval or cfg.eval.baselines.fit_tokens == 4096


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of conf whose train.yaml has no other groups than these: it composes twice as fast."""
    copy = tmp_path_factory.mktemp("slim") / "conf"
    shutil.copytree(config.conf_dir(), copy)
    kept = ("_self_", "model:", "objective:", "sparsity:", "dict:", "hydra:")
    lines = (copy / "train.yaml").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("  - ") or line.split()[1] in kept]
    (copy / "train.yaml").write_text("\n".join(lines))
    return copy


@pytest.mark.parametrize(
    ("group", "option", "other"),
    [
        (group, option, other)
        for group, other in itertools.combinations(("model", "dict", "sparsity"), 2)
        for option in config.options(group)
    ],
)
def test_models_dictionaries_and_sparsities_go_together(
    group: str, option: str, other: str, slim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time: no file of one group looks at both of the others."""
    monkeypatch.setattr(config, "conf_dir", lambda: slim)
    for choice in config.options(other):
        assert_binds(composed("train", f"{group}={option}", f"{other}={choice}"))


def test_every_folder_of_conf_is_a_group_of_some_verb() -> None:
    folders = {path.name for path in config.conf_dir().iterdir() if path.is_dir()}
    used = {group for verb in VERBS for group in config.groups(verb)}
    assert folders - used <= ELSEWHERE


def test_every_verb_has_its_code() -> None:
    assert set(VERBS) == set(config.verbs())


def keys_to_misspell() -> list[tuple[str, int]]:
    """(path within conf, line number) of one argument of every target."""
    found = []
    for path in sorted(config.conf_dir().glob("*/*.yaml")):
        if path.parent.name in ELSEWHERE:
            continue
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines[:-1]):
            if "_target_:" not in line:
                continue
            indent = len(line) - len(line.lstrip())
            for below in range(number + 1, len(lines)):
                if re.match(rf" {{{indent}}}[a-z]\w*:(?! *$| *#)", lines[below]):
                    found.append((str(path.relative_to(config.conf_dir())), below))
                    break
    return found


@pytest.mark.parametrize(("file", "line"), keys_to_misspell(), ids=str)
def test_a_planted_typo_is_noticed(
    file: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the tests above: a copy of conf with one key misspelt must not bind."""
    copy = tmp_path / "conf"
    shutil.copytree(config.conf_dir(), copy)
    monkeypatch.setattr(config, "conf_dir", lambda: copy)
    lines = (copy / file).read_text().splitlines()
    lines[line] = re.sub(r"(\w+):", r"\1x:", lines[line], count=1)
    (copy / file).write_text("\n".join(lines))
    group, option = file.removesuffix(".yaml").split("/")
    verb = next(verb for verb in VERBS if group in config.groups(verb))
    with pytest.raises((AssertionError, OmegaConfBaseException, ValueError)):
        assert_binds(composed(verb, f"{group}={option}"))


def test_a_missing_argument_is_noticed() -> None:
    tree = {"a": {"_target_": "dictlearn.config.choose_from", "names": []}}
    assert list(problems(tree)) == ["a.value: dictlearn.config.choose_from needs it"]
    assert not list(problems({"a": {**tree["a"], "_partial_": True}}))


def test_a_kind_sets_every_option_that_kinds_share() -> None:
    """Otherwise a new one is forgotten in one of the yamls, and only `+dict.` sets it there."""
    for path in (config.conf_dir() / "dict").glob("*.yaml"):
        yaml = OmegaConf.load(path)
        assert isinstance(yaml, DictConfig)
        kind = yaml.get("dict", yaml)
        known = signatures.signature(str(kind.get("_target_")))
        takes = known.parameters.keys() if known else set()
        assert (Options.__annotations__.keys() & takes) <= kind.keys(), path


def test_a_plus_adds_a_key_of_the_trainer_or_sets_one_that_is_there() -> None:
    cfg = config.compose("train", ["+trainer.strategy=ddp", "+trainer.max_time=null"])
    assert (cfg.trainer.strategy, cfg.trainer.max_time) == ("ddp", None)

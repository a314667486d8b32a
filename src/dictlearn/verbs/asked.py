"""What an evaluation was asked for: figures of another text or token count replace none unasked.

A run's own figures are compared with those of other runs, so `dictlearn evaluate` with other options
puts its figures into a folder of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dictlearn.ckpt.diff import ABSENT, differences
from dictlearn.evals.record import read_record
from dictlearn.schema import shown
from dictlearn.sources.named import text_of
from dictlearn.verbs import build

KEY = "asked"  # of figures.json
OF_MODEL = ("path", "revision", "other", "dtype")  # what its figures depend on


def asked(cfg: DictConfig, own: bool = False) -> dict[str, Any]:
    """The options that figures depend on. Text and model are left out where the dictionary's are read.

    `own` says that the configuration's text and model are the dictionary's own, as in training.
    """
    settings = build.plain(cfg)
    options = {"eval_tokens": settings["eval_tokens"], "eval": settings["eval"]}
    if not own and settings.get("model"):
        options["model"] = {key: settings["model"].get(key) for key in OF_MODEL}
    if not own and settings.get("data"):
        options["data"] = settings["data"]
    return options


def not_a_runs_own(run: Path, options: Mapping[str, Any]) -> str:
    """Why figures with these options are not those of a run's folder; "" if they are."""
    named = [f"{group}=" for group in ("data", "model") if group in options]
    return f"{' and '.join(named)} named" if named else other_options(run, options)


def other_options(folder: Path, options: Mapping[str, Any]) -> str:
    """How `options` differ from those of the figures in a folder; "" if they don't, or are unknown."""
    try:
        was = read_record(folder).get(KEY)
    except (ValueError, OSError):  # none, or damaged ones, which nobody misses
        return ""
    if not isinstance(was, Mapping):
        return ""
    only_one = [
        name for name in ("data", "model") if bool(was.get(name)) != bool(options.get(name))
    ]
    words = [f"{_group(name, options)} now, {_group(name, was)} there" for name in only_one]
    evals = [[str(name) for name in one.get("eval") or {}] for one in (options, was)]
    if sorted(evals[0]) != sorted(evals[1]):
        words.append(f"eval has {' and '.join(evals[0]) or 'nothing'}, not {', '.join(evals[1])}")
        only_one.append("eval")
    for one in differences(was, options):
        if "_target_" not in one.key and one.key.partition(".")[0] not in only_one:
            words.append(f"{one.key}={_value(one.now)}, not {_value(one.saved)}")
    return "; ".join(words[:3]) + (f"; and {len(words) - 3} more" if len(words) > 3 else "")


def refuse_other_figures(folder: Path, options: Mapping[str, Any]) -> None:
    """Refuses to replace figures that were asked for with other options, in a folder nobody named.

    Raises:
        ValueError: names the options that differ.
    """
    if how := other_options(folder, options):
        raise ValueError(
            f"{folder}: holds figures of another evaluation ({how}); output=<another folder> keeps "
            "both, overwrite=true replaces them"
        )


def _group(name: str, options: Mapping[str, Any]) -> str:
    """What an evaluation was given for `data` or `model`; nothing where it used the training's."""
    settings = options.get(name)
    if not isinstance(settings, Mapping) or not settings:
        return f"no {name}="
    what = text_of(settings) if name == "data" else settings.get("path")
    return f"{name}= with {what}"


def _value(value: object) -> str:
    return "absent" if value is ABSENT else shown(value)

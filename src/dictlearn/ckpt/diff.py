"""What changed between the config in a checkpoint and the one that wants to continue it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Keys that say how long a run is, where it writes and what it shows, not what it computes. A key
# covers everything below it. `steps` is here so that a run can be made longer: the schedules then
# follow the new length.
MAY_CHANGE = (
    "name",
    "run_dir",
    "resume",
    "allow_changed",
    "steps",
    "logger",
    "callbacks.checkpoint",  # not all: a moving average of the weights is one, and it computes
    "callbacks.signals",
    "callbacks.bar",
    "eval",
    "eval_tokens",
    "eval_windows",
    "export",
    "debug",
    "gpu",
    "sweep",
    "hydra",
    "model.device",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.profiler",
)


class Difference(NamedTuple):
    """One key whose value is not what it was. `ABSENT` stands for a key that is not there."""

    key: str
    saved: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_show(self.saved)} in the checkpoint, {_show(self.now)} now"


class _Absent:
    """No value; unlike None, which is one."""


ABSENT = _Absent()


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Every key with another value, in the order of `saved` and then of `now`."""
    old, new = dict(_flat(saved)), dict(_flat(now))
    found = (Difference(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in {**old, **new})
    return [difference for difference in found if not _equal(difference.saved, difference.now)]


def refuse_changes(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    folder: Path,
    allow: Iterable[str] = (),
) -> None:
    """Lets a run continue from `folder` only with what it was begun with.

    `allow` names further keys that may differ, as MAY_CHANGE does.

    Raises:
        ValueError: lists each difference.
    """
    permitted = (*MAY_CHANGE, *allow)
    wrong = [d for d in differences(saved, now) if not _covered(d.key, permitted)]
    if wrong:
        raise ValueError(
            f"resume={folder}: the config is not the one of this run ({'; '.join(map(str, wrong))})"
            "; set it back, or start a new run with resume=null name=<another name>"
        )


CONTENTS = ("model", "tokenizer", "data", "teacher")  # what allow_changed may name


def refuse_changed_contents(
    saved: Mapping[str, str], now: Mapping[str, str], folder: Path, allow: Iterable[str] = ()
) -> None:
    """Compares what lies behind the configuration's paths with what lay there when the run was begun.

    Both are short texts by name, of which the part before the first dot is one of CONTENTS. What
    either doesn't know is not compared.

    Raises:
        ValueError: lists each difference, and names the key that allows it.
    """
    allow = tuple(allow)
    if wrong := [name for name in allow if name not in CONTENTS]:
        raise ValueError(f"allow_changed={wrong[0]}: want a list of {', '.join(CONTENTS)}")
    changed = [
        Difference(name, text, now[name])
        for name, text in saved.items()
        if name in now and text != now[name] and name.partition(".")[0] not in allow
    ]
    if changed:
        names = dict.fromkeys([*allow, *(one.key.partition(".")[0] for one in changed)])
        raise ValueError(
            f"resume={folder}: what the run reads is not what it was begun with "
            f"({'; '.join(map(str, changed))}); put it back, or go on with what is there now by "
            f"allow_changed=[{','.join(names)}]"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _equal(saved: Any, now: Any) -> bool:
    if isinstance(saved, bool) or isinstance(now, bool):
        return saved is now
    if isinstance(saved, list | tuple) and isinstance(now, list | tuple):
        return len(saved) == len(now) and all(map(_equal, saved, now))
    return saved == now or (saved != saved and now != now)  # a NaN is equal to itself here


def _covered(key: str, permitted: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in permitted)


def _show(value: Any) -> str:
    return "absent" if value is ABSENT else json.dumps(value, default=str)

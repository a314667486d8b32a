"""Compare the config in a checkpoint with the config of a run that continues it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Keys for a run's length, output and display, which don't change what it computes. A key includes
# everything below it. `steps` is one of them so that a run can be made longer; the schedules then
# follow the new length.
MAY_CHANGE = (
    "name",
    "run_dir",
    "resume",
    "allow_changed",
    "steps",
    "logger",
    "callbacks.checkpoint",  # not all callbacks: a moving average of the weights computes
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
    "trainer.num_nodes",
    "trainer.profiler",
    "trainer.strategy",
)


PATHS = ("paths", "path", "other", "folder")  # the last words of keys that take paths


class Difference(NamedTuple):
    """A key and its two values; `ABSENT` is the value of a missing key."""

    key: str
    saved: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_show(self.saved)} in the checkpoint, {_show(self.now)} now"


class _Absent:
    """The value of a missing key, as None is a value of its own."""


ABSENT = _Absent()


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Every key whose values differ, in the order of `saved` and then of `now`.

    Two spellings of a path are equal, and so are a path and a list of it alone.
    """
    old, new = dict(_flat(saved)), dict(_flat(now))
    pairs = (Difference(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in {**old, **new})
    return [
        one for one in pairs if not _equal(_plain(one.key, one.saved), _plain(one.key, one.now))
    ]


def refuse_changes(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    folder: Path,
    allow: Iterable[str] = (),
) -> None:
    """Refuses to continue a run from `folder` with another config.

    The keys in MAY_CHANGE and `allow` may differ.

    Raises:
        ValueError: lists each difference.
    """
    permitted = (*MAY_CHANGE, *allow)
    refused = [d for d in differences(saved, now) if not covered(d.key, permitted)]
    if refused:
        raise ValueError(
            f"resume={folder}: the config is not the one of this run ({'; '.join(map(str, refused))})"
            "; set it back, or start a new run with resume=null name=<another name>"
        )


CONTENTS = ("model", "tokenizer", "data", "teacher")  # the values of allow_changed


def refuse_changed_contents(
    saved: Mapping[str, str], now: Mapping[str, str], folder: Path, allow: Iterable[str] = ()
) -> None:
    """Refuses to continue a run if the models and texts that it reads have changed.

    `saved` and `now` map names, whose part before the first dot is one of CONTENTS, to fingerprints.
    Names that only one of them has are not compared.

    Raises:
        ValueError: lists each difference, and names the key that allows it.
    """
    allow = tuple(allow)
    if unknown := [name for name in allow if name not in CONTENTS]:
        raise ValueError(f"allow_changed={unknown[0]}: want a list of {', '.join(CONTENTS)}")
    changed = [
        Difference(name, text, now[name])
        for name, text in saved.items()
        if name in now and text != now[name] and name.partition(".")[0] not in allow
    ]
    if changed:
        names = dict.fromkeys([*allow, *(d.key.partition(".")[0] for d in changed)])
        raise ValueError(
            f"resume={folder}: the files that the run reads have changed since it began "
            f"({'; '.join(map(str, changed))}); restore them, or continue with the changed ones by "
            f"allow_changed=[{','.join(names)}]"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(key: str, value: Any) -> Any:
    """Absolute paths for a key that takes some, a list for one path; other values as they are.

    A hub id counts as a path here: it is compared with others only.
    """
    name = key.rpartition(".")[2]
    values = [value] if isinstance(value, str) else value
    if name not in PATHS or not isinstance(values, list | tuple):
        return value
    return [os.path.abspath(os.path.expanduser(str(path))) for path in values]


def _equal(saved: Any, now: Any) -> bool:
    if isinstance(saved, bool) or isinstance(now, bool):
        return saved is now
    if isinstance(saved, list | tuple) and isinstance(now, list | tuple):
        return len(saved) == len(now) and all(map(_equal, saved, now))
    return saved == now or (saved != saved and now != now)  # a NaN is equal to itself here


def covered(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of `names` or below one of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _show(value: Any) -> str:
    return "absent" if value is ABSENT else json.dumps(value, default=str)

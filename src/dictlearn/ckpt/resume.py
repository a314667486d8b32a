"""Find the checkpoint that `resume=` names."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dictlearn.ckpt.commit import MANIFEST, find_intact, verify

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"  # in a checkpoint: the configuration of its run


Check = Callable[[Path], object]


class Resume(NamedTuple):
    """The verified step folder to start from, or None for a new run, and notes for the user."""

    folder: Path | None
    notes: tuple[str, ...] = ()


def resolve_resume(resume: str | None, run_dir: Path, check: Check = verify) -> Resume:
    """Resolves the key `resume`.

    null starts a new run. auto takes the newest intact checkpoint of `run_dir` and notes the damaged
    ones; if there are no checkpoints, it starts a new run. A path is a step folder, or a run folder,
    whose newest checkpoint must be intact.

    `check` raises ValueError for a damaged folder. Of several processes only the first need read the
    files; the others load what it has found (`DictlearnCheckpointIO`).

    Raises:
        ValueError: one sentence that names the path and, if there is one, an intact checkpoint.
    """
    if resume is None:
        return Resume(None)
    if resume == "auto":
        return _automatic(run_dir / CHECKPOINTS, check)
    path = Path(resume)
    if path.is_file():
        raise ValueError(
            f"resume={resume} is a file: want auto, a run folder or a step folder "
            "(a checkpoint is a folder of safetensors and JSON; pickles are never loaded)"
        )
    if not path.is_dir():
        raise ValueError(
            f"resume={resume}: there is no such folder; want auto, a run folder or a step folder"
        )
    if (path / MANIFEST).exists() or path.name.startswith("step-"):
        return Resume(_intact_step(path, resume, check))
    checkpoints = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    newest, damaged = find_intact(checkpoints, check)
    if damaged:
        raise ValueError(f"resume={resume}: {damaged[0]}{_hint(newest)}")
    if newest is None:
        raise ValueError(f"resume={resume}: there is no checkpoint in {checkpoints}")
    return Resume(newest)


def _automatic(checkpoints: Path, check: Check) -> Resume:
    newest, damaged = find_intact(checkpoints, check)
    if newest is not None:
        return Resume(newest, tuple(f"skipped a damaged checkpoint: {text}" for text in damaged))
    if damaged:  # a new run would in time delete checkpoints that a person may still rescue
        raise ValueError(
            f"resume=auto: no checkpoint in {checkpoints} is intact: {damaged[0]}; "
            "delete that folder to start afresh"
        )
    return Resume(None, (f"resume=auto: no checkpoint in {checkpoints} yet, starting afresh",))


def _intact_step(folder: Path, resume: str, check: Check) -> Path:
    try:
        check(folder)
    except ValueError as error:
        raise ValueError(
            f"resume={resume}: {error}{_hint(find_intact(folder.parent, check).newest)}"
        ) from None
    return folder


def _hint(newest: Path | None) -> str:
    if newest is None:
        return ". No checkpoint of this run is intact"
    return f". The newest intact checkpoint is {newest.name}; {shlex.quote(f'resume={newest}')} uses it"

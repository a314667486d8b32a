"""Paths on the command line: missing ones are refused before torch is imported; tab completion."""

from __future__ import annotations

import os
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dictlearn.ckpt.resume import resolve_resume
from dictlearn.sources.mixture import naming_part, texts_in
from dictlearn.sources.text_files import find_files, refuse_unreadable

FOLDERS = ("run", "resume", "dictionary", "init")
HUB_ID = r"\w[\w.-]*(/[\w.-]+)+"
AT_ONCE = 64 << 20  # bytes of text that are looked at here; the others when they are read
FILES = ("vector", "graph", "data.paths")


def refuse_absent(cfg: DictConfig) -> None:
    """Raises ValueError on the first folder or file that was named and isn't there."""
    run = cfg.get("run")
    if isinstance(run, str) and not Path(run).is_dir():
        also = "; dictionary= also takes a hub id" if "dictionary" in cfg else ""
        if Path("runs", run).is_dir():
            also = f"; did you mean run={Path('runs', run)}?"
        raise ValueError(f"run={run}: no such folder{also}")
    resume = cfg.get("resume")
    if resume not in (None, "auto") and not Path(resume).is_dir():
        resolve_resume(resume, Path(cfg.run_dir))  # raises
    for key in ("dictionary", "init"):
        path = cfg.get(key)
        if path is None or Path(path).exists() or re.fullmatch(HUB_ID, path):
            continue
        raise ValueError(
            f"{key}={path}: no such folder, and not a hub id (owner/name, or owner/name/folder)"
        )
    for key in ("model.path", "model.other", "teacher.path"):
        _refuse_no_model(key, OmegaConf.select(cfg, key))
    for key, text in texts_in(cfg.get("data") or {}):
        if text.get("paths"):
            with naming_part(key):
                refuse_unreadable(find_files(text["paths"]), AT_ONCE)


def _refuse_no_model(key: str, path: object) -> None:
    """Refuses a model's folder without a config.json, or a path that is neither a folder nor a hub id."""
    if not isinstance(path, str) or path == "pico":
        return
    from dictlearn.lm.hub import HUB_ID, locate  # late: it imports the hub's client

    if Path(path).expanduser().exists() or not HUB_ID.fullmatch(path):
        try:
            locate(path, None, "config")
        except ValueError as error:  # its sentence names model.path for every key
            raise ValueError(str(error).replace("model.path=", f"{key}=")) from error


def refuse_misplaced(verb: str, cfg: DictConfig) -> None:
    """Raises ValueError for an output path that cannot be written, such as a file for a folder."""
    for key in ("output", "run_dir"):
        if cfg.get(key) is None:
            continue
        path, wanted = Path(str(cfg[key])).expanduser(), "a folder"
        if key == "output" and _is_one_file(verb, cfg, path):
            wanted = "a file"
        elif verb == "compare":
            wanted = "a folder, or a file that ends in .html"
        if wanted == "a file" and path.is_dir():
            raise ValueError(f"{key}={cfg[key]}: is a folder; want {wanted}")
        if wanted != "a file" and os.path.lexists(path) and not path.is_dir():
            raise ValueError(f"{key}={cfg[key]}: is no folder; want {wanted}")
        for above in path.parents:
            if os.path.lexists(above) and not above.is_dir():
                raise ValueError(f"{key}={cfg[key]}: {above} is no folder; want {wanted} elsewhere")


def _is_one_file(verb: str, cfg: DictConfig, path: Path) -> bool:
    """Whether `output` names a file; most verbs write a folder."""
    if verb == "label":
        return path.suffix == ".json" and Path(str(cfg.graph)).is_file()
    if verb == "steer":
        return not cfg.get("study")  # a study writes a folder
    return verb == "lookup" or (verb == "compare" and path.suffix == ".html")


def completed(word: str) -> list[str]:
    """The completions of a word such as `run=ru`: folders, or files for keys that take a file.

    For `run=` and similar keys without a value they are the folders in runs/.
    """
    key, equals, start = word.partition("=")
    if not equals or key not in (*FOLDERS, *FILES):
        return []
    matches = (
        [f"{start}{'' if start.endswith('/') else '/'}"] if Path(start).is_dir() and start else []
    )
    if not start and key in FOLDERS:
        matches = [f"{path}" for path in sorted(Path("runs").glob("*")) if path.is_dir()]
        matches += ["auto"] if key == "resume" else []
    elif not matches or start.endswith("/"):
        folder, name = (
            (start, "") if start.endswith("/") else (str(Path(start).parent), Path(start).name)
        )
        prefix = start[: len(start) - len(name)]
        inside = sorted(Path(folder or ".").expanduser().glob(f"{name}*"))
        kept = [path for path in inside if path.is_dir() or key in FILES]
        matches = [f"{prefix}{path.name}{'/' if path.is_dir() else ''}" for path in kept]
    return [f"{key}={match}" for match in matches]

"""`dictlearn compare`: runs beside one another, as a table and as a page; a multirun ends with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from dictlearn import escape
from dictlearn.ckpt.resume import CHECKPOINTS
from dictlearn.commands import command
from dictlearn.disk.replace import is_run
from dictlearn.evals.record import FILE
from dictlearn.evals.report.compared.page import PAGE, is_ours, write_page
from dictlearn.evals.report.compared.read import Run, read_runs, run_folders
from dictlearn.evals.report.compared.table import renderable
from dictlearn.evals.report.settings import parsed, read_settings

SHOWN_LEFT_OUT = 8  # of the runs without figures, those that are named


class Keys:
    """Declares the values that the keys of conf/compare.yaml take."""

    runs: Sequence[str]
    output: str | None


def main(cfg: DictConfig) -> int:
    """Reads the figures of all runs, prints the table, writes the page; the process's exit status."""
    runs = cfg.runs if isinstance(cfg.runs, ListConfig) else [cfg.runs]
    folders = [Path(str(folder)).expanduser() for folder in runs if folder is not None]
    if not folders:
        raise ValueError(
            "nothing to compare; want folders of runs: dictlearn compare runs/a runs/b"
        )
    path, found = _page(cfg.output, folders), run_folders(folders)
    left_out = [why_without_figures(run) for run in found.unfinished]
    if more := len(left_out[SHOWN_LEFT_OUT:]):
        left_out[SHOWN_LEFT_OUT:] = [f"{more} more runs without figures"]
    if not found.runs:
        raise ValueError(f"runs: no figures to compare yet: {'; '.join(left_out)}")
    show(read_runs(found.runs), path, left_out)
    return 0


def why_without_figures(run: Path) -> str:
    """How far a run without figures came, and the command that finds them."""
    if (run / "dictionary").is_dir():
        return f"{run} has no figures.json; `{command('evaluate', run=run)}` writes it"
    config = run / "config.yaml"
    steps = parsed(read_settings(config)).get("steps") if config.is_file() else None
    done = [re.fullmatch(r"step-(\d{1,12})", path.name) for path in (run / CHECKPOINTS).glob("*")]
    newest = max((int(step[1]) for step in done if step), default=0)
    if not newest:
        return f"{run} has no figures.json yet, nor a checkpoint"
    of = f" of {steps:,}" if type(steps) is int else ""
    named = {"name": str(run.relative_to("runs"))} if run.parts[:1] == ("runs",) else {}
    goes_on = command("train", resume="auto", **(named or {"run_dir": str(run)}))
    return f"{run} has no figures.json yet, step {newest:,}{of}; `{goes_on}` goes on"


def conclude(runs: Sequence[Path], folder: Path | None, failed: Mapping[str, str]) -> None:
    """Compares the runs of a multirun; `folder` is the multirun's, `failed` says why runs failed.

    Runs that an earlier command has left in `folder` count as well.
    """
    in_folder = run_folders([folder] if folder is not None and folder.is_dir() else [])
    done = run_folders([*in_folder.runs, *runs]).runs
    left_out = [f"{name} failed: {sentence}" for name, sentence in failed.items()]
    left_out += [why_without_figures(run) for run in in_folder.unfinished if run.name not in failed]
    show(read_runs(done), _new() if folder is None else folder / PAGE, left_out)


def show(runs: Sequence[Run], path: Path, left_out: Sequence[str]) -> None:
    """The table on the terminal and the page at `path`; both say what was left out, and why."""
    _refuse_others(path)
    title = path.parent.resolve().name if path.name == PAGE else path.stem
    write_page(runs, path, title, left_out)
    escape.console().print(renderable(runs))
    escape.say(f"The page: {path}")
    for sentence in left_out:
        escape.say(f"Left out: {sentence}")


def _page(output: str | None, folders: Sequence[Path]) -> Path:
    """The page's path: `output`, else in a multirun's folder, else in a new folder."""
    if output is not None:
        path = Path(str(output)).expanduser()
        if is_run(path) or (path / FILE).is_file():
            raise ValueError(f"output={output}: is a run or an evaluation; name another folder")
        return path if path.suffix == ".html" else path / PAGE
    if len(folders) == 1 and not (folders[0] / FILE).is_file():
        return folders[0] / PAGE
    return _new()


def _new() -> Path:
    return Path("runs") / f"compare-{datetime.now():%Y%m%d-%H%M%S-%f}" / PAGE


def _refuse_others(path: Path) -> None:
    """Refuses to replace a file that is no such page."""
    if path.exists() and not is_ours(path):
        raise ValueError(
            f"output={path}: is there already and is no page that compares runs; name another"
        )

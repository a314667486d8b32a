"""The command line: `dictlearn <verb> overrides...`, and `python train.py overrides...`.

Hydra composes. A verb is verbs/<verb>.py, which is imported only when it runs, so that help,
--cfg job and tab completion answer at once. A user's mistake is one sentence on stderr and exit
status 2; DICTLEARN_DEBUG=1 shows where it was raised.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dictlearn import (
    __version__,
    arguments,
    commands,
    config,
    escape,
    help,
    multirun,
    overrides,
    own,
    paths,
    published,
    stopping,
    terminal,
)

USAGE = """\
dictlearn {version}: sparse dictionaries over the activations of language models

    {program} <verb> [group=option ...] [key=value ...] [-m]

{verbs}

    {program} <verb> --help        what can be set; --help all: every key
    {program} <verb> --cfg job     the configuration, and nothing else
    eval "$(dictlearn -sc install=bash)"   tab completion
"""


def main(verb: str | None = None) -> None:
    """Runs the command line and exits. With `verb`, as from train.py, it holds overrides only."""
    terminal.show_what_can_be_shown()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them
    with stopping.listening(), _one_sentence():
        sys.exit(_run(sys.argv[1:], verb))


def _run(args: list[str], verb: str | None) -> int:
    known = config.verbs()
    if args[:1] == ["-sc"]:
        return _complete(args, verb, known)
    if "--version" in args:
        sys.stdout.write(f"dictlearn {__version__}\n")
        return 0
    if verb:
        return _launch(verb, args, [])
    if not args or args[0] in ("-h", "--help", "help"):
        lines = "\n".join(help.beside(f"    {name}", line, 16) for name, line in known.items())
        program = shlex.join(commands.program())
        sys.stdout.write(USAGE.format(version=__version__, verbs=lines, program=program))
        return 0 if args else 2
    if args[0].startswith("-"):
        raise ValueError(f"{args[0]}: want a verb first; {config.choose_from('', list(known))}")
    if args[0] not in known:
        raise ValueError(f"{args[0]}: no such verb; {config.choose_from(args[0], list(known))}")
    return _launch(args[0], args[1:], [args[0]])


def _launch(verb: str, args: list[str], prefix: list[str]) -> int:
    """Hands a verb's arguments to Hydra; returns the worst status of its jobs."""
    options, parsed, typed = arguments.taken_apart(config.listed(verb, args))
    typed, notes = arguments.last_of_each(typed)
    for note in notes:
        escape.say(note)
    texts = config.translated(published.expanded(verb, typed), verb)
    if parsed.help:
        command = shlex.join([*commands.program(), *prefix])
        keys = [text for text in texts if text != "all"]
        sys.stdout.write(help.text(verb, command, keys, keys != texts))
        return 0
    launcher = next((text for text in texts if text.startswith("hydra/launcher=")), None)
    if launcher and not parsed.multirun:
        raise ValueError(f"{launcher}: launches several runs; want -m with it")
    folder = ["--config-dir", parsed.config_dir] if parsed.config_dir else []
    if folder:  # modules of the user's own lie there, beside their yaml; ours come first
        sys.path.append(str(Path(parsed.config_dir).resolve()))
    args = [*options, *texts]  # Hydra's parser takes no override on each side of an option
    if not (parsed.cfg or parsed.info or parsed.shell_completion):
        args = [*options, *overrides.checked(verb, texts, parsed.multirun, parsed.config_dir)]
    parent = None
    if parsed.multirun and "name" in config.raw(verb):
        parent = _multirun_name(texts)
        args = [text for text in args if not (parent and text.startswith("name="))]
        args += (
            [f"name={config.quoted(parent)}", f"hydra.sweep.dir=runs/{parent}"] if parent else []
        )
    shared = {multirun.key(text) for text in texts if not overrides.sweeps(text)}
    jobs = Jobs(verb, [*prefix, *folder], parent, shared, [*prefix, *options, *typed])
    sys.argv = [sys.argv[0], *args]
    try:
        hydra.main(version_base="1.3", config_path=str(config.conf_dir()), config_name=verb)(
            jobs.run
        )()
    except HydraException:
        overrides.checked(verb, texts, parsed.multirun, parsed.config_dir)
        raise
    if parsed.multirun:
        with _one_sentence(escape.say):
            folder = Path("runs", parent) if parent else None
            multirun.conclude(list(jobs.folders.values()), folder, jobs.failed)
    return max(jobs.statuses.values(), default=0)


@dataclass
class Jobs:
    """The jobs of one command: a single one, or those of a multirun, which Hydra runs in turn."""

    verb: str
    front: Sequence[str]  # arguments in front of a job's overrides
    parent: str | None  # the multirun's folder in runs/
    shared: Collection[str]  # keys that are the same in all jobs
    typed: Sequence[str]  # the whole command line
    statuses: dict[int, int] = field(default_factory=dict)  # by the job's number
    folders: dict[int, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # a run's name -> why it has failed
    supplies: dict[int, Any] = field(default_factory=dict)  # of runs that share a stream

    def run(self, cfg: DictConfig) -> None:
        """Runs a job and notes its status: 2 for a mistake, 1 for any other error.

        A multirun goes on after both.
        """
        job = HydraConfig.get()
        several = job.mode == RunMode.MULTIRUN
        number = job.job.num if several else 0
        self.statuses[number] = 2
        with self._going_on(number) if several else _one_sentence():
            cfg = self.settled(cfg)
            self.folders[number] = Path(cfg.get("run_dir", ""))
            if several:
                escape.say(f"run {number}: {' '.join(self._others())}")
            # Lightning starts a run's other processes from sys.argv: this job's alone, and named.
            name = [f"name={config.quoted(cfg.name)}"] if "name" in cfg else []
            sys.argv = [sys.argv[0], *self.front, *self._others(), *name]
            with stopping.at_once():
                run = import_module(f"dictlearn.verbs.{self.verb}").main
            hush_lightning()
            supply = [self.supplies[number]] if number in self.supplies else []
            with nullcontext() if supply else stopping.told(self.verb, cfg):
                self.statuses[number] = run(cfg, *supply)
        if self.statuses[number] in stopping.STATUSES:  # an interrupted run ends the multirun
            sys.exit(self.statuses[number])

    @contextmanager
    def _going_on(self, number: int) -> Iterator[None]:
        """Notes and says why a job of a multirun has failed."""

        def failed(sentence: str) -> None:
            self.failed[self._folder()] = sentence
            escape.say(sentence)

        try:
            with _one_sentence(failed):
                yield
        except Exception as error:  # nobody's mistake, or a mistake under DICTLEARN_DEBUG
            traceback.print_exc()
            self.statuses[number] = 1
            failed(f"run {number}: {type(error).__name__}: {config.sentence(error)}")

    def settled(self, cfg: DictConfig) -> DictConfig:
        """The configuration of Hydra's current job, with its name. Raises ValueError for a mistake."""
        job = HydraConfig.get()
        named = any(text.startswith("name=") for text in job.overrides.task)
        if "name" in cfg and not named:
            _check_one_process()
        if job.mode == RunMode.MULTIRUN and self.parent:
            cfg.name = f"{self.parent}/{self._folder()}"
            wandb = (cfg.get("logger") or {}).get("wandb")
            if wandb is not None and wandb.get("group", "none") is None:
                wandb.group = self.parent
        cfg = config.settled(self.verb, cfg)
        refuse_missing(cfg)
        paths.refuse_absent(cfg)
        paths.refuse_misplaced(self.verb, cfg)
        own.import_targets(cfg)
        return cfg

    def _others(self) -> list[str]:
        """The current job's overrides, without its name."""
        return [text for text in HydraConfig.get().overrides.task if not text.startswith("name=")]

    def _folder(self) -> str:
        """The current job's folder, below the multirun's."""
        return multirun.folder(self._others(), self.shared, HydraConfig.get().job.num)

    def again(self) -> str:
        """The command line that continues all jobs, as a shell takes it."""
        words = commands.program()
        replaced = ("resume=", "name=") if self.parent else ("resume=",)
        words += [word for word in self.typed if not word.startswith(replaced)]
        words += ["resume=auto", *([f"name={self.parent}"] if self.parent else [])]
        return shlex.join(words)


def _multirun_name(texts: list[str]) -> str | None:
    """The folder in runs/ of a multirun's runs; None if `name` has a value for each run."""
    names = [text for text in texts if text.startswith("name=")]
    if not names:
        return f"multirun-{datetime.now():%Y%m%d-%H%M%S-%f}"
    if overrides.sweeps(names[-1]):
        return None
    name = overrides.value(names[-1])
    config.check_name(name)
    return name


def refuse_missing(cfg: DictConfig) -> None:
    """Raises ValueError on a key without a default that was not set, such as model.path of model=hf."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ValueError(f"{missing[0]}: no value was given; pass {missing[0]}=<value>")


def _check_one_process() -> None:
    """Refuses processes started apart (torchrun, srun) if each would name the run by its clock."""
    processes = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if processes > 1:
        raise ValueError(
            f"name: {processes} processes must agree on the run's folder; pass name=<a name>"
        )


def hush_lightning() -> None:
    """Silences Lightning's tips and its list of accelerators; its warnings on our calls are for tests."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # importing Lightning sets another level
    warnings.filterwarnings("ignore", module=r"lightning\.")


def _complete(args: list[str], verb: str | None, known: Mapping[str, str]) -> int:
    """Hydra's tab completion, with the verb in front completed here and hidden from Hydra."""
    if args[1:2] and args[1].startswith("query="):
        line = os.environ.get("COMP_LINE", "")
        app, *words = line.split()
        word = words.pop() if words and not line.endswith(" ") else ""
        if verb is None and not words:
            sys.stdout.write(" ".join(name for name in known if name.startswith(word)) + "\n")
            return 0
        if verb is None:
            verb, *words = words
        if candidates := paths.completed(word):
            sys.stdout.write(" ".join(candidates) + "\n")
            return 0
        with suppress(ValueError):  # half a line is no mistake yet
            words = config.translated(words, verb or "")
        os.environ["COMP_LINE"] = " ".join([app, *words, word])
    return _launch(verb if verb and verb in known else "train", args, [])


@contextmanager
def _one_sentence(tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """Turns a user's mistake into one sentence, for `tell`; else says it and exits with status 2."""
    try:
        yield
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("DICTLEARN_DEBUG", "0") != "0":
            raise
        if tell is None:
            escape.say(config.sentence(error))
            sys.exit(2)
        tell(config.sentence(error))

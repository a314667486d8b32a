"""hydra/launcher=shared: the runs of a multirun that read the same activations share one forward pass.

A run is the verb's own code, in a thread (`verbs/turns.py`) and with another supply (`verbs/supply.py`):
so it writes what it would write alone.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from dictlearn_kernels import dispatch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dictlearn import escape, stopping
from dictlearn.lm.load import load_skeleton
from dictlearn.overrides import dotted
from dictlearn.sources.named import text_of
from dictlearn.verbs import build, costs, plan, processes, train
from dictlearn.verbs.described import listed
from dictlearn.verbs.gpus import GPUS
from dictlearn.verbs.machine import Machine, as_device, this_machine
from dictlearn.verbs.supply import Group, Member
from dictlearn.verbs.trained_in import where_it_began
from dictlearn.verbs.turns import Turns
from dictlearn.verbs.units import as_bytes

if TYPE_CHECKING:
    from dictlearn.cli import Jobs

# What makes the stream of activations. Of the trainer all counts that a process has only once.
STREAM = ("model", "data", "source", "batch_tokens", "data_seed", "trainer", "kernels")
OF_A_RUN = ("trainer.log_every_n_steps", "trainer.accumulate_grad_batches")
MISTAKES = (ValueError, OSError, HydraException, OmegaConfBaseException)


@dataclass
class Job:
    """A run of the multirun, and what is known of it before it begins."""

    number: int
    call: Callable[[], JobReturn]
    cfg: DictConfig | None = None  # None: a mistake, which the run itself reports
    run: costs.Run | None = None
    alone: str | None = None  # why it can share with no other run
    key: Mapping[str, str] = field(default_factory=dict)  # equal for runs of one stream


def launched(
    jobs: Jobs | None, calls: Sequence[tuple[DictConfig, Callable[[], JobReturn]]], most: int
) -> list[JobReturn]:
    """Groups the runs, says how, and runs them group by group; those with mistakes first."""
    if jobs is None or jobs.verb not in ("train", "plan"):
        raise ValueError(
            "hydra/launcher=shared: shares what training reads; want dictlearn train -m"
        )
    if int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1:
        raise ValueError(
            "hydra/launcher=shared: its runs have one process; want no torchrun or srun around it"
        )
    if most < 1:
        raise ValueError(f"hydra.launcher.most={most}: want at least 1")
    known = [known_of(jobs, number, cfg, call) for number, (cfg, call) in enumerate(calls)]
    names = Counter(job.cfg.name for job in known if job.cfg is not None)
    twice = [name for name, times in names.items() if times > 1]
    if twice and jobs.verb == "train":
        raise ValueError(f"{twice[0]}: comes twice in this multirun; want each run once")
    groups = [group[i : i + most] for group in grouped(known) for i in range(0, len(group), most)]
    machine = this_machine(Path("."))
    say(groups)
    unfit = [check_memory(jobs, group, machine) for group in groups]
    found: dict[int, JobReturn] = {}
    for group, fits in zip(groups, unfit, strict=True):
        if not fits:
            found |= {job.number: JobReturn(cfg=job.cfg) for job in group}
        elif len(group) == 1 or jobs.verb == "plan":
            found |= {job.number: job.call() for job in group}
        else:
            found |= together(jobs, group)
    for one in found.values():
        one.status, one.return_value = JobStatus.COMPLETED, None
    return [found[job.number] for job in known]


# --- what shares with what --------------------------------------------------------------------


def known_of(jobs: Jobs, number: int, hydra: DictConfig, call: Callable[[], JobReturn]) -> Job:
    """Composes a run as it will be trained, continued runs from their checkpoints."""
    job, before = Job(hydra.hydra.job.num, call), HydraConfig.instance().cfg
    HydraConfig.instance().set_config(hydra)
    try:
        cfg = OmegaConf.masked_copy(hydra, [str(key) for key in hydra if key != "hydra"])
        cfg = jobs.settled(cfg)
        cfg, checkpoint = plan.begun(cfg)
        with where_it_began(cfg, checkpoint):
            job.run = sizes(cfg)
            job.key = {"folder": os.getcwd(), **dict(stream_of(cfg, job.run))}
        job.cfg, job.alone = cfg, why_alone(cfg, checkpoint)
    except MISTAKES:
        return Job(job.number, call)
    finally:
        HydraConfig.instance().cfg = before
    return job


def sizes(cfg: DictConfig) -> costs.Run:
    """The parts of a run without their numbers."""
    if "gpu" not in cfg:  # a plan may be for a device that isn't here
        train.check(cfg)
    lm = None
    if build.reads_model(cfg):
        lm = load_skeleton(cfg.model.path, cfg.model.revision, cfg.model.other)
    info = build.build_info(cfg) if lm is None else lm.info
    with torch.device("meta"):
        dictionary = build.build_dictionary(cfg, info)
        build.build_training(cfg, dictionary)
        beside = build.build_beside(cfg, dictionary)
    return costs.Run(cfg, dictionary, tuple(beside.values()), lm, info)


def why_alone(cfg: DictConfig, checkpoint: Path | None) -> str | None:
    if not build.reads_model(cfg):
        return "its source reads no model, so there is nothing to share"
    if processes.count(cfg) > 1:
        return f"trainer.devices={cfg.trainer.devices}: it has several processes"
    if checkpoint is not None and train.steps_done(checkpoint) is None:
        return f"resume={checkpoint}: want the name step-<number>, which says where its stream is"
    return None


def stream_of(cfg: DictConfig, run: costs.Run) -> Iterator[tuple[str, str]]:
    """The keys that make the stream, with their values."""
    plain = build.plain(cfg)
    for key, value in dotted({name: plain[name] for name in STREAM}):
        if not isinstance(value, dict) and key not in OF_A_RUN:
            yield key, str(value)
    if plain["source"].get("nonfinite") == "drop":  # rows are left out that are bad at any site
        yield "sites, under source.nonfinite=drop,", ", ".join(run.sites)


def grouped(jobs: Sequence[Job]) -> list[list[Job]]:
    """Runs of one stream together, each that can share with no other by itself; mistakes first."""
    groups: dict[object, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.cfg is not None):
        by_itself = job.cfg is None or job.alone is not None
        key = job.number if by_itself else tuple(sorted(job.key.items()))
        groups.setdefault(key, []).append(job)
    return list(groups.values())


def say(groups: Sequence[Sequence[Job]]) -> None:
    """Prints what shares a stream, and why the others don't."""
    first: Job | None = None
    for group in groups:
        job, names = group[0], numbers(group)
        if job.cfg is None or job.run is None:
            continue
        if job.alone is not None:
            escape.say(f"{names}: alone, since {job.alone}")
            continue
        sites = listed(tuple(dict.fromkeys(s for one in group for s in sites_of(one))))
        what = f"{sites} of {job.run.info.name}, {text_of(job.cfg.data)}"
        how = "one stream" if len(group) > 1 else "a stream of its own"
        escape.say(f"{names}: {how}, {what}{differs(first, job)}")
        first = first or job


def sites_of(job: Job) -> list[str]:
    assert job.run is not None
    return job.run.sites


def numbers(group: Sequence[Job]) -> str:
    """`run 3`, `runs 0 to 7`, `runs 0, 2, 5`."""
    each = [job.number for job in group]
    if len(each) == 1:
        return f"run {each[0]}"
    in_a_row = each == list(range(each[0], each[0] + len(each))) and len(each) > 2
    return f"runs {each[0]} to {each[-1]}" if in_a_row else f"runs {', '.join(map(str, each))}"


def differs(first: Job | None, job: Job) -> str:
    """Which settings keep a run from sharing the first one's stream."""
    if first is None:
        return ""
    keys = dict.fromkeys([*job.key, *first.key])
    other = [
        f"{key} is {job.key.get(key, 'not set')}, not {first.key.get(key, 'set')}"
        for key in keys
        if job.key.get(key) != first.key.get(key)
    ]
    if not other:
        return f"; after run {first.number}'s, as hydra.launcher.most is reached"
    more = f", and {len(other) - 3} more settings" if len(other) > 3 else ""
    return f"; not with run {first.number}: {'; '.join(other[:3])}{more}"


# --- memory -----------------------------------------------------------------------------------


def check_memory(jobs: Jobs, group: Sequence[Job], machine: Machine) -> bool:
    """Says what a group takes. Where that is more than there is, says so, and sets its runs' status."""
    runs = [job.run for job in group if job.run is not None]
    if len(group) < 2 or not runs:
        return True
    gpu = GPUS.get(str(runs[0].cfg.get("gpu")))
    on_gpu = gpu is not None or bool(machine.gpus) and build.accelerator(runs[0].cfg) != "cpu"
    room = (gpu or as_device(machine, on_gpu)).room
    try:
        peak = costs.memory_together(runs, on_gpu)
        if peak <= room:
            escape.say(f"{numbers(group)}: {as_bytes(peak)} together, of {as_bytes(room)}")
            return True
        fit = [n for n in range(1, len(runs)) if costs.memory_together(runs[:n], on_gpu) <= room]
    except ValueError:  # a user's own decoder or sparsity that doesn't say what it takes
        return True
    cure = f"hydra.launcher.most={fit[-1]} fits" if fit else "not one of them fits alone"
    sentence = (
        f"{numbers(group)}: {as_bytes(peak)} together, and there are {as_bytes(room)}; {cure}"
    )
    escape.say(sentence)
    jobs.statuses |= {job.number: 2 for job in group}
    jobs.failed |= {Path(run.cfg.name).name: sentence for run in runs}
    return False


# --- running ----------------------------------------------------------------------------------


def together(jobs: Jobs, group: Sequence[Job]) -> dict[int, JobReturn]:
    """Runs a group in this process. Raises SystemExit after a signal, once all are saved."""
    shared = Group(len(group))
    found = {job.number: JobReturn(cfg=job.cfg) for job in group}

    def work(job: Job, member: Member) -> Callable[[], None]:
        def run() -> None:
            try:
                found[job.number] = job.call()
            except SystemExit as stop:
                jobs.statuses[job.number] = int(stop.code or 0)
            finally:
                member.ended()

        return run

    members = {job.number: Member(shared) for job in group}
    jobs.supplies |= members
    shared.turns = Turns([work(job, members[job.number]) for job in group])
    stopping.begin()
    # Each run sets the same mode, and the first that ends would set the one from before.
    kernels = "auto" if group[0].cfg is None else group[0].cfg.kernels
    with dispatch.using(kernels):
        stopped = shared.turns.run()
    for number in members:
        del jobs.supplies[number]
    if stopped is not None:
        name = signal.Signals(stopped).name
        escape.say(f"stopped by {name}; to go on with all of them: {jobs.again()}")
        raise SystemExit(128 + stopped)
    return found

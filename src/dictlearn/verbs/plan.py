"""`dictlearn plan`: what a training run would do, from the model's config alone; nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dictlearn import config, escape
from dictlearn.dicts.summary import aims_at_k
from dictlearn.lm.load import load_skeleton
from dictlearn.sources.mixture import naming_part, texts_in
from dictlearn.sources.text_files import find_files
from dictlearn.verbs import build, costs, processes, storing, train
from dictlearn.verbs.continued import continued
from dictlearn.verbs.described import beside_published, listed
from dictlearn.verbs.gpus import GPUS, SHOWN, Gpu
from dictlearn.verbs.machine import Machine, as_device, this_machine
from dictlearn.verbs.predictions import Prediction, predictions, remedies
from dictlearn.verbs.trained_in import where_it_began
from dictlearn.verbs.units import as_bytes, si

RUN_FOLDER = "run folder"


class Keys(train.Keys):
    """Declares the values that the keys of conf/plan.yaml take."""

    gpu: Literal["A10", "L4", "4090", "A100_40GB", "A100", "H100", "H200", "B200"] | None


def main(cfg: DictConfig) -> int:
    """Prints the plan; 0 when every check passed, else 2."""
    plan = planned(cfg)
    show(plan, escape.console(markup=True), escape.console(stderr=True, markup=True))
    return 2 if plan.mistakes else 0


@dataclass
class Plan:
    """Facts by name, in order, predictions for devices, and one sentence for each failed check."""

    facts: dict[str, str] = field(default_factory=dict)
    mistakes: dict[str, str] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)

    def speeds(self) -> list[str]:
        """A line for each device: speed, wall time, memory."""
        lines = []
        for p in self.predictions:
            verdict = "fits" if not p.remedy else f"does not fit; what would: {p.remedy}"
            lines.append(
                f"{p.gpu.name}: {p.speed()}, {p.share:.0%} of it in the {p.limit}; "
                f"{as_bytes(p.peak)} of {as_bytes(p.gpu.room)}: {verdict}"
            )
        return lines

    def check(self, name: str, made: Callable[[], Any]) -> Any:
        """The result of `made`; None if the configuration fails, and the sentence is recorded."""
        try:
            result = made()
        except (ValueError, OSError, HydraException) as error:
            self.mistakes[name] = config.sentence(error)
            return None
        self.passed.append(name)
        return result


def planned(cfg: DictConfig, machine: Machine | None = None) -> Plan:
    """The plan of a run on `machine`, by default this one, or on the GPU that `gpu` names."""
    plan, gpu = Plan(), GPUS.get(str(cfg.get("gpu")))
    found = plan.check(RUN_FOLDER, lambda: begun(cfg))
    if found is not None:
        cfg, checkpoint = found
        with where_it_began(cfg, checkpoint):
            check_all(plan, cfg, gpu, machine or this_machine(Path(cfg.run_dir)))
    return plan


def check_all(plan: Plan, cfg: DictConfig, gpu: Gpu | None, machine: Machine) -> None:
    """Builds everything that a run would, and adds what that shows to the plan."""
    # What a GPU would do can be planned without one.
    anywhere = OmegaConf.merge(cfg, {"trainer": {"accelerator": "auto"}})
    plan.check("configuration", lambda: train.check(anywhere))  # type: ignore[arg-type]
    devices = plan.check("devices", lambda: processes.count(cfg))
    if plan.mistakes:
        return
    if gpu is None:
        plan.check("device", lambda: check_device(cfg))
    if build.reads_model(cfg):
        plan.check("text files", lambda: _find_all_files(cfg.data))
        if cfg.resume is None:
            plan.check("text", lambda: build.check_named_text(cfg))
        lm = plan.check(
            "model", lambda: load_skeleton(cfg.model.path, cfg.model.revision, cfg.model.other)
        )
        info = None if lm is None else lm.info
    else:
        lm, info = None, plan.check("model", lambda: build.build_info(cfg))
    if info is None:
        return
    plan.check("context", lambda: build.check_text(cfg, info))
    if "context" in plan.mistakes:
        return
    with torch.device("meta"):
        dictionary = plan.check("dictionary", lambda: build.build_dictionary(cfg, info))
        if dictionary is None:
            return
        plan.check("objective", lambda: build.build_training(cfg, dictionary))
        beside = plan.check("beside", lambda: build.build_beside(cfg, dictionary))
    if cfg.init is not None and cfg.resume is None:
        plan.check("init", lambda: build.build_start(cfg, dictionary))
    source = plan.check("source", lambda: build.check_source(cfg, lm, dictionary))
    if source is not None and beside is not None:
        runs_model = build.runs_model(cfg) or build.build_objective(cfg).reads_windows
        model = lm if runs_model else None  # else it is loaded once training is over
        buffer = 0 if build.runs_model(cfg) else getattr(source, "buffer_bytes", 0)
        run = costs.Run(cfg, dictionary, tuple(beside.values()), model, info, buffer)
        if plan.check("cost", lambda: [costs.decoder_costs(one) for one in run.trained]) is None:
            return
        describe(plan, run, devices)
        describe_memory(plan, run, devices, gpu is not None or bool(machine.gpus))
        describe_disk(plan, run, machine)
        predict(plan, run, devices, gpu, machine)


def _find_all_files(data: DictConfig) -> None:
    """Raises ValueError on a file of text that is not there."""
    for key, text in texts_in(data):
        if "paths" in text and text.get("path") is None:
            with naming_part(key):
                find_files(text["paths"])


def describe(plan: Plan, run: costs.Run, devices: int) -> None:
    cfg, shape, tokens = run.cfg, run.dictionary.shape, build.run_tokens(run.cfg)
    count = costs.count(run.dictionary)
    batch = run.step_tokens * devices
    work = costs.work(run, devices=devices)
    k = f", k = {shape.k:g}" if aims_at_k(cfg.sparsity, cfg.objective) else ""
    plan.facts |= {
        RUN_FOLDER: str(cfg.run_dir),
        "reads": f"{listed(shape.sources)}, width {shape.width}",
        "writes": f"{listed(shape.targets)}, width {shape.width}",
        "dictionary": f"{shape.kind}, {shape.n_features:,} features per source{k}",
        "parameters": f"{count:,}",
        "tokens": f"{tokens:,} in {cfg.steps:,} steps of {batch:,}",
        "tokens per parameter": f"{tokens / count:.3g}; {beside_published(tokens, count, shape)[0]}",
    }
    for name, dictionary in zip(("per-layer transcoders",), run.beside, strict=False):
        plan.facts["trained to compare"] = f"{name}, {costs.count(dictionary):,} parameters"
    if run.lm is not None:
        info, size = run.info, costs.count(run.lm.model)
        words = f"{info.name}: {info.family}, {info.n_layers} layers, {si(size)}parameters"
        plan.facts["language model"] = words
    for name, part in work.items():
        plan.facts[f"a token, {name}"] = f"{si(part.flops)}FLOP, {as_bytes(part.moved)}"
    total = sum(part.flops for part in work.values())
    plan.facts["the run"] = f"{si(total * tokens)}FLOP"
    if build.build_objective(cfg).reads_windows:
        plan.facts["not counted"] = "the model's own forward and backward pass for KL terms"


def describe_memory(plan: Plan, run: costs.Run, devices: int, gpu: bool) -> None:
    """Adds memory by part, for a CPU or a GPU, or for both if either could train."""
    places = {"cpu": ["a CPU"], "cuda": ["a GPU"], "gpu": ["a GPU"]}
    here = ["a GPU"] if gpu else ["a CPU", "a GPU"]
    found = {
        place: costs.memory(run, on_gpu=place == "a GPU", devices=devices)
        for place in places.get(run.cfg.trainer.accelerator, here)
    }
    for part in next(iter(found.values())).listed():
        sizes = {place: as_bytes(memory.parts[part]) for place, memory in found.items()}
        plan.facts[f"memory, {part}"] = _each(sizes)
    for name, dead in {
        "memory, peak": costs.DEAD,
        "memory, peak with all features dead": 1.0,
    }.items():
        peaks = {
            place: costs.memory(run, on_gpu=place == "a GPU", devices=devices, dead=dead)
            for place in found
        }
        words = {place: f"{as_bytes(one.peak)} while {one.phase}" for place, one in peaks.items()}
        plan.facts[name + (", each device" if devices > 1 else "")] = _each(words)


def describe_disk(plan: Plan, run: costs.Run, machine: Machine) -> None:
    """Adds the disk space for the kept checkpoints, the one being written, and the dictionary."""
    cfg = run.cfg
    saver = (cfg.get("callbacks") or {}).get("checkpoint")
    kept = saver.keep + 1 if saver else 0
    numbers = sum(map(costs.count, run.trained))
    checkpoint = numbers * (costs.FLOAT + costs.state_bytes(cfg))
    wanted = checkpoint * kept + numbers * costs.FLOAT
    plan.facts["disk"] = (
        f"{as_bytes(wanted)}: {kept} checkpoints of {as_bytes(checkpoint)}, one of them being written, "
        f"and the dictionary; {as_bytes(machine.free)} are free"
    )
    if machine.free < wanted:
        plan.mistakes["disk"] = (
            f"run_dir={cfg.run_dir}: {as_bytes(machine.free)} are free there, and checkpoints and "
            f"dictionary take {as_bytes(wanted)}; callbacks.checkpoint.keep={kept - 1} is how many "
            "are kept"
        )
    else:
        plan.passed.append("disk")


def predict(plan: Plan, run: costs.Run, devices: int, gpu: Gpu | None, machine: Machine) -> None:
    """Adds speed, wall time and memory for the named GPU; else for this machine and three GPUs."""
    accelerator = run.cfg.trainer.accelerator
    on_gpu = gpu is not None or bool(machine.gpus) and accelerator != "cpu"
    counted = not build.build_objective(run.cfg).reads_windows and build.reads_model(run.cfg)
    own = gpu or as_device(machine, on_gpu)
    plan.facts["this machine"] = str(machine)
    if run.lm is not None and build.runs_model(run.cfg):
        plan.facts |= storing.facts(run, own, on_gpu)
    if gpu is not None or on_gpu or accelerator in ("auto", "cpu"):
        name = f"gpu={run.cfg.gpu}" if gpu else f"this machine ({machine})"
        peak = costs.memory(run, on_gpu, devices).peak
        if peak > own.room:
            plan.mistakes["memory"] = (
                f"{name}: the run takes {as_bytes(peak)} and there are {as_bytes(own.room)}: it "
                f"would be killed; what would fit: {remedies(run, own, devices, on_gpu)}"
            )
        else:
            plan.passed.append("memory")
        if counted:
            plan.predictions += predictions(run, devices, [own], on_gpu)
    if counted and gpu is None and accelerator != "cpu":
        plan.predictions += predictions(run, devices, [other for other in SHOWN if other != own])


def show(plan: Plan, console: Console, errors: Console) -> None:
    table = Table(title="What dictlearn train would do", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, fact in plan.facts.items():
        if name != RUN_FOLDER:
            table.add_row(name, Text(fact))
    if plan.facts:
        folder = f"{RUN_FOLDER}: {plan.facts[RUN_FOLDER]}"  # a table's cell would break the path
        console.print(folder, markup=False, highlight=False, soft_wrap=True)
        console.print(table)
    for line in plan.speeds():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"Checked: {', '.join(plan.passed)}.")
    for name, sentence in plan.mistakes.items():
        errors.print(f"[bold red]{name}[/]: ", end="")
        errors.print(sentence, markup=False, highlight=False, soft_wrap=True)


# --- checks -----------------------------------------------------------------------------------


def check_device(cfg: DictConfig) -> None:
    if str(cfg.model.device).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"model.device={cfg.model.device}: no CUDA device here; use model.device=cpu"
        )
    train.check(cfg)


def begun(cfg: DictConfig) -> tuple[DictConfig, Path | None]:
    """The configuration that training would use, a continued run's own, and its checkpoint."""
    checkpoint = train.begun(cfg, Path(cfg.run_dir)).folder
    return (cfg if checkpoint is None else continued("plan", cfg, checkpoint)), checkpoint


# --- words ------------------------------------------------------------------------------------


def _each(values: dict[str, str]) -> str:
    """The value, if all are equal; else each value with its name."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{name} {value}" for name, value in values.items())

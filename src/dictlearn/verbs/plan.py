"""`dictlearn plan`: what a training run would do, from the model's config alone; nothing is run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dictlearn.ckpt.checkpoint_io import read_config
from dictlearn.ckpt.diff import refuse_changes
from dictlearn.ckpt.resume import CHECKPOINTS, resolve_resume
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_skeleton
from dictlearn.lm.sites import blocks, resolve
from dictlearn.sources.text_files import find_files
from dictlearn.types import ModelInfo
from dictlearn.verbs import build, train

FLOAT = 4  # bytes: dictionaries and their optimiser are float32 whatever the model's precision


def main(cfg: DictConfig) -> int:
    """Prints the plan; 0 when every check passed, else 2."""
    plan = planned(cfg)
    show(plan, Console())
    return 2 if plan.mistakes else 0


@dataclass
class Plan:
    """Facts by name, in order, and one sentence for each check that failed."""

    facts: dict[str, str] = field(default_factory=dict)
    mistakes: dict[str, str] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)

    def check(self, name: str, made: Callable[[], Any]) -> Any:
        """What `made` returns; None, and its sentence noted, where the user's configuration fails."""
        try:
            result = made()
        except (ValueError, OSError) as error:
            self.mistakes[name] = str(error)
            return None
        self.passed.append(name)
        return result


def planned(cfg: DictConfig) -> Plan:
    plan = Plan()
    plan.check("configuration", lambda: train.check(cfg))
    if plan.mistakes:
        return plan
    plan.check("device", lambda: check_device(cfg))
    plan.check("run folder", lambda: check_folder(cfg))
    reads_model = build.reads_model(cfg)
    if reads_model and "paths" in cfg.data:
        plan.check("text files", lambda: find_files(cfg.data.paths))
    info = plan.check("model", lambda: build.build_info(cfg))
    if info is None:
        return plan
    lm = load_skeleton(cfg.model.path, cfg.model.revision) if reads_model else None
    with torch.device("meta"):
        dictionary = plan.check("dictionary", lambda: build.build_dictionary(cfg, info))
        if dictionary is None:
            return plan
        plan.check("objective", lambda: build.build_training(cfg, dictionary))
    source = plan.check("source", lambda: build_source(cfg, lm, dictionary))
    if source is not None:
        describe(plan, cfg, lm, info, dictionary)
        plan.check("disk", lambda: check_disk(cfg, dictionary))
    return plan


def describe(
    plan: Plan, cfg: DictConfig, lm: LanguageModel | None, info: ModelInfo, dictionary: Dictionary
) -> None:
    shape, tokens = dictionary.shape, build.run_tokens(cfg)
    sites = list(dict.fromkeys(shape.sources + shape.targets))
    count = sum(p.numel() for p in dictionary.parameters())
    weights = count * FLOAT
    state = weights * state_tensors(cfg)
    batch = cfg.batch_tokens * cfg.trainer.accumulate_grad_batches
    own = batch * dictionary_flops_per_token(dictionary)
    plan.facts |= {
        "run folder": str(cfg.run_dir),
        "reads": f"{_listed(shape.sources)}, width {shape.width}",
        "writes": f"{_listed(shape.targets)}, width {shape.width}",
        "dictionary": f"{shape.kind}, {shape.n_features:,} features per source, k = {shape.k:g}",
        "parameters": f"{count:,}",
        "tokens": f"{tokens:,} in {cfg.steps:,} steps of {batch:,}",
        "tokens per parameter": f"{tokens / count:.3g}",
        "memory, weights and gradients": _bytes(2 * weights),
        "memory, optimiser": _bytes(state),
        "a checkpoint": _bytes(weights + state),
        "a step, dictionary": f"{_si(own)}FLOP, at an L0 of k",
    }
    if lm is None:
        return
    model_bytes = sum(p.numel() for p in lm.model.parameters()) * bytes_of_model(cfg)
    forward = batch * flops_per_token(lm, info, sites)
    plan.facts |= {
        "a step, language model": f"{_si(forward)}FLOP forward, as far as the last site",
        "the run": f"{_si((forward + own) * cfg.steps)}FLOP",
        "language model": f"{info.name}: {info.family}, {info.n_layers} layers",
        "memory, language model": _bytes(model_bytes),
    }
    if "buffer_tokens" in cfg.source:  # source=windows shuffles nothing
        buffer = buffer_bytes(cfg, shape.width, len(sites))
        plan.facts["memory, shuffle buffer"] = _bytes(buffer)


def show(plan: Plan, console: Console) -> None:
    table = Table(title="What dictlearn train would do", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, fact in plan.facts.items():
        table.add_row(name, fact)
    if plan.facts:
        console.print(table)
    console.print(f"Checked: {', '.join(plan.passed)}.")
    for name, sentence in plan.mistakes.items():
        console.print(f"[bold red]{name}[/]: ", end="")
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


# --- checks -----------------------------------------------------------------------------------


def check_device(cfg: DictConfig) -> None:
    if str(cfg.model.device).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"model.device={cfg.model.device}: no CUDA device here; use model.device=cpu"
        )


def check_folder(cfg: DictConfig) -> None:
    run = Path(cfg.run_dir)
    resume = resolve_resume(cfg.resume, run)
    if cfg.resume is None and (run / CHECKPOINTS).exists():
        raise ValueError(f"run_dir={run}: holds a run already; resume=auto continues it")
    if resume.folder is not None:
        refuse_changes(read_config(resume.folder), build.plain(cfg), resume.folder)


def check_disk(cfg: DictConfig, dictionary: Dictionary) -> None:
    """Room for the checkpoints that are kept and the one being written."""
    keep = cfg.callbacks.checkpoint.keep if "checkpoint" in (cfg.callbacks or {}) else 0
    count = sum(p.numel() for p in dictionary.parameters())
    wanted = count * FLOAT * (1 + state_tensors(cfg)) * (keep + 1)
    folder = next(path for path in Path(cfg.run_dir).absolute().parents if path.is_dir())
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise ValueError(
            f"run_dir={cfg.run_dir}: {_bytes(free)} are free there, and checkpoints take "
            f"{_bytes(wanted)}; callbacks.checkpoint.keep={keep} is how many are kept"
        )


@final
class NoText:
    """One empty window: a source can be built, and with it checked, before there is any text."""

    def __init__(self, context: int):
        self.context = context

    def __len__(self) -> int:
        return 1

    def window_batch(self, indices: Tensor) -> Tensor:
        return torch.zeros(len(indices), self.context, dtype=torch.int64)

    def valid(self, tokens_BP: Tensor) -> Tensor:
        return torch.zeros_like(tokens_BP, dtype=torch.bool)


def build_source(cfg: DictConfig, lm: LanguageModel | None, dictionary: Dictionary) -> Any:
    return instantiate(cfg.source)(
        lm=lm,
        windows=None if lm is None else NoText(cfg.data.context or lm.info.context_length),
        sources=dictionary.sources,
        targets=dictionary.targets,
        batch_tokens=cfg.batch_tokens,
        seed=cfg.seed,
    )


# --- costs ------------------------------------------------------------------------------------


def state_tensors(cfg: DictConfig) -> int:
    """Tensors of a parameter's size that the optimiser keeps for it, found by one step of it."""
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimiser = instantiate(cfg.optim)([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    return sum(v.shape == parameter.shape for v in optimiser.state[parameter].values())


def bytes_of_model(cfg: DictConfig) -> int:
    """Bytes per parameter of the language model."""
    device = build.model_device(cfg)
    on_gpu = device == "auto" or device.startswith("cuda")
    return 2 if cfg.model.dtype == "bfloat16" or (cfg.model.dtype == "auto" and on_gpu) else FLOAT


def buffer_bytes(cfg: DictConfig, width: int, n_sites: int) -> int:
    stored = bytes_of_model(cfg) if cfg.source.store_dtype == "model" else FLOAT
    if cfg.source.store_dtype == "bfloat16":
        stored = 2
    return cfg.source.buffer_tokens * n_sites * width * stored


def flops_per_token(lm: LanguageModel, info: ModelInfo, sites: list[str]) -> float:
    """Multiply-adds, as two, of the blocks that run before a capture stops; attention scores not.

    A mixture of experts runs some of its experts on each token.
    """
    path, layers = blocks(lm.model)
    last = 0
    for site in sites:
        where = resolve(lm.model, site, info).module_path.removeprefix(f"{path}.")
        number = where.split(".")[0]
        last = max(last, int(number) if number.isdigit() else len(layers) - 1)
    text = lm.model.config.get_text_config().to_dict()
    experts = text.get("num_experts") or text.get("num_local_experts") or 1
    share = (text.get("num_experts_per_tok") or 1) / experts
    matrices = [
        p for layer in layers[: last + 1] for p in layer.named_parameters() if p[1].ndim > 1
    ]
    return sum(2.0 * p.numel() * (share if "experts" in name else 1) for name, p in matrices)


def dictionary_flops_per_token(dictionary: Dictionary) -> float:
    """Every feature's pre-activation; then decoding and three gradients over the active ones."""
    shape = dictionary.shape
    encode = 2.0 * shape.width * shape.n_features
    active = 2.0 * shape.width * shape.k
    skip = 6.0 * shape.width**2 if shape.skip else 0.0
    return dictionary.n_sources * (encode + 4 * active + skip)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} ... {names[-1]} ({len(names)})"


def _bytes(n: float) -> str:
    return f"{_si(n)}B"


def _si(n: float) -> str:
    """Three digits and a prefix: 1.23 G."""
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z"]
    while n >= 999.5 and len(prefixes) > 1:
        n /= 1000
        del prefixes[0]
    return f"{n:.3g} {prefixes[0]}"

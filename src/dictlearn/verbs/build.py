"""Builds the parts of a run from the composed configuration, which is only the user's own yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.plt import plt_beside
from dictlearn.dicts.start import check_start
from dictlearn.evals.context import Metric, RowSource
from dictlearn.evals.evaluation import Eval
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_skeleton, read_info
from dictlearn.objectives.objective import Objective
from dictlearn.objectives.teacher import Teacher
from dictlearn.sources.live import LiveSource
from dictlearn.sources.protocol import HoldsOut, MakesActivations, NoText, Source
from dictlearn.sources.tokens import check_settings
from dictlearn.train.module import DictionaryTraining
from dictlearn.train.trainee import Trainee
from dictlearn.types import ModelInfo
from dictlearn.verbs import processes

OF_A_SOURCE = ("reads_model", "gives_windows", "shard", "next_batch", "state", "restore", "sample")
BESIDE_BELOW = 1e8  # parameters; a laptop trains two dictionaries of this size


def reads_model(cfg: DictConfig) -> bool:
    """Whether the source's activations come from a language model, or are its own (synthetic)."""
    return source_class(cfg).reads_model


def runs_model(cfg: DictConfig) -> bool:
    """Whether activations are computed while training, and not read from a store or made up."""
    return reads_model(cfg) and getattr(source_class(cfg), "runs_model", True)


def source_class(cfg: DictConfig) -> type[Source]:
    """The class that the source's yaml names; it may be a user's own."""
    source = get_class(cfg.source._target_)
    missing = [name for name in OF_A_SOURCE if not hasattr(source, name)]
    if missing:
        raise ValueError(
            f"source: {cfg.source._target_} has no {', '.join(missing)}; want a class that keeps to "
            f"dictlearn.sources.protocol.Source"
        )
    return source


def build_info(cfg: DictConfig) -> ModelInfo:
    """The facts in the model's config, which suffice to refuse a wrong layer before weights load.

    A source that reads no model gives them itself.
    """
    if reads_model(cfg):
        return read_info(cfg.model.path, cfg.model.revision)
    source = _without_sites(cfg)
    if not isinstance(source, MakesActivations):
        raise ValueError(
            f"source._target_={cfg.source._target_}: it reads no model (reads_model is False), so it "
            "has to say what its activations are: want a property info, a dictlearn.types.ModelInfo"
        )
    return source.info


def array_contents(cfg: DictConfig) -> dict[str, str]:
    """The fingerprint of arrays that a source without a model reads; empty for one that has none."""
    source = None if reads_model(cfg) else _without_sites(cfg)
    return {"data": source.fingerprint} if isinstance(source, HoldsOut) else {}


def _without_sites(cfg: DictConfig) -> Source:
    """A source that reads no model, built for what it says of itself."""
    source = instantiate(cfg.source, **_device(cfg))
    return source(batch_tokens=cfg.batch_tokens, seed=cfg.data_seed)


def check_text(cfg: DictConfig, info: ModelInfo) -> None:
    """Refuses settings that no text of this model can have, and a run without held-out text."""
    data = cfg.data
    if reads_model(cfg) and {"context", "held_out", "max_tokens"} <= set(data):
        check_settings(info, data.context, data.held_out, data.max_tokens)
        if data.held_out == 0:
            raise ValueError("data.held_out=0: holds out no text to evaluate on; want more than 0")


def build_model(cfg: DictConfig) -> LanguageModel | None:
    return instantiate(cfg.model, device=model_device(cfg)) if reads_model(cfg) else None


def build_skeleton(cfg: DictConfig) -> LanguageModel:
    """The model without its weights, but with the tokenizer: enough to check a source and read text."""
    model = cfg.model
    return load_skeleton(model.path, model.revision, model.other, tokenizer=True)


def model_device(cfg: DictConfig) -> str:
    """The language model's device: the trainer's, unless model.device says otherwise."""
    return "cpu" if cfg.model.device == "auto" and accelerator(cfg) == "cpu" else cfg.model.device


def accelerator(cfg: DictConfig) -> str:
    """Lightning's accelerator. Its own "auto" would take MPS, which has no float64."""
    if cfg.trainer.accelerator != "auto":
        return cfg.trainer.accelerator
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_parts(cfg: DictConfig) -> None:
    """Builds parts that are cheap but needed late, so that they refuse bad values early."""
    named(cfg.get("callbacks"))
    build_evals(cfg)
    try:
        instantiate(cfg.optim)([nn.Parameter(torch.zeros(shape)) for shape in ((1, 1, 1), (1, 1))])
    except ValueError as error:  # a library's own doesn't name the key
        text = str(error)
        raise ValueError(text if text.startswith("optim") else f"optim: {text}") from None
    try:
        torch.device("cpu" if cfg.model.device == "auto" else cfg.model.device)
    except RuntimeError:
        raise ValueError(
            f"model.device={cfg.model.device}: want auto, cpu, cuda, cuda:N or mps"
        ) from None


def check_named_text(cfg: DictConfig) -> None:
    """Refuses the default text, Python's standard library, for any model but pico, unless it is named."""
    left_alone = cfg.model.path == "pico" or not reads_model(cfg) or not HydraConfig.initialized()
    if left_alone or HydraConfig.get().runtime.choices.get("data") != "stdlib":
        return
    named = any(text.startswith("data=") for text in HydraConfig.get().overrides.task)
    if not named:
        raise ValueError(
            f"data: no text was named for {cfg.model.path}; want data=text data.paths=<files> or "
            "data=hub data.path=<data set>, or data=stdlib for the source of Python's own library"
        )


def build_dictionary(cfg: DictConfig, info: ModelInfo) -> Dictionary:
    return instantiate(cfg.dict)(info=info, sparsity=instantiate(cfg.sparsity))


def build_start(cfg: DictConfig, dictionary: Dictionary) -> Dictionary | None:
    """The dictionary that training starts from, if one was named, after a check that it fits."""
    if cfg.init is None:
        return None
    start = load_dictionary(cfg.init)
    check_start(dictionary, start, f"init={cfg.init}")
    return start


def build_windows(cfg: DictConfig, lm: LanguageModel, split: str) -> Any:
    """Tokenised text of one split: "train", "eval", or "whole" for all of it.

    `lm` may have no weights: who reads text before it loads them says at once what is wrong with it.
    """
    return _windows_builder(plain(cfg.data))(lm=lm, split=split)


def _windows_builder(settings: dict[str, Any]) -> Callable[..., Any]:
    """What builds a text's windows, of a mixture too."""
    mixture, parts = "parts" in settings, settings.pop("parts", None)
    # Hydra would interpolate resolved values again, and a file's name may contain `${`.
    odd = {key: settings.pop(key) for key in list(settings) if "${" in str(settings[key])}
    if mixture:
        odd["parts"] = {name: _windows_builder(part) for name, part in (parts or {}).items()}
    return partial(instantiate(settings), **odd)


class Sites(Protocol):
    """What a source is asked for: the sites of a dictionary, or of several together."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    @property
    def targets(self) -> tuple[str, ...]: ...


class Text(NamedTuple):
    """Windows of both splits; of `whole` text, which has none, the same ones twice."""

    train: Any
    held_out: Any
    whole: bool = False


def read_text(cfg: DictConfig, lm: LanguageModel) -> Text:
    """Both splits: what an evaluation would refuse at the end of a run is refused at its start."""
    return Text(
        train=build_windows(cfg, lm, "train"),
        held_out=build_windows(cfg, lm, "eval"),
    )


def build_source(
    cfg: DictConfig,
    lm: LanguageModel | None,
    sites: Sites,
    split: str,
    windows: Any = None,
) -> Source:
    """The source of one split; `windows` are those of `build_windows`, if they exist already.

    A store holds the training split: activations of another one are computed.
    """
    if lm is not None and windows is None:
        windows = build_windows(cfg, lm, split)
    if split != "train" and reads_model(cfg) and not runs_model(cfg):
        assert lm is not None
        return _computed(cfg, lm, sites, windows)
    # Reading ahead wastes one read at the end, so only training, which is long, gains from it.
    own = {"ahead": False} if split != "train" and "ahead" in cfg.source else {}
    return _source(cfg, lm, sites, windows, **own)


def _computed(cfg: DictConfig, lm: LanguageModel, sites: Sites, windows: Any) -> Source:
    """Live activations through as small a buffer as holds a batch and what is read at once."""
    at_once = 8
    return LiveSource(
        lm,
        windows,
        sources=sites.sources,
        targets=sites.targets,
        batch_tokens=cfg.batch_tokens,
        seed=cfg.data_seed,
        buffer_tokens=max(cfg.batch_tokens, 2 * at_once * windows.context),
        lm_batch_windows=at_once,
        ahead=False,
    )


def _source(
    cfg: DictConfig, lm: LanguageModel | None, sites: Sites, windows: Any, **own: Any
) -> Source:
    return instantiate(cfg.source, **own, **_device(cfg))(
        lm=lm,
        windows=windows,
        sources=sites.sources,
        targets=sites.targets,
        batch_tokens=cfg.batch_tokens,
        seed=cfg.data_seed,
    )


def _device(cfg: DictConfig) -> dict[str, str]:
    """The device of batches in the place of "auto": that of the dictionary."""
    if cfg.source.get("device") != "auto":
        return {}
    return {"device": "cuda" if accelerator(cfg) != "cpu" else "cpu"}


def check_source(cfg: DictConfig, lm: LanguageModel | None, dictionary: Dictionary) -> Source:
    """The source over no text, which refuses the same settings. `lm` may have no weights."""
    windows = None if lm is None else NoText(cfg.data.context or lm.info.context_length)
    return _source(cfg, lm, dictionary, windows)


def build_objective(cfg: DictConfig) -> Objective:
    objective = instantiate(cfg.objective)
    if objective.reads_windows and not source_class(cfg).gives_windows:
        raise ValueError(
            "objective.terms: a KL to the teacher runs the model on whole windows of text, and this "
            "source gives none; want source=windows, source=staged for the last part of the run, or "
            "source=cache_windows for a store that has them"
        )
    settings = [f"teacher.{k}={cfg.teacher[k]}" for k in ("path", "folder") if k in cfg.teacher]
    if settings and not objective.reads_windows:
        raise ValueError(
            f"{settings[0]}: no term of this objective has a teacher; want "
            f"objective=kl, mse_then_kl or e2e, or teacher=self"
        )
    return objective


def build_teacher(cfg: DictConfig, lm: LanguageModel) -> Teacher:
    return instantiate(cfg.teacher)(lm=lm)


def connect(cfg: DictConfig, training: DictionaryTraining, lm: LanguageModel | None) -> None:
    """Gives the model and its teacher to objectives that run them."""
    trainees = [t for _, t in training.named_trainees() if t.objective.reads_windows]
    if trainees and lm is not None:
        teacher = build_teacher(cfg, lm)
        for trainee in trainees:
            trainee.objective.connect(lm, teacher, trainee.dictionary)


def build_beside(cfg: DictConfig, dictionary: Dictionary) -> dict[str, Dictionary]:
    """The dictionaries to train on the same stream for comparison, by name; none for most kinds."""
    if cfg.beside not in (True, False, "auto"):
        raise ValueError(f"beside={cfg.beside}: want true, false or auto")
    parts = [dictionary.encoder, dictionary.decoder]
    parameters = sum(p.numel() for part in parts for p in part.parameters())
    small = parameters < BESIDE_BELOW and cfg.init is None  # a comparison wants equal starts
    wanted = small if cfg.beside == "auto" else cfg.beside
    if dictionary.kind != "clt" or not wanted:
        return {}
    return {"plt": plt_beside(dictionary.shape, parameters, instantiate(cfg.sparsity))}


def build_training(
    cfg: DictConfig, dictionary: Dictionary, beside: Mapping[str, Dictionary] | None = None
) -> DictionaryTraining:
    trained = {"dictionary": dictionary, **(beside or {})}
    return DictionaryTraining(
        {
            name: Trainee(d, build_objective(cfg), cfg.normalise, dead_after(cfg), cfg.selection)
            for name, d in trained.items()
        },
        optimiser=instantiate(cfg.optim),
        schedule=instantiate(cfg.schedule),
        steps=cfg.steps,
        clip_norm=cfg.clip_norm,
        spike_sigma=cfg.spike_sigma,
    )


def dead_after(cfg: DictConfig) -> int:
    """Tokens of silence after which a feature counts as dead: a twentieth of the run by default."""
    if cfg.dead_after is not None:
        return cfg.dead_after
    return max(1, min(10_000_000, run_tokens(cfg) // 20))


def run_tokens(cfg: DictConfig) -> int:
    """Tokens that the run trains on, those of all its processes."""
    of_one = cfg.steps * cfg.batch_tokens * cfg.trainer.accumulate_grad_batches
    return of_one * processes.count(cfg)


def named(group: DictConfig | None) -> dict[str, Any]:
    """The instantiated entries of a group, by name; entries set to null are off."""
    entries = group or {}
    return {str(name): instantiate(entry) for name, entry in entries.items() if entry is not None}


def build_evals(cfg: DictConfig) -> dict[str, Eval]:
    """The evals by name. Raises ValueError for one, of a user's own, that cannot be run."""
    evals = named(cfg.get("eval"))
    for name, entry in evals.items():
        if not isinstance(entry, Metric | RowSource) and not callable(entry):
            raise ValueError(
                f"eval.{name}: {cfg.eval[name]._target_} makes a {type(entry).__name__}; want a "
                f"dictlearn.evals.context.Metric or RowSource, or a function of an EvalContext"
            )
    return evals


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain containers."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]

"""Load a language model to read from: a folder in the hub's layout, a hub id, or `pico`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from dictlearn import escape
from dictlearn.lm.check import check_sums
from dictlearn.lm.hub import PICO_PATH, locate, read_json
from dictlearn.lm.language_model import LanguageModel, bos_id, describe, freeze, n_embedded
from dictlearn.lm.weights import check_sizes, check_tokenizer, weight_files, without_weights
from dictlearn.types import ModelInfo

Dtype = Literal["auto", "float32", "bfloat16"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"]

__all__ = [
    "PICO_PATH",
    "LanguageModel",
    "bos_id",
    "freeze",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "read_info",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# No names of hub kernels here: those are code that comes with a download.
ATTENTIONS = ("auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3")
GENERATION = "generation_config.json"
# The most that a config may say. Many layers take long to make, and ids are listed, also where no
# weights are at hand to compare the sizes with.
SIZES = {
    "num_hidden_layers": 1 << 12,
    "hidden_size": 1 << 24,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 31,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class _Harmless(logging.Filter):
    """What transformers says of a model's files holds strings of theirs."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = escape.terminal(record.getMessage()), ()
        return True


transformers_logging.get_verbosity()  # sets up the handlers
for _handler in logging.getLogger("transformers").handlers:
    _handler.addFilter(_Harmless())


def read_info(path: str, revision: str | None = None) -> ModelInfo:
    """What a dictionary must know of a model, from its config.json alone: no weights are read."""
    folder, revision = locate(path, revision, "config")
    return describe(_read_config(path, folder), path, revision)


def load_model(
    path: str,
    revision: str | None = None,
    device: str = "cpu",
    dtype: Dtype = "auto",
    attn: Attention = "auto",
    other: str | None = None,
) -> LanguageModel:
    """The model in evaluation mode, without gradients, and its tokenizer if it has one.

    Args:
        path: `pico`, a local folder in the hub's layout, or a hub id.
        revision: branch, tag or commit of a hub id.
        device: cpu, cuda, cuda:N, mps, or auto (this process's GPU where there is one, else cpu).
        dtype: float32, bfloat16, or auto (bfloat16 on a GPU, else float32).
        attn: attention implementation; auto is sdpa for every family that has it, else eager.
        other: a second model of the same width and tokenizer, such as a fine-tune of the first;
            its sites are called other/<site>.

    Weights are safetensors of that folder; pickled ones are refused, as is code that comes with a model.
    Warns where the family's residual is not the sum of its sites (see check.py).
    Raises ValueError, in one sentence that names the key.
    """
    where = f"model.path={path}"
    on = _device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"model.dtype={dtype}: want auto, {' or '.join(DTYPES)}")
    if attn not in ATTENTIONS:
        raise ValueError(f"model.attn={attn}: want one of {', '.join(ATTENTIONS)}")

    folder, revision = locate(path, revision, "weights")
    config = _read_config(path, folder)
    files = weight_files(path, folder)  # refuses what transformers would unpickle
    check_sizes(path, files, config, _loader(config))
    if (folder / GENERATION).is_file():
        read_json(path, folder, GENERATION)  # transformers goes on without one that it can't read
    tokenizer = _load_tokenizer(path, folder)
    auto_dtype = torch.bfloat16 if on.type == "cuda" else torch.float32
    model = _load_weights(where, folder, config, DTYPES.get(dtype, auto_dtype), attn)
    _refuse_more_tokens(where, model, tokenizer)
    model.to(on)  # type: ignore[arg-type]
    lm = freeze(model, tokenizer, name=path, revision=revision)
    if lm.trunk is not model:
        check_sums(lm)
    return lm if other is None else _beside(lm, load_model(other, None, device, dtype, attn))


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the model at `path`, None where it has none.

    Of a model of the hub that is not here yet it alone is downloaded. Raises ValueError as `load_model`
    does.
    """
    folder, _ = locate(path, revision, "tokenizer")
    return _load_tokenizer(path, folder)


def _beside(lm: LanguageModel, other: LanguageModel) -> LanguageModel:
    """`lm` with the sites of `other` too. ValueError unless tokens and width mean the same to both."""
    names = f"model.other={other.info.name}"
    if other.info.width != lm.info.width:
        raise ValueError(
            f"{names}: it is {other.info.width} wide and {lm.info.name} {lm.info.width}; a dictionary "
            "has one width"
        )
    ids = [one.tokenizer.get_vocab() if one.tokenizer else None for one in (lm, other)]
    if ids[0] != ids[1]:
        raise ValueError(f"{names}: want the tokenizer of {lm.info.name}; theirs differ")
    return replace(lm, other=other)


def load_skeleton(
    path: str, revision: str | None = None, other: str | None = None, *, tokenizer: bool = False
) -> LanguageModel:
    """The model of `load_model` on the meta device: shapes, sites and costs, but no weights.

    Reads config.json alone, and for the models of the presets needs no hub: their sizes come with
    this package. With `tokenizer` it has that too, if there is one: what text is cut into windows
    with, before the weights are loaded or, of a hub id, even here. Raises ValueError as `load_model`
    does.
    """
    part = "tokenizer" if tokenizer else "config"
    folder, revision = locate(path, revision, part, shape=not tokenizer)
    config = _read_config(path, folder)
    if tokenizer and Path(path).expanduser().is_dir():
        weight_files(path, folder)  # whoever goes on to load them should learn now what they lack
    model = without_weights(path, config, _loader(config))
    words = _load_tokenizer(path, folder) if tokenizer else None
    _refuse_more_tokens(f"model.path={path}", model, words)
    lm = freeze(model, words, name=path, revision=revision)
    return lm if other is None else _beside(lm, load_skeleton(other, tokenizer=tokenizer))


def _device(device: str) -> torch.device:
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        rank = int(os.environ.get("LOCAL_RANK", "0"))  # of a launcher's processes, this one
        return torch.device(f"cuda:{rank % n_cuda}" if n_cuda else "cpu")
    try:
        on = torch.device(device)
    except RuntimeError:
        on = torch.device("meta")
    if on.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"model.device={device}: want auto, cpu, cuda, cuda:N or mps")
    if on.type == "cuda" and not n_cuda:
        raise ValueError(f"model.device={device}: no CUDA device here; use model.device=cpu")
    if on.type == "cuda" and (on.index or 0) >= n_cuda:
        raise ValueError(
            f"model.device={device}: the CUDA devices here are cuda:0 to cuda:{n_cuda - 1}"
        )
    if on.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"model.device={device}: no MPS device here; use model.device=cpu")
    return on


def _read_config(path: str, folder: Path) -> PretrainedConfig:
    found = read_json(path, folder, "config.json")
    model_type = found.get("model_type")
    for said in (found, found.get("text_config")):
        if isinstance(said, dict):  # a family's config may make a list of as many layers
            _refuse_sizes(path, said.get)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        text = config.get_text_config()
    except Exception as error:  # each family checks its own in its own way
        if isinstance(model_type, str) and model_type in transformers.CONFIG_MAPPING:
            reason = " ".join(str(error).split())
            raise ValueError(f"model.path={path}: config.json is not valid: {reason}") from error
        raise ValueError(
            f"model.path={path}: transformers {transformers.__version__} has no model_type "
            f"{model_type!r}, and code that comes with a model is not run; want a model_type of "
            f"transformers"
        ) from error
    _refuse_sizes(path, lambda key: getattr(text, key, None))
    return config


def _refuse_sizes(path: str, size_of: Callable[[str], object]) -> None:
    for key, most in SIZES.items():
        size = size_of(key)
        if size is not None and (type(size) is not int or not 0 <= size <= most):
            raise ValueError(
                f"model.path={path}: config.json has {key}={ascii(size)[:60]}; want a whole number of "
                f"at most {most:,}"
            )


def _load_tokenizer(path: str, folder: Path) -> PreTrainedTokenizerBase | None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read_json(path, folder, name)  # a truncated one gets a sentence, not a panic
    check_tokenizer(path, folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its parts check theirs in their own ways
        raise ValueError(
            f"model.path={path}: its tokenizer cannot be read: {_first_line(error)}"
        ) from error


def _load_weights(
    where: str, folder: Path, config: PretrainedConfig, dtype: torch.dtype, attn: str
) -> PreTrainedModel:
    loader = _loader(config)
    try:
        with _quiet():
            loaded = loader.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=None if attn == "auto" else attn,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # and so does what reads weights and settings of generation
        raise ValueError(f"{where}: cannot be loaded: {_first_line(error)}") from error
    model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    # transformers would go on with random numbers in their place. A pooler is behind every site.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key.split("."))
    if missing:
        raise ValueError(
            f"{where}: its weights lack {len(missing)} of the tensors that config.json asks for, "
            f"{missing[0]} for one"
        )
    return model


def _refuse_more_tokens(
    where: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Text may not hold ids that the embedding has no row for. Special tokens never come from text."""
    if tokenizer is None:
        return
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    rows = n_embedded(model)
    words = {i: word for word, i in tokenizer.get_vocab().items() if i >= rows and i not in special}
    if words:
        raise ValueError(
            f"{where}: its tokenizer has ids up to {max(words)} ({words[max(words)]!r}), its embedding "
            f"{rows} rows; want the tokenizer that the model was trained with, or a model resized for "
            f"this one"
        )


def _loader(config: PretrainedConfig) -> Any:
    return AutoModelForCausalLM if _is_causal_lm(config) else AutoModel


def _is_causal_lm(config: PretrainedConfig) -> bool:
    """Whether next-token logits mean something: transformers gives bert such a head too."""
    architecture = (config.architectures or [""])[0]
    if architecture:
        return (
            "CausalLM" in architecture
            or "LMHead" in architecture
            or ("ConditionalGeneration" in architecture)
        )
    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for what takes a moment."""
    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]

"""Load a language model from a folder in the hub's layout, a hub id, or `pico`."""

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
# Kernels of the hub are not accepted: they are downloaded code.
ATTENTIONS = ("auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3")
GENERATION = "generation_config.json"
# The largest sizes that a config may ask for. They are checked before the weights are known, because
# building many layers takes long and token ids are listed.
LARGEST = {
    "num_hidden_layers": 1 << 12,
    "hidden_size": 1 << 24,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 31,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class _EscapeFilter(logging.Filter):
    """Escapes log messages of transformers, which may quote strings from a model's files."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = escape.terminal(record.getMessage()), ()
        return True


transformers_logging.get_verbosity()  # sets up the handlers
for _handler in logging.getLogger("transformers").handlers:
    _handler.addFilter(_EscapeFilter())


def read_info(path: str, revision: str | None = None) -> ModelInfo:
    """Name and sizes of a model from its config.json; reads no weights."""
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

    The weights must be safetensors files in that folder; pickled weights and code that comes with a
    model are refused. Warns if the residual is not the sum of its sites (see check.py).
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
        read_json(path, folder, GENERATION)  # transformers ignores one that it can't read
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
    """The tokenizer of the model at `path`, or None if it has none.

    For a hub id only the tokenizer is downloaded. Raises ValueError as `load_model` does.
    """
    folder, _ = locate(path, revision, "tokenizer")
    return _load_tokenizer(path, folder)


def _beside(lm: LanguageModel, other: LanguageModel) -> LanguageModel:
    """`lm` with the sites of `other`. Raises ValueError unless width and vocabulary are equal."""
    key = f"model.other={other.info.name}"
    if other.info.width != lm.info.width:
        raise ValueError(
            f"{key}: it is {other.info.width} wide and {lm.info.name} {lm.info.width}; a dictionary "
            "has one width"
        )
    own, theirs = (m.tokenizer.get_vocab() if m.tokenizer else None for m in (lm, other))
    if own != theirs:
        raise ValueError(f"{key}: want the tokenizer of {lm.info.name}; theirs differ")
    return replace(lm, other=other)


def load_skeleton(
    path: str, revision: str | None = None, other: str | None = None, *, tokenizer: bool = False
) -> LanguageModel:
    """The model of `load_model` on the meta device: shapes, sites and costs, but no weights.

    It needs config.json only, and for the models of the presets no hub: their configs ship with
    dictlearn. With `tokenizer` the tokenizer is loaded too if there is one, so that text can be cut
    into windows before the weights are downloaded. Raises ValueError as `load_model` does.
    """
    part = "tokenizer" if tokenizer else "config"
    folder, revision = locate(path, revision, part, shape=not tokenizer)
    config = _read_config(path, folder)
    if tokenizer and Path(path).expanduser().is_dir():
        weight_files(path, folder)  # the weights come next: say now if they are missing
    model = without_weights(path, config, _loader(config))
    loaded = _load_tokenizer(path, folder) if tokenizer else None
    _refuse_more_tokens(f"model.path={path}", model, loaded)
    lm = freeze(model, loaded, name=path, revision=revision)
    return lm if other is None else _beside(lm, load_skeleton(other, tokenizer=tokenizer))


def _device(device: str) -> torch.device:
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        rank = int(os.environ.get("LOCAL_RANK", "0"))
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
    content = read_json(path, folder, "config.json")
    model_type = content.get("model_type")
    for sizes in (content, content.get("text_config")):
        if isinstance(sizes, dict):  # before config classes use them: some list their layers
            _refuse_sizes(path, sizes.get)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        text = config.get_text_config()
    except Exception as error:  # config classes raise many types
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
    for key, largest in LARGEST.items():
        size = size_of(key)
        if size is not None and (type(size) is not int or not 0 <= size <= largest):
            raise ValueError(
                f"model.path={path}: config.json has {key}={ascii(size)[:60]}; want a whole number of "
                f"at most {largest:,}"
            )


def _load_tokenizer(path: str, folder: Path) -> PreTrainedTokenizerBase | None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read_json(path, folder, name)  # the Rust tokenizer panics on a truncated file
    check_tokenizer(path, folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raise many types
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
    except Exception as error:  # readers of weights and generation settings raise many types
        raise ValueError(f"{where}: cannot be loaded: {_first_line(error)}") from error
    model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    # transformers would initialise these at random. A pooler runs after every site.
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
    """Refuses a tokenizer whose ordinary tokens have ids beyond the embedding's rows."""
    if tokenizer is None:
        return
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    rows = n_embedded(model)
    vocab = tokenizer.get_vocab().items()
    extra = {i: token for token, i in vocab if i >= rows and i not in special}
    if extra:
        raise ValueError(
            f"{where}: its tokenizer has ids up to {max(extra)} ({extra[max(extra)]!r}), its embedding "
            f"{rows} rows; want the tokenizer that the model was trained with, or a model resized for "
            f"this one"
        )


def _loader(config: PretrainedConfig) -> Any:
    return AutoModelForCausalLM if _is_causal_lm(config) else AutoModel


def _is_causal_lm(config: PretrainedConfig) -> bool:
    """Whether the model was trained on next tokens; transformers has such a head for bert too."""
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
    """Hides the progress bar of transformers inside."""
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

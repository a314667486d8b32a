"""Writes a teacher's targets for every window of a text, for `objectives.stored_teacher`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dictlearn.lm.fingerprint import vocabulary_hash
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.readout import Readout, has_head
from dictlearn.objectives.sparse_targets import SparseTargets, draw_targets
from dictlearn.objectives.stored_teacher import (
    DTYPES,
    FORMAT,
    HASHES,
    KEY,
    NAMES,
    defect,
    hash_of,
    shard_name,
    window_hashes,
)
from dictlearn.types import TextWindows


@torch.no_grad()
def store_targets(
    lm: LanguageModel,
    windows: TextWindows,
    folder: Path,
    *,
    head: int = 32,
    samples: int = 32,
    temperature: float = 1.0,
    dtype: str = "float16",
    shard_windows: int = 1024,
    batch_windows: int = 8,
    chunk_tokens: int = 512,
    seed: int = 0,
) -> int:
    """Fills an empty folder with the targets at every position of every window.

    The folder can be read after its commit, which adds a manifest of the files.

    Returns:
        The number of bytes of the targets.

    Raises:
        ValueError: a setting doesn't fit, or the teacher's probabilities are not finite.
    """
    _check(lm, head, samples, temperature, dtype, shard_windows)
    generator = torch.Generator(lm.device).manual_seed(seed)
    readout = Readout(lm, windows.window_batch([0]))
    hashes: list[int] = []
    written = 0

    def drawn(tokens_BP: Tensor) -> Iterator[SparseTargets]:
        states_ND = readout.states(tokens_BP.to(lm.device)).flatten(0, 1)
        for rows in states_ND.split(chunk_tokens):
            log_p_NV = (readout.logits(rows) / temperature).log_softmax(-1)
            if log_p_NV.isnan().any():
                raise ValueError(f"model.path={lm.info.name}: gives logits that are not finite")
            yield draw_targets(log_p_NV, head, samples, generator)

    for number, start in enumerate(range(0, len(windows), shard_windows)):
        stop = min(start + shard_windows, len(windows))
        parts: list[SparseTargets] = []
        for first in range(start, stop, batch_windows):
            tokens_BP = windows.window_batch(range(first, min(first + batch_windows, stop)))
            hashes += window_hashes(tokens_BP)
            parts += drawn(tokens_BP)
        tensors = _shard(parts, lm, DTYPES[dtype])
        save_file(tensors, folder / shard_name(number))
        written += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    save_file({"hashes": torch.tensor(hashes, dtype=torch.int64)}, folder / HASHES)
    key = _teacher(lm) | {
        "temperature": temperature,
        "dtype": dtype,
        "context": windows.context,
        "shard_windows": shard_windows,
        "tokens": hash_of(hashes),
    }
    (folder / KEY).write_text(json.dumps(key, indent=1) + "\n")
    return written


def _check(
    lm: LanguageModel, head: int, samples: int, temperature: float, dtype: str, shard_windows: int
) -> None:
    if not has_head(lm):
        raise ValueError(f"model.path={lm.info.name}: predicts no next token; want a causal model")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: want {' or '.join(DTYPES)}")
    if not 1 <= head <= lm.info.vocab_size:
        raise ValueError(f"head={head}: want 1 to the vocabulary's {lm.info.vocab_size}")
    for key, value in {"samples": samples, "shard_windows": shard_windows}.items():
        if value < 1:
            raise ValueError(f"{key}={value}: want at least 1")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: want a positive number")


def _teacher(lm: LanguageModel) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "teacher": lm.info.name,
        "revision": lm.info.revision,
        "tokenizer": vocabulary_hash(lm.tokenizer),
        "vocabulary": lm.info.vocab_size,
    }


def _shard(
    parts: Sequence[SparseTargets], lm: LanguageModel, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of one shard: token ids as int32, all others as `dtype`."""
    tensors = {
        name: torch.cat([part[field] for part in parts]).cpu().contiguous()
        for field, name in enumerate(NAMES)
    }
    tensors = {n: v if v.dtype == torch.int32 else v.to(dtype) for n, v in tensors.items()}
    if reason := defect(SparseTargets(**tensors), lm.info.vocab_size):
        raise ValueError(f"model.path={lm.info.name}: no targets can be stored: {reason}")
    return tensors

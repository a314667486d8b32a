"""A teacher that ran once: its targets are in safetensors shards, looked up by a window's tokens."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dictlearn.disk.errors import content_error, error_text
from dictlearn.disk.leftovers import recover
from dictlearn.disk.manifest import MANIFEST, check_content, check_size, read_manifest
from dictlearn.lm.fingerprint import vocabulary_hash
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.readout import Readout
from dictlearn.objectives.sparse_targets import SparseTargets, sparse_kl
from dictlearn.objectives.teacher import Targets, Teacher, total_of_chunks
from dictlearn.ranges import Positive

KEY, HASHES = "targets.json", "hashes.safetensors"
FORMAT = 1
DTYPES = {"float16": torch.float16, "float32": torch.float32}
NAMES = SparseTargets._fields
KEY_TYPES: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "teacher": (str,),
    "revision": (str, type(None)),
    "tokenizer": (str,),
    "vocabulary": (int,),
    "temperature": (int, float),
    "dtype": (str,),
    "context": (int,),
    "shard_windows": (int,),
    "tokens": (str,),
}
POSITIVE = ("vocabulary", "context", "shard_windows", "temperature")


@final
class StoredTeacher(Teacher):
    """Targets that `dictlearn targets` wrote for windows of text.

    Args:
        folder: the folder of the targets.
        teacher, revision: the model that must have made the targets; None accepts any.
        temperature: the temperature that the targets must have; None takes theirs.
        clip: the largest ratio of probabilities that a sample counts with; the share of samples
            above it is recorded as `kl_clipped`.

    Raises ValueError if the targets have another tokenizer, vocabulary, teacher, revision or
    temperature, are damaged, or have none for a window.
    """

    def __init__(
        self,
        lm: LanguageModel,
        folder: str,
        teacher: str | None = None,
        revision: str | None = None,
        temperature: Positive | None = None,
        clip: Positive = 20.0,
    ):
        self.folder = recover(Path(folder))
        self._vocabulary = lm.info.vocab_size
        self._checked: set[str] = set()  # files whose hash was compared
        if not (self.folder / KEY).is_file():
            raise ValueError(
                f"teacher.folder={folder}: has no finished targets ({KEY}); `dictlearn targets "
                f"output={folder}` writes them"
            )
        with self._named():
            self._files = read_manifest(self.folder)["files"]
            for name, entry in self._files.items():
                check_size(self.folder / name, entry)
            key = self._key()
        super().__init__(lm, key["temperature"] if temperature is None else temperature)
        if clip <= 1:
            raise ValueError(f"teacher.clip={clip}: want more than 1, the ratio where both agree")
        wanted = {
            "format": FORMAT,
            "tokenizer": vocabulary_hash(lm.tokenizer),
            "vocabulary": lm.info.vocab_size,
            "temperature": self.temperature,
            "teacher": teacher or key["teacher"],
            "revision": revision or key["revision"],
        }
        for name, value in wanted.items():
            if key[name] != value:
                raise ValueError(
                    f"teacher.folder={folder}: its targets are of {name} {key[name]}, this run wants "
                    f"{value}; want targets made for it"
                )
        self.clip = clip
        with self._named():
            hashes = self._tensors(HASHES, ["hashes"])["hashes"].tolist()
        if hash_of(hashes) != key["tokens"]:
            raise ValueError(f"teacher.folder={folder}: {HASHES} is not what {KEY} says; damaged")
        self._index = {hash_: index for index, hash_ in enumerate(hashes)}
        self._context, self._shard_windows = key["context"], key["shard_windows"]
        self._load = lru_cache(maxsize=4)(self._load_shard)

    def targets(self, tokens_BP: Tensor, valid_BP: Tensor) -> Targets:
        windows = [self._window(hash_) for hash_ in window_hashes(tokens_BP)]
        valid_M = valid_BP.flatten().cpu()
        rows = (torch.cat([w[field] for w in windows])[valid_M] for field in range(len(NAMES)))
        device = valid_BP.device
        return _StoredTargets(
            SparseTargets(*(r.to(device) for r in rows)), self.temperature, self.clip
        )

    def _window(self, hash_: int) -> SparseTargets:
        if hash_ not in self._index:
            raise ValueError(
                f"teacher.folder={self.folder}: has no targets for a window of this run's text; want "
                f"targets made with the same data and data.max_tokens, and with data.context as long "
                f"as the windows here (source.window_tokens)"
            )
        number, index = divmod(self._index[hash_], self._shard_windows)
        rows = slice(index * self._context, (index + 1) * self._context)
        return self._load(number).rows(rows)

    def _load_shard(self, number: int) -> SparseTargets:
        name = shard_name(number)
        with self._named():
            targets = SparseTargets(**self._tensors(name, NAMES))
            windows = min(self._shard_windows, len(self._index) - number * self._shard_windows)
            lengths = {len(tensor) for tensor in targets}
            if lengths != {windows * self._context}:
                raise ValueError(f"{name} has targets of {lengths} tokens, not {windows} windows")
            if reason := defect(targets, self._vocabulary):
                raise ValueError(f"{name} is damaged: {reason}")
        return targets

    def _tensors(self, name: str, wanted: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of a file. Its hash is compared when the file is read for the first time."""
        if name not in self._files:
            raise ValueError(f"{name} is missing from {MANIFEST}")
        if name not in self._checked:
            check_content(self.folder / name, self._files[name])
            self._checked.add(name)
        try:
            tensors = load_file(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{name} is not a readable safetensors file: {error_text(error)}"
            ) from None
        if set(tensors) != set(wanted):
            raise ValueError(f"{name} holds {sorted(tensors)}, not {sorted(wanted)}")
        return tensors

    def _key(self) -> dict[str, Any]:
        """The content of targets.json, after a check of its form."""
        if KEY not in self._files:
            raise ValueError(f"{KEY} is missing from {MANIFEST}")
        check_content(self.folder / KEY, self._files[KEY])
        try:
            key = json.loads((self.folder / KEY).read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{KEY} is not readable: {content_error(error)}") from None
        for name, types in KEY_TYPES.items():
            value = key.get(name) if isinstance(key, dict) else None
            of_type = type(value) in types
            if not of_type or (name in POSITIVE and not 0 < value < math.inf):  # type: ignore[operator]
                raise ValueError(
                    f"{KEY} has {name}={value!r}, which `dictlearn targets` never wrote"
                )
        return key

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Adds the folder and the remedy to a sentence about one of its files."""
        try:
            yield
        except ValueError as error:
            raise ValueError(
                f"teacher.folder={self.folder}: {error}; `dictlearn targets` makes them anew"
            ) from None


@final
class _StoredTargets:
    def __init__(self, targets: SparseTargets, temperature: float, clip: Positive):
        self._targets, self._temperature, self._clip = targets, temperature, clip
        self._clipped: list[float] = []

    def kl(self, rows: slice, logits_NV: Tensor) -> Tensor:
        value_N, clipped = sparse_kl(
            self._targets.rows(rows), logits_NV / self._temperature, self._clip
        )
        self._clipped.append(float(clipped))
        return self._temperature**2 * value_N

    def total(self, states_ND: Tensor, readout: Readout, chunk: int) -> Tensor:
        return total_of_chunks(self, states_ND, readout, chunk, "targets stored as drawn ids")

    def figures(self) -> dict[str, float]:
        return {"kl_clipped": math.fsum(self._clipped) / max(1, len(self._clipped))}


def window_hashes(tokens_BP: Tensor) -> list[int]:
    """63 bits of a SHA-256 of each window's token ids."""
    rows = tokens_BP.cpu().to(torch.int64).numpy()
    return [int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:8], "big") >> 1 for row in rows]


def defect(targets: SparseTargets, vocabulary: int) -> str | None:
    """A sentence on the first value that no target can have; None if all are valid."""
    for name, tensor in targets._asdict().items():
        if "_ids_" in name:
            if tensor.dtype != torch.int32 or tensor.ndim != 2:
                return f"{name} is {tensor.dtype} of {tensor.ndim} dimensions, not int32 of two"
            if ((tensor < 0) | (tensor >= vocabulary)).any():
                return f"{name} holds ids outside the vocabulary of {vocabulary}"
        elif tensor.dtype not in DTYPES.values() or not tensor.isfinite().all():
            return f"{name} holds numbers that are not finite, or no numbers"
    ids, log_p = targets.head_ids_NK, targets.head_log_p_NK
    if ids.shape != log_p.shape or targets.tail_ids_NM.shape != targets.tail_log_p_NM.shape:
        return "there are not as many ids as probabilities"
    return None if targets.tail_mass_N.ndim == 1 else "tail_mass_N is not one number a token"


def hash_of(hashes: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(hashes)).encode()).hexdigest()


def shard_name(number: int) -> str:
    return f"targets-{number:05d}.safetensors"

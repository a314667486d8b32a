"""Writes a feature store block by block, with one block of features in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.ckpt import commit
from dictlearn.ckpt.files import write_tensors
from dictlearn.store import hashes, layout
from dictlearn.store.layout import Info
from dictlearn.store.windows import StoredWindows

INTERVAL_OF_TOP = -1  # in `example_intervals`: one of the strongest
NOTHING = -1  # in an empty slot
SORT = "a feature store"


class Block(NamedTuple):
    """Consecutive features of one source, with a row for each of them in every tensor.

        count int64 [n]   maximum, mean float32 [n]   quantiles float32 [n, Q]
        histogram int32 [n, bins]
        examples int64 [n, E]: places, -1 for none   example_intervals int8 [n, E]: -1 for the strongest
        example_scales float32 [n, E]   example_activations float16 [n, E, before + 1 + after]
        neighbours, cofiring int64 [n, K]: source * F + index, or -1
        neighbour_cosines, cofiring_jaccard float32 [n, K]

    If features write fixed directions, to the R targets that the source reaches:

        norms float32 [n, R], in standard deviations of the target

    If the model has an unembedding:

        promoted, suppressed int32 [n, R, k]   promoted_effects, suppressed_effects float32

    For a MOLT, with its M leading singular directions:

        strengths float32 [n, M], 0 beyond the rank   reads, reads_opposite, writes, writes_opposite
        int32 [n, M, k]   and each with _effects float32
    """

    source: int
    first: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Sample:
    """All firings in some of the windows, sorted by feature (source * F + index)."""

    starts: Tensor  # int64 [S*F + 1]
    places: Tensor  # int64 [nnz], ascending for each feature
    activations: Tensor  # float32 [nnz]
    windows: Tensor  # int64, ascending: rows of the stored windows


def write_store(
    folder: Path,
    info: Info,
    windows: StoredWindows,
    sample: Sample,
    blocks: Iterable[Block],
    overwrite: bool | None = None,
) -> None:
    """Commits `<folder>/store`, whole or not at all; `folder` is `<run>/features`.

    Each block comes once, in any order, and has `info.rows` features, except a source's last.
    """

    def write(temporary: Path) -> None:
        write_tensors(temporary / layout.WINDOWS, vars(windows))
        write_tensors(temporary / layout.SAMPLE, vars(sample))
        written, digests = 0, {}
        for block in blocks:
            number, rest = divmod(block.first, info.rows)
            assert rest == 0 and len(block.tensors["count"]) <= info.rows
            contiguous = {name: tensor.contiguous() for name, tensor in block.tensors.items()}
            write_tensors(temporary / layout.block_name(block.source, number), contiguous)
            digests |= hashes.of_block(block.source, number, contiguous)
            written += len(block.tensors["count"])
        assert written == info.code_sources * info.n_features, "every feature has a row"
        write_tensors(temporary / hashes.FILE, digests)
        text = json.dumps(info.to_json(), indent=1, allow_nan=False)
        (temporary / layout.INFO).write_text(text + "\n", encoding="utf-8")

    commit.commit(folder / layout.FOLDER, write, sort=SORT, overwrite=overwrite)


def scaled(activations: Tensor) -> tuple[Tensor, Tensor]:
    """Activations [..., L] as (scales float32 [...], shares float16 [..., L])."""
    scales = activations.float().amax(-1)
    shares = activations.float() / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    return scales, shares.half()

"""Write the shards of a store: run the model on windows, then pack and shuffle the kept rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, final

import torch
from safetensors.torch import save_file
from torch import Tensor

from dictlearn.activations import layout
from dictlearn.activations.layout import About, Complete, Record
from dictlearn.activations.packing import INT8, SCALE, packed, unpacked
from dictlearn.activations.place import Place
from dictlearn.activations.statistics import Moments, moments
from dictlearn.disk.manifest import sha256
from dictlearn.lm.language_model import LanguageModel, attention_mask
from dictlearn.sources.buffer import permutation
from dictlearn.sources.reader import Reader, WindowOrder
from dictlearn.types import TextWindows


@final
class WithSpecials:
    """Windows in which special tokens are kept too, except padding at the end."""

    def __init__(self, lm: LanguageModel, windows: TextWindows):
        self.context = windows.context
        self._lm, self._windows = lm, windows
        self._special = torch.tensor(sorted(lm.special_ids), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._windows)

    def window_batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self._windows.window_batch(indices)

    def kept(self, indices: Sequence[int] | Tensor) -> Tensor:
        tokens_BP = self.window_batch(indices)
        special_BP = torch.isin(tokens_BP, self._special)
        attended_BP = attention_mask(self._lm, tokens_BP)
        if attended_BP is not None:
            special_BP &= attended_BP.bool()
        return self._windows.kept(indices) | special_BP


class _Part(NamedTuple):
    """The tensors of some windows of a shard, by their names in the file."""

    columns: dict[str, Tensor]  # with an entry per row
    windows: dict[str, Tensor]  # with an entry per window


@final
class ShardWriter:
    """Makes the shards of a store, each a pure function of the store's `about` and its number.

    The memory is one shard, and while it is shuffled one more of its sites.

    Args:
        reader: reads the windows at `about.sites`.
        windows: the text; if it has `documents`, they are stored beside the rows.
        batch_windows: windows in one forward pass.
    """

    def __init__(
        self,
        reader: Reader,
        windows: TextWindows,
        about: About,
        place: Place,
        batch_windows: int,
    ):
        self._reader, self._windows, self._about = reader, windows, about
        self._place, self._batch_windows = place, batch_windows
        self._order = WindowOrder(about.windows, about.seed)

    def write(self, shard: int, progress: Callable[[int], None] = lambda _: None) -> Record:
        """Writes one shard, its record last; calls `progress` with numbers of windows as they are read.

        Raises ValueError for values that can't be stored, and OSError if files can't be written.
        """
        about = self._about
        tensors = self.made(shard, progress)
        site_moments = {site: self._moments(tensors, site) for site in about.sites}
        rows = len(tensors[layout.TOKENS])
        data = self._saved(layout.data_name(shard), tensors)
        statistics = self._saved(
            layout.statistics_name(shard), layout.moments_as_tensors(site_moments)
        )
        record = Record(rows, *data, *statistics, about.sha256)
        self._place.write(layout.record_name(shard), lambda path: write_text(path, record.text()))
        return record

    def indices(self, shard: int) -> Tensor:
        """The numbers of a shard's windows in the text, int64 [B]."""
        first = shard * self._about.shard_windows
        return self._order.span(first, first + self._about.windows_of(shard))

    def made(
        self, shard: int, progress: Callable[[int], None] = lambda _: None
    ) -> dict[str, Tensor]:
        """The tensors of a shard's file, by name."""
        first, parts = shard * self._about.shard_windows, []
        for batch in self.indices(shard).split(self._batch_windows):
            parts.append(self._part(first + len(parts) * self._batch_windows, batch))
            progress(len(batch))
        return self._shard(shard, parts)

    def _part(self, number: int, indices_B: Tensor) -> _Part:
        about = self._about
        read = self._reader.read(number, indices_B)
        keep_N = read.keep_N.cpu()
        columns = {
            layout.TOKENS: read.tokens_N,
            layout.POSITIONS: read.positions_N,
            layout.DOCUMENTS: self._documents(indices_B).flatten()[keep_N],
        }
        columns = {name: column.to("cpu", torch.int32) for name, column in columns.items()}
        for site in about.sites:
            for end, tensor in packed(read.values[site][read.keep_N], about.dtype).items():
                columns[site + end] = tensor.cpu()
        windows = {}
        if about.order == layout.WINDOWS:
            kept_M = torch.zeros(read.tokens_BP.numel(), dtype=torch.uint8)
            kept_M[keep_N] = 1
            windows[layout.WINDOW_TOKENS] = read.tokens_BP.to("cpu", torch.int32)
            windows[layout.KEPT] = kept_M.view(read.tokens_BP.shape)
        return _Part(columns, windows)

    def _documents(self, indices_B: Tensor) -> Tensor:
        documents = getattr(self._windows, "documents", None)
        if documents is None:
            return torch.zeros(len(indices_B), self._about.context, dtype=torch.int64)
        return documents(indices_B.tolist())

    def _shard(self, shard: int, parts: list[_Part]) -> dict[str, Tensor]:
        """The tensors of a shard; those of the parts are freed one by one."""
        rows = sum(len(part.columns[layout.TOKENS]) for part in parts)
        shuffled = self._about.order == layout.SHUFFLED
        order_N = permutation(rows, self._about.seed, 7, shard) if shuffled else None
        tensors = {}
        for name in list(parts[0].columns):
            column = torch.cat([part.columns.pop(name) for part in parts])
            tensors[name] = column if order_N is None else column.index_select(0, order_N)
        for name in list(parts[0].windows):
            tensors[name] = torch.cat([part.windows[name] for part in parts])
        return tensors

    def _moments(self, tensors: dict[str, Tensor], site: str) -> Moments:
        """The moments of a site's values as they are stored, after rounding."""
        values = tensors[site]
        if self._about.dtype == INT8:
            values = unpacked(values, tensors[site + SCALE])
        result = moments(values)
        if not result.squares_D.isfinite().all():
            raise ValueError(
                f"dtype={self._about.dtype}: {site} has values beyond what it holds; want bfloat16, "
                f"which has the range of float32"
            )
        return result

    def _saved(self, name: str, tensors: dict[str, Tensor]) -> tuple[int, str]:
        """Saves a file; returns its (bytes, SHA-256)."""
        results: list[tuple[int, str]] = []

        def write(path: Path) -> None:
            save(path, tensors)
            results.append((path.stat().st_size, sha256(path)))

        self._place.write(name, write)
        return results[-1]


def finish(place: Place, about: About, shards: int, statistics: dict[str, Moments]) -> None:
    """Writes the statistics of all shards and their number, unless they are written already."""
    complete = Complete(shards, about.sha256).text()
    files = place.listed()
    same = layout.COMPLETE in files and place.read(layout.COMPLETE, 1 << 16) == complete.encode()
    if same and layout.STATISTICS in files:
        return
    tensors = layout.moments_as_tensors(statistics)
    place.write(layout.STATISTICS, lambda path: save(path, tensors))
    place.write(layout.COMPLETE, lambda path: write_text(path, complete))


def begin(place: Place, about: About, name: str = layout.ABOUT) -> None:
    """Writes the store's description into the file `name`; if there is one, it must be equal.

    Raises ValueError, naming the first entry that differs and the key `output`.
    """
    if name not in place.listed():
        place.write(name, lambda path: write_text(path, about.text()))
        return
    stored = layout.read_about(place, name)
    if stored == about:
        return
    ours, theirs = vars(about) | vars(about.origin), vars(stored) | vars(stored.origin)
    name = next(name for name in ours if name != "origin" and ours[name] != theirs[name])
    raise ValueError(
        f"output={place.address}: its shards have {name}={_shown(theirs[name])}, these would have "
        f"{_shown(ours[name])}; want the keys that it was made with, or another output"
    )


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file that is as readable for others as the folder's other files."""
    path.touch()  # keeps the default mode; safetensors would make the file private
    mode = path.stat().st_mode
    save_file(tensors, path)
    path.chmod(mode)


def _shown(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else ascii(value)


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")

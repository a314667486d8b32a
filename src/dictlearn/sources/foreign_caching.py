"""Write activations as other tools store them: Llamascopium's chunks, SAELens' data sets.

`activations/formats/` says what their files hold. A file is written whole or not at all, and a shard
is there once all of its files are. Beside them `dictlearn-<format>.json` says what they are of, so that
the same command goes on with them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor

from dictlearn.activations import layout
from dictlearn.activations.formats import llamascopium, saelens
from dictlearn.activations.layout import About
from dictlearn.activations.packing import INT8
from dictlearn.activations.place import Place
from dictlearn.lm.language_model import LanguageModel, attention_mask
from dictlearn.lm.other_names import hook_name, in_lens
from dictlearn.sources.caching import ShardWriter, WithSpecials, save, write_text
from dictlearn.sources.reader import Reader
from dictlearn.types import TextWindows

Advance = Callable[[int], None]  # called with numbers of windows as they are read


@final
class Everything:
    """Windows of which every position is read: these formats hold whole windows, and mark rows."""

    def __init__(self, windows: TextWindows):
        self.context = windows.context
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def window_batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self._windows.window_batch(indices)

    def kept(self, indices: Sequence[int] | Tensor) -> Tensor:
        return torch.ones(len(indices), self.context, dtype=torch.bool)


class ForeignWriter(Protocol):
    """Writes the shards of one format, each a pure function of `about` and its number."""

    def __init__(
        self,
        lm: LanguageModel,
        windows: TextWindows,
        about: About,
        place: Place,
        batch_windows: int,
    ): ...

    @classmethod
    def check(cls, lm: LanguageModel, about: About) -> None:
        """Raises ValueError, which names the key, for what the format can't hold."""
        ...

    @classmethod
    def there(cls, place: Place, about: About) -> set[int]:
        """The numbers of the shards that are there."""
        ...

    @classmethod
    def finish(cls, place: Place, about: About, shards: Collection[int]) -> None:
        """Writes what describes these shards together."""
        ...

    def write(self, shard: int, progress: Advance) -> None:
        """Writes one shard. Raises ValueError for values that are not finite, and OSError."""
        ...


def about_name(format: str) -> str:
    """The file that says what a folder of this format is of."""
    return f"dictlearn-{format}.json"


@final
class LlamascopiumWriter:
    """A chunk for each shard and hook: [N, D] for order=shuffled, [n, P, D] for order=windows."""

    def __init__(
        self,
        lm: LanguageModel,
        windows: TextWindows,
        about: About,
        place: Place,
        batch_windows: int,
    ):
        kept = WithSpecials(lm, windows) if about.special == "keep" else windows
        self._whole = about.order == layout.WINDOWS
        self._lm, self._kept, self._about, self._place = lm, kept, about, place
        read = Everything(windows) if self._whole else kept
        reader = Reader(lm, read, list(about.sites), about.nonfinite)
        self._shards = ShardWriter(reader, windows, about, place, batch_windows)

    @classmethod
    def check(cls, lm: LanguageModel, about: About) -> None:
        _check_sites(lm, about, "llamascopium")
        if about.dtype == INT8:
            raise ValueError(
                "dtype=int8: stored_as=llamascopium has no scales; want bfloat16 or float16"
            )
        if about.order == layout.WINDOWS and about.nonfinite == "drop":
            raise ValueError("nonfinite=drop: stored_as=llamascopium has whole windows; want error")

    @classmethod
    def there(cls, place: Place, about: About) -> set[int]:
        listed = [place.listed(hook_name(site)) for site in about.sites]
        names = {number: llamascopium.chunk_name(number) for number in range(about.shards)}
        return {n for n, name in names.items() if all(name in files for files in listed)}

    @classmethod
    def finish(cls, place: Place, about: About, shards: Collection[int]) -> None:
        pass  # every chunk describes itself

    def write(self, shard: int, progress: Advance) -> None:
        tensors = self._shards.made(shard, progress)
        columns = self._columns(shard, tensors)
        tokens = columns[llamascopium.TOKENS]
        origin = {
            llamascopium.MODEL_NAME: self._about.origin.model,
            "dataset": self._about.origin.text,
        }
        meta = json.dumps([origin] * len(tokens))
        name = llamascopium.chunk_name(shard)
        for site in self._about.sites:
            values = _finite(self._about, site, tensors[site])
            chunk = {llamascopium.ACTIVATION: values.view(*tokens.shape, -1), **columns}
            folder = hook_name(site)
            beside = f"{folder}/{name.removesuffix('.safetensors')}{llamascopium.META}"
            self._place.write(beside, lambda path: write_text(path, meta))
            self._place.write(f"{folder}/{name}", lambda path, chunk=chunk: save(path, chunk))

    def _columns(self, shard: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Token ids and masks: [n, P] of whole windows, else [N]."""
        if not self._whole:
            tokens = tensors[layout.TOKENS].long()
            mask, attended = torch.ones_like(tokens, dtype=torch.bool), torch.ones_like(tokens)
        else:
            tokens = tensors[layout.WINDOW_TOKENS].long()
            mask = self._kept.kept(self._shards.indices(shard))
            there = attention_mask(self._lm, tokens)
            attended = torch.ones_like(tokens) if there is None else there.long()
        masks = {llamascopium.MASK: mask, llamascopium.ATTENTION_MASK: attended}
        return {llamascopium.TOKENS: tokens, **masks}


@final
class SAELensWriter:
    """A file of a data set for each shard: whole windows at one hook, with their token ids.

    Windows that end in padding are left out, as SAELens would train on it: there is no mask.
    """

    def __init__(
        self,
        lm: LanguageModel,
        windows: TextWindows,
        about: About,
        place: Place,
        batch_windows: int,
    ):
        reader = Reader(lm, Everything(windows), list(about.sites), about.nonfinite)
        self._shards = ShardWriter(reader, windows, about, place, batch_windows)
        self._lm, self._about, self._place = lm, about, place

    @classmethod
    def check(cls, lm: LanguageModel, about: About) -> None:
        _check_sites(lm, about, "saelens")
        if len(about.sites) > 1:
            raise ValueError(
                f"sites=[{','.join(about.sites)}]: stored_as=saelens has one site in a folder; want one"
            )
        settings = (about.order, about.special, about.nonfinite)
        if settings != (layout.WINDOWS, "keep", "error") or about.dtype not in saelens.DTYPES:
            raise ValueError(
                f"stored_as=saelens: holds whole windows in float32 or float16, specials too; want "
                f"order=windows special=keep nonfinite=error dtype=float32, not order={about.order} "
                f"special={about.special} nonfinite={about.nonfinite} dtype={about.dtype}"
            )

    @classmethod
    def there(cls, place: Place, about: About) -> set[int]:
        files = place.listed()
        return {n for n in range(about.shards) if saelens.data_name(n, about.shards) in files}

    @classmethod
    def finish(cls, place: Place, about: About, shards: Collection[int]) -> None:
        """Writes what `datasets` writes beside the data: the features, and the files in order."""
        from datasets import Dataset

        empty: dict[str, list] = {hook_name(about.sites[0]): [], saelens.TOKEN_IDS: []}
        with tempfile.TemporaryDirectory() as folder:
            data = Dataset.from_dict(empty, features=_features(about))
            data.info.write_to_directory(folder)
            info = (Path(folder) / saelens.INFO).read_text()
        names = [saelens.data_name(shard, about.shards) for shard in sorted(shards)]
        state: dict[str, Any] = {
            saelens.FILES: [{"filename": name} for name in names],
            "_fingerprint": about.sha256[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        place.write(saelens.INFO, lambda path: write_text(path, info))
        place.write(saelens.STATE, lambda path: write_text(path, json.dumps(state, indent=2)))

    def write(self, shard: int, progress: Advance) -> None:
        import pyarrow as pa

        about, site = self._about, self._about.sites[0]
        tensors = self._shards.made(shard, progress)
        tokens = tensors[layout.WINDOW_TOKENS]
        values = _finite(about, site, tensors[site]).view(*tokens.shape, -1)
        there_BP = attention_mask(self._lm, tokens.long())
        if there_BP is not None:
            full_B = there_BP.bool().all(1)
            tokens, values = tokens[full_B], values[full_B]
        schema = _features(about).arrow_schema
        hook = schema.field(hook_name(site)).type
        columns = [
            pa.ExtensionArray.from_storage(hook, _nested(values.numpy(), hook.storage_type)),
            _nested(tokens.numpy(), schema.field(saelens.TOKEN_IDS).type),
        ]
        table = pa.Table.from_arrays(columns, schema=schema)

        def saved(path: Path) -> None:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
                stream.write_table(table, max_chunksize=WINDOWS_AT_ONCE)

        self._place.write(saelens.data_name(shard, about.shards), saved)


WINDOWS_AT_ONCE = 1000  # in a record batch, as `datasets` writes them


def _features(about: About) -> Any:
    from datasets import Array2D, Features, Value
    from datasets import Sequence as Listed

    array = Array2D((about.context, about.width), about.dtype)
    tokens = Listed(Value("int32"), length=about.context)
    return Features({hook_name(about.sites[0]): array, saelens.TOKEN_IDS: tokens})


def _nested(values: np.ndarray, kind: Any) -> Any:
    """An array [rows, ...] as lists of lists in Arrow, without a copy."""
    import pyarrow as pa

    array = pa.array(values.reshape(-1))
    kinds = []
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        kinds.append(kind)
        kind = kind.value_type
    for size, outer in zip(values.shape[:0:-1], reversed(kinds), strict=True):
        if pa.types.is_fixed_size_list(outer):
            array = pa.FixedSizeListArray.from_arrays(array, type=outer)
        else:
            offsets = np.arange(0, len(array) + 1, size, dtype=np.int32)
            array = pa.ListArray.from_arrays(pa.array(offsets), array, type=outer)
    return array


def _check_sites(lm: LanguageModel, about: About, format: str) -> None:
    for site in about.sites:
        if not in_lens(lm, site):
            raise ValueError(
                f"sites=[{site}]: stored_as={format} calls sites by TransformerLens' names, and this one "
                f"has none; dictlearn.open_model(...).names(site) lists names"
            )


def _finite(about: About, site: str, values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise ValueError(
            f"dtype={about.dtype}: {site} has NaN, Inf or values beyond what it holds, and whole windows "
            f"leave none out; want bfloat16, which has the range of float32, or float32"
        )
    return values


WRITERS: dict[str, type[ForeignWriter]] = {
    "llamascopium": LlamascopiumWriter,
    "saelens": SAELensWriter,
}

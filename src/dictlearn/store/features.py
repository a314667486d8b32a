"""Reads a feature store: a feature takes about a millisecond, and nothing is loaded whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dictlearn.ckpt.dictionary import saved_sha256
from dictlearn.disk.errors import CONTENT_ERRORS, content_error, error_text
from dictlearn.disk.leftovers import recover
from dictlearn.disk.manifest import check_content, check_size, read_manifest
from dictlearn.disk.strict_json import read_json
from dictlearn.names import feature_name, feature_named
from dictlearn.store import hashes, layout
from dictlearn.store.layout import Info, info_from_json
from dictlearn.store.output_scores import read_output_scores
from dictlearn.store.records import Direction, Example, Feature, TokenScores, Transform
from dictlearn.store.windows import StoredWindows

ANEW = "`dictlearn features` makes it anew"


class _Damaged(ValueError):
    """A part of a store cannot be read, or is not what its description says."""


@final
class FeatureStore:
    """The features of one dictionary, which `dictlearn features` wrote into `<run>/features`.

    Args:
        folder: `<run>/features`, or the run's folder.

    Blocks are mapped into memory when first used, and only a few features' rows of a block are read.
    They are checked against their hash first. Raises ValueError where there is no store or it is
    damaged; a damaged part is noticed when it is first read.
    """

    def __init__(self, folder: str | Path):
        self.path = store_path(Path(folder))
        self.folder = self.path.parent  # <run>/features
        self._manifest = read_manifest(self.path)
        self._files: dict[str, Any] = self._manifest["files"]
        for name in self._files:
            self._check(name, check_size)
        self._check(layout.INFO)
        self.info: Info = info_from_json(
            read_json(self.path / layout.INFO), str(self.path / layout.INFO)
        )
        # A store of an earlier version has no hashes of rows: its blocks are hashed whole.
        self._hashes = self._opened(hashes.FILE) if hashes.FILE in self._files else None
        self._blocks: dict[tuple[int, int], Any] = {}
        self._whole: dict[str, Any] = {}  # files that are hashed whole, by name
        self._group = lru_cache(maxsize=64)(self._read_group)

    def __len__(self) -> int:
        return self.info.code_sources * self.info.n_features

    def __iter__(self) -> Iterator[Feature]:
        """Yields every feature, in (source, index) order."""
        for source in range(self.info.code_sources):
            for index in range(self.info.n_features):
                yield self.feature(source, index)

    def site(self, source: int) -> str:
        """The site that row `source` of the code reads."""
        return self.info.code_names[source]

    def name(self, source: int, index: int) -> str:
        """A feature's name, such as resid_post.1/266."""
        return feature_name(self.info.code_names, source, index)

    def target_sites(self, source: int) -> tuple[str, ...]:
        """The sites that features of this source write to."""
        return tuple(self.info.targets[t] for t in self.info.reaches[source])

    def feature(self, source: int, index: int) -> Feature:
        """The record of one feature. Raises ValueError where the dictionary has no such feature."""
        info = self.info
        try:
            feature_named(f"{source}/{index}", info.code_names, info.n_features)
        except ValueError as error:
            raise ValueError(f"feature {error}") from None
        row = self._row(source, index)
        try:
            return self._record(source, index, row)
        except _Damaged:
            raise
        except (*CONTENT_ERRORS, RuntimeError) as error:
            block = layout.block_name(source, index // info.rows)
            raise self._trouble(
                f"{self.path / block} is not of the shape that {layout.INFO} says: {content_error(error)}"
            ) from None

    def _record(self, source: int, index: int, row: Mapping[str, Tensor]) -> Feature:
        info = self.info
        count = int(row["count"])
        top, by_interval = self._examples(row)
        return Feature(
            source=source,
            index=index,
            density=count / max(info.tokens, 1),
            count=count,
            maximum=float(row["maximum"]),
            mean=float(row["mean"]),
            quantiles=tuple(row["quantiles"].tolist()),
            histogram=tuple(row["histogram"].tolist()),
            dead=count == 0,
            top=top,
            by_interval=by_interval,
            norms=self._norms(source, row),
            promoted=self._by_target(source, row, "promoted"),
            suppressed=self._by_target(source, row, "suppressed"),
            neighbours=_others(row["neighbours"], row["neighbour_cosines"], info.n_features),
            cofiring=_others(row["cofiring"], row["cofiring_jaccard"], info.n_features),
            transform=self._transform(index, row),
        )

    @cached_property
    def statistics(self) -> dict[str, Tensor]:
        """count, density, maximum, mean and dead of all features: each [S, F]."""
        whole: dict[str, Tensor] = {}
        parts = [self._columns(source, number) for source, number in self._numbers()]
        for name in hashes.COLUMNS:
            column = torch.cat([part[name] for part in parts])
            whole[name] = column.view(self.info.code_sources, self.info.n_features)
        whole["density"] = whole["count"].double() / max(self.info.tokens, 1)
        whole["dead"] = whole["count"] == 0
        return whole

    @cached_property
    def output_scores(self) -> Tensor | None:
        """How much each feature raises its own promoted tokens, [S, F]; None until it is measured."""
        return read_output_scores(self.folder, self.info)

    def output_score(self, source: int, index: int) -> float | None:
        """One feature's output score; None where it has none."""
        scores_SF = self.output_scores
        score = float("nan") if scores_SF is None else float(scores_SF[source, index])
        return None if score != score else score

    @cached_property
    def windows(self) -> StoredWindows:
        """The held-out text that the harvest read."""
        rows, context = self.info.windows, self.info.context
        return StoredWindows(
            tokens=self._read(layout.WINDOWS, "tokens", torch.int32, (rows, context)),
            documents=self._read(layout.WINDOWS, "documents", torch.int32, (rows, context)),
            numbers=self._read(layout.WINDOWS, "numbers", torch.int64, (rows,)),
        )

    def sampled_windows(self) -> Tensor:
        """Rows of `windows` whose firings are all kept: int64, ascending."""
        rows = self._read(layout.SAMPLE, "windows", torch.int64, (None,))
        return self._below(rows, self.info.windows, layout.SAMPLE, "windows")

    def sampled_firings(self, source: int, index: int) -> tuple[Tensor, Tensor]:
        """(places int64, activations) of a feature's firings in the sampled windows, in reading order.

        A place is row * P + position. Only in these windows all silent tokens are known too.
        """
        flat = source * self.info.n_features + index
        bounds = self._read(layout.SAMPLE, "starts", torch.int64, (None,), flat, flat + 2)
        rows = tuple(self._below(bounds, 2**62, layout.SAMPLE, "starts").tolist())
        if len(rows) != 2 or rows[0] > rows[1]:
            raise self._unfit(layout.SAMPLE, "starts")
        places = self._read(layout.SAMPLE, "places", torch.int64, (None,), *rows)
        activations = self._read(layout.SAMPLE, "activations", torch.float32, (None,), *rows)
        if not len(places) == len(activations) == rows[1] - rows[0]:
            raise self._unfit(layout.SAMPLE, "places")
        n_places = self.info.windows * self.info.context
        return self._below(places, n_places, layout.SAMPLE, "places"), activations

    def _read(
        self,
        name: str,
        tensor: str,
        dtype: torch.dtype,
        shape: tuple[int | None, ...],
        *rows: int,
    ) -> Tensor:
        """A tensor of a file, or `rows` first to last of it, of this dtype and shape (None: any)."""
        if name not in self._whole:
            self._whole[name] = self._opened(name)
        try:
            read = self._whole[name].get_slice(tensor)
            sizes = read.get_shape()
            fits = len(sizes) == len(shape) and all(
                want in (None, size) for want, size in zip(shape, sizes, strict=True)
            )
            values = read[slice(*rows)] if rows else read[:]
        except (SafetensorError, RuntimeError, IndexError, OverflowError):
            raise self._unfit(name, tensor) from None
        if not fits or values.dtype != dtype:
            raise self._unfit(name, tensor)
        return values

    def _below(self, values: Tensor, bound: int, name: str, tensor: str) -> Tensor:
        if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < bound):
            raise self._unfit(name, tensor)
        return values

    def _unfit(self, name: str, tensor: str) -> ValueError:
        return self._trouble(f"{self.path / name}: its {tensor} are not what {layout.INFO} says")

    def _numbers(self) -> list[tuple[int, int]]:
        n_blocks = -(-self.info.n_features // self.info.rows)
        return [(s, n) for s in range(self.info.code_sources) for n in range(n_blocks)]

    def _block(self, source: int, number: int) -> Any:
        key = (source, number)
        if key not in self._blocks:
            name = layout.block_name(source, number)
            self._blocks[key] = self._opened(name, whole=self._hashes is None)
        return self._blocks[key]

    def _row(self, source: int, index: int) -> dict[str, Tensor]:
        number, row = divmod(index, self.info.rows)
        group, row = divmod(row, hashes.GROUP)
        return {name: rows[row] for name, rows in self._group(source, number, group).items()}

    def _read_group(self, source: int, number: int, group: int) -> dict[str, Tensor]:
        """The rows of GROUP consecutive features, which have one hash."""
        rows = slice(group * hashes.GROUP, (group + 1) * hashes.GROUP)

        def read(block: Any) -> dict[str, Tensor]:
            return {name: block.get_slice(name)[rows] for name in block.keys()}  # noqa: SIM118

        return self._checked(source, number, read, hashes.rows_name(source, number), group)

    def _columns(self, source: int, number: int) -> dict[str, Tensor]:
        def read(block: Any) -> dict[str, Tensor]:
            return {name: block.get_tensor(name) for name in hashes.COLUMNS}

        return self._checked(source, number, read, hashes.columns_name(source, number))

    def _checked(
        self,
        source: int,
        number: int,
        read: Callable[[Any], dict[str, Tensor]],
        name: str,
        group: int | None = None,
    ) -> dict[str, Tensor]:
        """The tensors that `read` takes from a block, after a check against the hash `name`."""
        block = self._block(source, number)
        try:
            tensors = read(block)
            if self._hashes is None:
                return tensors
            expected = self._hashes.get_tensor(name)
            expected = expected if group is None else expected[group]
            intact = hashes.digest(tensors) == bytes(expected.tolist())
        except (SafetensorError, RuntimeError, ValueError, TypeError, LookupError):
            intact, tensors = False, {}
        if not intact:
            path = self.path / layout.block_name(source, number)
            raise self._trouble(f"{path} is damaged (its sha256 differs)")
        return tensors

    def _opened(self, name: str, whole: bool = True) -> Any:
        """A file, mapped for as long as the store lives; with `whole` it is hashed first."""
        if whole:
            self._check(name)
        try:
            return safe_open(self.path / name, framework="pt").__enter__()
        except (OSError, SafetensorError) as error:
            sentence = f"{self.path / name} is not a readable safetensors file: {error_text(error)}"
            raise self._trouble(sentence) from None

    def _check(
        self, name: str, check: Callable[[Path, Mapping[str, Any]], None] = check_content
    ) -> None:
        if name not in self._files:
            raise self._trouble(f"{self.path / name} is missing from its manifest")
        try:
            check(self.path / name, self._files[name])
        except ValueError as error:
            raise self._trouble(str(error)) from None

    def _trouble(self, sentence: str) -> ValueError:
        """The error for an unreadable part; the store may also have been replaced since it was opened."""
        with suppress(ValueError):
            if read_manifest(store_path(self.path)) != self._manifest:
                return _Damaged(f"{self.path}: was made anew while it was read; run this again")
        return _Damaged(f"{sentence}; {ANEW}")

    def _examples(
        self, row: Mapping[str, Tensor]
    ) -> tuple[tuple[Example, ...], tuple[tuple[Example, ...], ...]]:
        kept = (row["examples"] >= 0).nonzero()[:, 0]
        intervals = row["example_intervals"][kept].tolist()
        top: list[Example] = []
        drawn: list[list[Example]] = [[] for _ in range(self.info.intervals)]
        for interval, example in zip(intervals, self._shown(row, kept, intervals), strict=True):
            (top if interval < 0 else drawn[interval]).append(example)
        return tuple(top), tuple(map(tuple, drawn))

    def _shown(
        self, row: Mapping[str, Tensor], kept: Tensor, intervals: list[int]
    ) -> Iterator[Example]:
        """Yields the examples in slots `kept`; their contexts end with their windows."""
        context, before = self.info.context, self.info.before
        places = row["examples"][kept]
        window, position = places // context, places % context
        offset = torch.arange(-before, self.info.after + 1)
        near = (position[:, None] + offset).clamp(0, context - 1)
        values = row["example_activations"][kept].float() * row["example_scales"][kept, None]
        columns = (
            intervals,
            position.tolist(),
            self.windows.tokens[window[:, None], near].tolist(),
            values.tolist(),
            self.windows.documents[window, position].tolist(),
            self.windows.numbers[window].tolist(),
        )
        for interval, position, tokens, activations, document, number in zip(*columns, strict=True):
            start = max(position - before, 0)
            stop = min(position + self.info.after + 1, context)
            shown = slice(start - position + before, stop - position + before)
            yield Example(
                tokens=tuple(tokens[shown]),
                activations=tuple(activations[shown]),
                peak=position - start,
                document=document,
                window=number,
                start=start,
                interval=None if interval < 0 else interval,
            )

    def _norms(self, source: int, row: Mapping[str, Tensor]) -> dict[str, float]:
        if "norms" not in row:
            return {}
        return dict(zip(self.target_sites(source), row["norms"].tolist(), strict=True))

    def _by_target(
        self, source: int, row: Mapping[str, Tensor], name: str
    ) -> dict[str, TokenScores]:
        if name not in row:
            return {}
        columns = zip(self.target_sites(source), row[name], row[f"{name}_effects"], strict=True)
        by_target = {site: _scores(ids, effects) for site, ids, effects in columns}
        return {site: scores for site, scores in by_target.items() if scores}

    def _transform(self, index: int, row: Mapping[str, Tensor]) -> Transform | None:
        if "strengths" not in row:
            return None
        directions = []
        for i, strength in enumerate(row["strengths"].tolist()):
            if strength > 0:
                tokens = [
                    _scores(row[name][i], row[f"{name}_effects"][i]) if name in row else ()
                    for name in ("reads", "reads_opposite", "writes", "writes_opposite")
                ]
                directions.append(Direction(strength, *tokens))
        return Transform(self.info.ranks[index], tuple(directions))


def open_store(folder: str | Path, dictionary_sha256: str | None = None) -> FeatureStore:
    """The features in a run's folder, checked to be those of its present dictionary.

    Args:
        dictionary_sha256: `sha256_of` the expected dictionary; None: of the one in the folder.

    Raises:
        ValueError: there is no store, it is damaged, or it is of another dictionary.
    """
    store = FeatureStore(folder)
    expected = dictionary_sha256 or saved_sha256(store.folder.parent)
    if expected not in (None, store.info.dictionary_sha256):
        raise ValueError(
            f"{store.path}: its features are those of another dictionary (the run was trained on, or "
            f"the folder comes from elsewhere); {ANEW}"
        )
    return store


def store_path(folder: Path) -> Path:
    """The store's own folder below `folder`. Raises ValueError where there is none."""
    path = _find(folder)
    if path is None:
        raise ValueError(
            f"{folder}: no features are stored here; `dictlearn features run=<run>` makes them"
        )
    return path


def has_store(folder: str | Path) -> bool:
    """Whether a folder has a store, damaged or not."""
    return _find(Path(folder)) is not None


def _find(folder: Path) -> Path | None:
    candidates = (folder, folder / layout.FOLDER, folder / "features" / layout.FOLDER)
    return next((p for p in map(recover, candidates) if (p / layout.INFO).is_file()), None)


def _scores(ids: Tensor, effects: Tensor) -> TokenScores:
    """(token, effect) pairs without empty slots, which targets outside the residual stream have."""
    pairs = zip(ids.tolist(), effects.tolist(), strict=True)
    return tuple((token, effect) for token, effect in pairs if token >= 0)


def _others(flat: Tensor, values: Tensor, n_features: int) -> tuple[tuple[int, int, float], ...]:
    return tuple(
        (*divmod(other, n_features), value)
        for other, value in zip(flat.tolist(), values.tolist(), strict=True)
        if other >= 0
    )

"""Reads a feature store: any one feature in a millisecond or so, nothing loaded whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dictlearn.ckpt import commit
from dictlearn.ckpt.files import read_json
from dictlearn.store import layout
from dictlearn.store.layout import Info, info_from_json
from dictlearn.store.records import Direction, Example, Feature, TokenScores, Transform
from dictlearn.store.windows import StoredWindows


@final
class FeatureStore:
    """The features of one dictionary, as `dictlearn features` left them in `<run>/features`.

    Args:
        folder: `<run>/features`, or the run's folder.

    Blocks are mapped into memory when first asked for, and of a block only the rows of one feature
    are read. Raises ValueError where there is no store, or one that was damaged.
    """

    def __init__(self, folder: str | Path):
        self.path = found(Path(folder))
        self.folder = self.path.parent  # <run>/features
        files = commit.read_manifest(self.path)["files"]
        for name, entry in files.items():  # hashes would read everything
            path = self.path / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise ValueError(f"{path}: is not whole; `dictlearn features` makes it anew")
        self.info: Info = info_from_json(
            read_json(self.path / layout.INFO), str(self.path / layout.INFO)
        )
        self._blocks: dict[tuple[int, int], Any] = {}

    def __len__(self) -> int:
        return self.info.code_sources * self.info.n_features

    def __iter__(self) -> Iterator[Feature]:
        """Every feature, in (source, index) order."""
        for source in range(self.info.code_sources):
            for index in range(self.info.n_features):
                yield self.feature(source, index)

    def site(self, source: int) -> str:
        """What row `source` of the code reads."""
        return self.info.code_names[source]

    def target_sites(self, source: int) -> tuple[str, ...]:
        """The sites that features of this source write to."""
        return tuple(self.info.targets[t] for t in self.info.reaches[source])

    def feature(self, source: int, index: int) -> Feature:
        """Raises ValueError for a feature that the dictionary doesn't have."""
        info = self.info
        if not (0 <= source < info.code_sources and 0 <= index < info.n_features):
            raise ValueError(
                f"feature {source}/{index}: want a source from 0 to {info.code_sources - 1} and an "
                f"index from 0 to {info.n_features - 1}"
            )
        row = self._row(source, index)
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
        for name in ("count", "maximum", "mean"):
            parts = [self._block(s, n).get_tensor(name) for s, n in self._numbers()]
            whole[name] = torch.cat(parts).view(self.info.code_sources, self.info.n_features)
        whole["density"] = whole["count"].double() / max(self.info.tokens, 1)
        whole["dead"] = whole["count"] == 0
        return whole

    @cached_property
    def windows(self) -> StoredWindows:
        """The held-out text that was read."""
        file = _opened(self.path / layout.WINDOWS)
        return StoredWindows(*map(file.get_tensor, ("tokens", "documents", "numbers")))

    def sampled_windows(self) -> Tensor:
        """Rows of `windows` all of whose firings are kept: int64, ascending."""
        return self._sample.get_tensor("windows")

    def sampled_firings(self, source: int, index: int) -> tuple[Tensor, Tensor]:
        """(places int64, activations) of a feature in the sampled windows, in reading order.

        A place is row * P + position. Where a feature is silent is known nowhere but here.
        """
        flat = source * self.info.n_features + index
        low, high = self._sample.get_slice("starts")[flat : flat + 2].tolist()
        places = self._sample.get_slice("places")[low:high]
        return places, self._sample.get_slice("activations")[low:high]

    @cached_property
    def _sample(self) -> Any:
        return _opened(self.path / layout.SAMPLE)

    def _numbers(self) -> list[tuple[int, int]]:
        n_blocks = -(-self.info.n_features // self.info.rows)
        return [(s, n) for s in range(self.info.code_sources) for n in range(n_blocks)]

    def _block(self, source: int, number: int) -> Any:
        key = (source, number)
        if key not in self._blocks:
            self._blocks[key] = _opened(self.path / layout.block_name(source, number))
        return self._blocks[key]

    def _row(self, source: int, index: int) -> dict[str, Tensor]:
        block = self._block(source, index // self.info.rows)
        place = index % self.info.rows
        return {name: block.get_slice(name)[place] for name in block.keys()}  # noqa: SIM118

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
        """The examples in slots `kept`, cut off where their windows begin and end."""
        context, before = self.info.context, self.info.before
        place = row["examples"][kept]
        window, position = place // context, place % context
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

    def _by_target(
        self, source: int, row: Mapping[str, Tensor], name: str
    ) -> dict[str, TokenScores]:
        if name not in row:
            return {}
        found = zip(self.target_sites(source), row[name], row[f"{name}_effects"], strict=True)
        return {site: _scores(ids, effects) for site, ids, effects in found}

    def _transform(self, index: int, row: Mapping[str, Tensor]) -> Transform | None:
        if "strengths" not in row:
            return None
        directions = []
        for place, strength in enumerate(row["strengths"].tolist()):
            if strength > 0:
                tokens = [
                    _scores(row[f"{name}"][place], row[f"{name}_effects"][place])
                    if name in row
                    else ()
                    for name in ("reads", "reads_opposite", "writes", "writes_opposite")
                ]
                directions.append(Direction(strength, *tokens))
        return Transform(self.info.ranks[index], tuple(directions))


def found(folder: Path) -> Path:
    """The folder of the store itself. ValueError where there is none."""
    for candidate in (folder, folder / layout.FOLDER, folder / "features" / layout.FOLDER):
        if (candidate / layout.INFO).is_file():
            return candidate
    raise ValueError(
        f"{folder}: no features are stored here; `dictlearn features run=<run>` makes them"
    )


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt").__enter__()  # mapped for as long as the store lives
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


def _scores(ids: Tensor, effects: Tensor) -> TokenScores:
    return tuple(zip(ids.tolist(), effects.tolist(), strict=True))


def _others(flat: Tensor, values: Tensor, n_features: int) -> tuple[tuple[int, int, float], ...]:
    return tuple(
        (*divmod(other, n_features), value)
        for other, value in zip(flat.tolist(), values.tolist(), strict=True)
        if other >= 0
    )

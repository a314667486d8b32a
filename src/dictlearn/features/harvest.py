"""Makes a feature store: a pass over text, then the features' effects from the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dictlearn import __version__
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.dicts.neighbours import Neighbours
from dictlearn.features import histogram, transforms
from dictlearn.features.cofiring import TOGETHER, Cofiring
from dictlearn.features.logits import Unembedding, effects
from dictlearn.features.reading import Reading, fingerprint
from dictlearn.features.sample import Sampled
from dictlearn.features.settings import Settings
from dictlearn.features.state import State
from dictlearn.features.text import Text
from dictlearn.lm.capture import batch_at
from dictlearn.lm.language_model import LanguageModel
from dictlearn.store.layout import Info
from dictlearn.store.tokenizer import signature_of
from dictlearn.store.windows import StoredWindows
from dictlearn.store.writer import INTERVAL_OF_TOP, NOTHING, Block, write_store
from dictlearn.types import NamedProgress

PROBE_TOKENS = 256  # norms are fitted on them
DEVIATION_TOKENS = 2048  # targets' standard deviations are measured on them
PARTIAL = "partial"  # in <run>/features: states of an unfinished pass


@final
@dataclass(frozen=True, eq=False)
class Harvest:
    """One harvest; `folder` is `<run>/features`. `data` are the settings the text came from."""

    dictionary: Dictionary
    lm: LanguageModel
    text: Text
    settings: Settings
    folder: Path
    data: Mapping[str, Any]

    def read(self, rank: int, processes: int, progress: NamedProgress = lambda *_: None) -> Reading:
        """Reads a share of the text, from where a killed process stopped."""
        key = fingerprint(self.dictionary, self.lm, self.text, self.settings)
        share = self.folder / PARTIAL / f"{rank}-of-{processes}"
        reading = Reading(
            self.dictionary, self.lm, self.text, self.settings, share, key, rank, processes
        )
        reading.run(lambda done, total: progress("reading", done, total))
        return reading

    @torch.no_grad()
    def finish(
        self,
        readings: Sequence[Reading],
        progress: NamedProgress = lambda *_: None,
        overwrite: bool | None = None,
    ) -> None:
        """Merges the readings of all processes, adds the effects from the weights, commits the store."""
        tokens = sum(reading.tokens for reading in readings)
        if tokens == 0:
            raise ValueError(
                "data: the held-out windows hold special tokens alone; give more text or raise "
                "data.held_out"
            )
        sampled = readings[0].sampled
        for reading in readings[1:]:
            sampled.merge(reading.sampled)
        windows = self.text.stored()
        cofiring = Cofiring(sampled, readings[0].n_columns)
        unembedding = Unembedding.of(self.lm, self._probe())
        info = self._info(windows, tokens, sampled, unembedding)
        blocks = self._blocks(readings, info, cofiring, unembedding, progress)
        write_store(self.folder, info, windows, cofiring.sample, blocks, overwrite)
        for reading in readings:
            reading.forget()
        with suppress(OSError):  # the folder may hold other files
            (self.folder / PARTIAL).rmdir()

    def _blocks(
        self,
        readings: Sequence[Reading],
        info: Info,
        cofiring: Cofiring,
        unembedding: Unembedding | None,
        progress: NamedProgress,
    ) -> Iterator[Block]:
        dictionary, k = self.dictionary, self.settings.promoted
        neighbours = Neighbours(dictionary)
        decoder, directions, read_VD = dictionary.decoder, None, None
        if decoder.maps():
            directions = transforms.Directions.of(decoder.maps(), self.settings.directions)
            read_VD = transforms.read_tokens(self.lm, dictionary.sources[0], self._probe())
        deviation_T = self._deviations()
        blocks = list(readings[0].blocks())
        for number, column, n in blocks:
            source, first = divmod(column, dictionary.n_features)
            rows = slice(first, first + n)
            state = readings[0].block(number, n)
            for reading in readings[1:]:
                state.merge(reading.block(number, n))
            tensors = of_state(state, self.settings)
            columns, cosines = neighbours.nearest(source, rows, self.settings.neighbours)
            tensors |= {"neighbours": columns, "neighbour_cosines": cosines}
            columns, jaccard = cofiring.of(column, n, self.settings.cofiring)
            tensors |= {"cofiring": columns, "cofiring_jaccard": jaccard}
            if decoder.writes_directions:
                reaches = info.reaches[source]
                tensors["norms"] = norms(dictionary, source, reaches, rows, deviation_T)
                tensors |= effects(unembedding, dictionary, source, reaches, rows, k)
            elif directions is not None and read_VD is not None:
                tensors |= transforms.described(
                    directions, rows, read_VD, unembedding, dictionary.targets[0], k
                )
            yield Block(source, first, tensors)
            progress("writing", number + 1, len(blocks))

    def _probe(self) -> Tensor:
        """About `PROBE_TOKENS` tokens of the text, int64 [B, P]."""
        return self.text.windows.window_batch(self._first(PROBE_TOKENS))

    def _first(self, tokens: int) -> list[int]:
        """Numbers of windows that hold about `tokens` tokens."""
        n = min(-(-tokens // self.text.context), len(self.text))
        return self.text.numbers(range(n))

    def _deviations(self) -> Tensor:
        """Root mean square distance of each target's activations from their mean: [T]."""
        numbers, windows = self._first(DEVIATION_TOKENS), self.text.windows
        tokens_BP, valid_BP = windows.window_batch(numbers), windows.kept(numbers)
        y_NTD = batch_at(self.lm, tokens_BP, valid_BP, self.dictionary.targets).x_NSD.double()
        y_TND = y_NTD.unbind(1)
        return torch.stack([(y - y.mean(0)).square().sum(1).mean().sqrt() for y in y_TND])

    def _info(
        self, windows: StoredWindows, tokens: int, sampled: Sampled, unembedding: Unembedding | None
    ) -> Info:
        dictionary, settings = self.dictionary, self.settings
        in_sample = self.text.windows.kept(windows.numbers[sampled.rows()])
        return Info(
            kind=dictionary.kind,
            sources=dictionary.sources,
            targets=dictionary.targets,
            code_sources=dictionary.code_sources,
            n_features=dictionary.n_features,
            reaches=reaches(dictionary),
            ranks=tuple(len(U) for group, _ in dictionary.decoder.maps() for U in group),
            model=self.lm.info.name,
            revision=self.lm.info.revision,
            data=self.data,
            dictionary_sha256=sha256_of(dictionary),
            windows=len(windows),
            context=self.text.context,
            documents=len(windows.documents.unique()),
            tokens=tokens,
            sampled_tokens=int(in_sample.sum()),
            examples=settings.examples,
            intervals=settings.intervals,
            per_interval=settings.per_interval,
            before=settings.before,
            after=settings.after,
            bins=settings.bins,
            quantile_levels=settings.quantiles,
            promoted=settings.promoted,
            unembedding="none: the model has none"
            if unembedding is None
            else unembedding.described,
            neighbours=settings.neighbours,
            cofiring=f"Jaccard index of firing tokens; pairs seen together {TOGETHER} times or more",
            directions=settings.directions,
            rows=settings.block,
            versions={name: version(name) for name in ("torch", "transformers")}
            | {"dictlearn": __version__},
            signature=signature_of(self.lm.info.name, self.lm.info.revision),
        )


def reaches(dictionary: Dictionary) -> tuple[tuple[int, ...], ...]:
    """The targets that the features of each row of the code write to."""
    return tuple(tuple(dictionary.decoder.reaches(s)) for s in range(dictionary.code_sources))


def norms(
    dictionary: Dictionary, source: int, reaches: Sequence[int], rows: slice, deviation_T: Tensor
) -> Tensor:
    """Norms of features' vectors at each target, in its standard deviations: float32 [n, R]."""
    norms_R = [
        dictionary.decoder.written(t, source, rows).norm(dim=-1).cpu() / float(deviation_T[t])
        for t in reaches
    ]
    return torch.stack(norms_R, 1).float()


def of_state(state: State, settings: Settings) -> dict[str, Tensor]:
    """The tensors of a block that come from the pass alone."""
    counted = state.histogram, state.octave, state.maximum
    slots, intervals = _examples(state, settings)
    both = {
        name: torch.cat([vars(state.top)[name], vars(state.drawn)[name]], 1)
        for name in ("place", "scale", "shares")
    }
    n, e = slots.shape
    place = both["place"].gather(1, slots).masked_fill_(intervals < INTERVAL_OF_TOP, NOTHING)
    shape = (n, e, settings.length)
    return {
        "count": state.count,
        "maximum": state.maximum,
        "mean": (state.total / state.count.clamp_min(1)).float(),
        "quantiles": histogram.quantiles(*counted, torch.tensor(settings.quantiles)),
        "histogram": histogram.equal_bins(*counted, settings.bins),
        "examples": place,
        "example_intervals": intervals.clamp_min(INTERVAL_OF_TOP).to(torch.int8),
        "example_scales": both["scale"].gather(1, slots),
        "example_activations": both["shares"].gather(1, slots[..., None].expand(shape)),
    }


def _examples(state: State, settings: Settings) -> tuple[Tensor, Tensor]:
    """(slots in top and drawn together, their intervals): each [n, K + R]; interval -2 if empty.

    Drawn firings that are not among the strongest are sorted from the weakest up and divided into
    intervals of equal size. As they were drawn uniformly, each interval is a fair sample of that part
    of the activations.
    """
    top, drawn = state.top, state.drawn
    n, k = top.place.shape
    again = (drawn.place[:, :, None] == top.place[:, None]).any(2)
    used = (drawn.place >= 0) & ~again
    strength = torch.where(used, drawn.value, torch.inf)
    order = drawn.place.argsort(dim=1, stable=True)
    order = order.gather(1, strength.gather(1, order).argsort(dim=1, stable=True))
    total_n1 = used.sum(1, keepdim=True)
    number = torch.arange(drawn.place.shape[1]).expand(n, -1)
    interval = number * settings.intervals // total_n1.clamp_min(1)
    interval = torch.where(number < total_n1, interval, INTERVAL_OF_TOP - 1)
    top_interval = torch.where(top.place >= 0, INTERVAL_OF_TOP, INTERVAL_OF_TOP - 1)
    slots = torch.cat([torch.arange(k).expand(n, -1), k + order], 1)
    return slots, torch.cat([top_interval, interval], 1)

"""What a run gets from outside: the model, the text and the stream, its own or shared with other runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Protocol, TypeVar, final

from omegaconf import DictConfig

from dictlearn import escape
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.evals.passes import OWN, Passes, Side, SideBySide
from dictlearn.lm.language_model import LanguageModel
from dictlearn.sources.protocol import Source
from dictlearn.sources.shared import SharedStream, Sites, Tap
from dictlearn.types import TextWindows
from dictlearn.verbs import build
from dictlearn.verbs.continued import goes_on
from dictlearn.verbs.turns import Turns

T = TypeVar("T")


class Supply(Protocol):
    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` makes; runs that share it make it once. What raises is not kept."""
        ...

    def source(
        self,
        cfg: DictConfig,
        lm: LanguageModel | None,
        dictionary: Dictionary,
        windows: TextWindows | None,
        done: int,
    ) -> Source:
        """The source of a run that begins after `done` batches."""
        ...

    def trained(self) -> None:
        """The run reads no more of its source's batches."""
        ...

    def passes(self) -> Passes:
        """The forward passes of the run's evaluation."""
        ...

    def stopped(self, by: signal.Signals, cfg: DictConfig) -> None:
        """Says that a signal has stopped the run, and how to go on."""
        ...


@final
class Alone:
    """The supply of a run that shares nothing."""

    def once(self, name: str, make: Callable[[], T]) -> T:
        return make()

    def source(
        self,
        cfg: DictConfig,
        lm: LanguageModel | None,
        dictionary: Dictionary,
        windows: TextWindows | None,
        done: int,
    ) -> Source:
        return build.build_source(cfg, lm, dictionary, "train", windows)

    def trained(self) -> None: ...

    def passes(self) -> Passes:
        return OWN

    def stopped(self, by: signal.Signals, cfg: DictConfig) -> None:
        escape.say(f"stopped by {by.name}; {goes_on(cfg)}")


@final
class Group:
    """What several runs in one process share: `turns` calls them, each with a `Member` as its supply."""

    def __init__(self, runs: int):
        self.turns: Turns | None = None
        self.made: dict[str, object] = {}
        self.stream: SharedStream | None = None
        self.expected = runs  # runs that have not asked for a source yet, and may
        self.evaluations = SideBySide(lambda ready: self.hand_over(ready, stops=True))

    def hand_over(self, ready: Callable[[], bool], stops: bool = False) -> None:
        assert self.turns is not None
        self.turns.hand_over(ready, stops)


@final
class Member:
    """The supply of one run of a group."""

    def __init__(self, group: Group):
        self._group = group
        self._tap: Tap | None = None
        self._side: Side | None = None
        self._asked = False

    def once(self, name: str, make: Callable[[], T]) -> T:
        if name not in self._group.made:
            self._group.made[name] = make()
        return self._group.made[name]  # type: ignore[return-value]

    def source(
        self,
        cfg: DictConfig,
        lm: LanguageModel | None,
        dictionary: Dictionary,
        windows: TextWindows | None,
        done: int,
    ) -> Source:
        """Waits until all runs have said which sites they read."""
        group = self._group
        if group.stream is None:

            def made(sites: Sites) -> Source:
                return build.build_source(cfg, lm, sites, "train", windows)

            group.stream = SharedStream(made, group.hand_over)
        self._tap = group.stream.join(dictionary.sources, dictionary.targets, done)
        self._came()
        group.hand_over(lambda: group.expected == 0, stops=True)
        return self._tap

    def trained(self) -> None:
        """Waits until all runs are trained: they then evaluate side by side, without the stream."""
        self._leave()
        stream = self._group.stream
        self._group.hand_over(lambda: stream is None or not stream.taps, stops=True)

    def passes(self) -> Passes:
        self._side = self._side or self._group.evaluations.join()
        return self._side

    def stopped(self, by: signal.Signals, cfg: DictConfig) -> None:
        """The group says it for all of its runs."""

    def ended(self) -> None:
        """The run is over, however it went: nobody waits for it."""
        self._came()
        self._leave()
        if self._side is not None:
            self._side.leave()

    def _leave(self) -> None:
        if self._tap is not None:
            self._tap.leave()

    def _came(self) -> None:
        self._group.expected -= not self._asked
        self._asked = True

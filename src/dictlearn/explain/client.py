"""Language models that answer prompts, and what a run asked of one."""

from __future__ import annotations

import asyncio
import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, final

from dictlearn.explain.answers import spoken
from dictlearn.explain.cache import Cache
from dictlearn.explain.prompt import Messages

CHARACTERS_PER_TOKEN = 3.5  # where a tokenizer is not at hand
DESCRIPTION_TOKENS = 60  # of a usual answer, thoughts not counted
STAND_IN = (
    "a description about as long as those that language models write of what a feature is for"
)


class NoAnswer(OSError):
    """A prompt that got no answer: after every retry, or because the server refuses this one."""


@dataclass(frozen=True)
class Answer:
    text: str
    whole: bool  # False: it was cut at its limit of tokens
    tokens_in: int  # 0 where the server doesn't say
    tokens_out: int


class Client(ABC):
    """A language model somewhere."""

    model: str
    temperature: float | None  # None: the server's own

    @abstractmethod
    async def complete(self, messages: Messages, max_tokens: int) -> Answer:
        """Raises NoAnswer where there is none, ValueError where no prompt would get one."""

    def remark(self) -> str:
        """What a user should know of how prompts were put, if anything."""
        return ""

    async def close(self) -> None:
        """Gives back what it holds."""
        return


@dataclass
class Tally:
    """What a run asked for and what it cost."""

    prompts: int = 0
    cached: int = 0  # answered from the disk
    failed: int = 0  # no answer after every retry, or refused
    cut: int = 0  # at the limit of tokens
    malformed: int = 0  # answers in another form than asked for: left out of scores
    tokens_in: int = 0
    tokens_out: int = 0

    def cost(self, price_in: float, price_out: float) -> float:
        """In the unit of the prices, which are per million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6

    def add(self, other: Tally, times: float = 1.0) -> None:
        """Adds what another asked for, as often."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + round(times * value))

    def __str__(self) -> str:
        return (
            f"{self.prompts:,} prompts: {self.cached:,} answered from the cache, {self.failed:,} "
            f"failed; {self.malformed:,} answers malformed, {self.cut:,} cut at their limit of tokens"
        )


class Asker(ABC):
    """Asks a client. A prompt whose answer is in the cache is not asked again.

    Args:
        max_tokens: of a description, thoughts included.
        score_tokens: of an answer to a scorer; None: `max_tokens`, or what its numbers need.
    """

    def __init__(self, client: Client, cache: Cache, max_tokens: int, score_tokens: int | None):
        self.client, self.cache, self.tally = client, cache, Tally()
        self.max_tokens, self.score_tokens = max_tokens, score_tokens

    async def describe(self, messages: Messages, number: int = 0) -> Answer | None:
        """None where no answer came. `number` tells apart several answers to one prompt."""
        return await self._ask(messages, self.max_tokens, DESCRIPTION_TOKENS, number)

    async def score(self, messages: Messages, n: int) -> Answer | None:
        """Of a prompt that asks for a list of `n` numbers; None where no answer came."""
        limit = self.score_tokens or max(8 * n + 16, self.max_tokens)
        return await self._ask(messages, limit, 3 * n)

    async def _ask(
        self, messages: Messages, limit: int, usual: int, number: int = 0
    ) -> Answer | None:
        self.tally.prompts += 1
        asked = [self.client.model, self.client.temperature, messages, limit, number]
        key = prompt_hash(asked)
        if (known := self.cache.get(key)) is not None:
            self.tally.cached += 1
            answer = Answer(**known)
        else:
            answer = await self._fresh(key, messages, limit, usual)
            if answer is None:
                return None
            self.tally.tokens_in += answer.tokens_in
            self.tally.tokens_out += answer.tokens_out
        self.tally.cut += not answer.whole
        return replace(answer, text=spoken(answer.text))

    @abstractmethod
    async def _fresh(
        self, key: str, messages: Messages, limit: int, usual: int
    ) -> Answer | None: ...


@final
class Sender(Asker):
    """Sends what the cache can't answer, and keeps each answer there as it comes.

    Args:
        concurrency: prompts under way at a time.
        patience: prompts in a row without an answer before the run ends.

    Raises:
        NoAnswer: from what asks, when patience is at its end.
    """

    def __init__(
        self,
        client: Client,
        cache: Cache,
        max_tokens: int,
        score_tokens: int | None = None,
        concurrency: int = 8,
        patience: int = 5,
    ):
        super().__init__(client, cache, max_tokens, score_tokens)
        self.last_failure = ""
        self.patience = patience
        self._slots = asyncio.Semaphore(concurrency)
        self._sent = self._judged = 0  # prompts, in the order in which they were sent
        self._failed: dict[int, bool] = {}  # of those not judged yet
        self._failed_in_a_row = 0

    async def _fresh(self, key: str, messages: Messages, limit: int, usual: int) -> Answer | None:
        async with self._slots:
            number = self._sent
            self._sent += 1
            try:
                answer = await self.client.complete(messages, limit)
            except NoAnswer as error:
                answer, self.last_failure = None, str(error)
                self.tally.failed += 1
        if answer is not None:
            self.cache.add(key, vars(answer))
        self._judge(number, failed=answer is None)
        return answer

    def _judge(self, number: int, failed: bool) -> None:
        """Raises when too many in a row have failed, in the order in which they were sent.

        Refusals come at once and answers take their time: in the order in which they come, a few
        refusals would seem to be all there is.
        """
        self._failed[number] = failed
        while self._judged in self._failed:
            fails = self._failed.pop(self._judged)
            self._failed_in_a_row = self._failed_in_a_row + 1 if fails else 0
            self._judged += 1
            if self._failed_in_a_row >= self.patience:
                raise NoAnswer(
                    f"explainer: no answer to {self.patience} prompts in a row, which ends the run "
                    f"({self.tally}); the last: {self.last_failure}"
                )


@final
class Estimator(Asker):
    """Sends nothing: counts what would be sent."""

    async def _fresh(self, key: str, messages: Messages, limit: int, usual: int) -> Answer:
        characters = sum(len(message["content"]) for message in messages)
        text = f"DESCRIPTION: {STAND_IN} {self.tally.prompts}"  # no two are the same
        return Answer(text, True, round(characters / CHARACTERS_PER_TOKEN), min(usual, limit))


def prompt_hash(asked: Any) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]

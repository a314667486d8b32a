"""Clients of language models, and the prompts that a run sent."""

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

CHARACTERS_PER_TOKEN = 3.5  # for estimates without a tokenizer
DESCRIPTION_TOKENS = 60  # tokens of a usual answer without thoughts
STAND_IN = (
    "a description about as long as those that language models write of what a feature is for"
)


class NoAnswer(OSError):
    """A prompt got no answer: all retries failed, or the server refuses this prompt."""


@dataclass(frozen=True)
class Answer:
    text: str
    whole: bool  # False: the answer was cut at its limit of tokens
    tokens_in: int  # 0 if the server gives no count
    tokens_out: int


class Client(ABC):
    """A language model, local or remote."""

    model: str
    temperature: float | None  # None: the server's default

    @abstractmethod
    async def complete(self, messages: Messages, max_tokens: int) -> Answer:
        """The model's answer. Raises NoAnswer if there is none, ValueError if no prompt can get one."""

    def remark(self) -> str:
        """A note for the user on changes to the requests, or ""."""
        return ""

    async def close(self) -> None:
        """Releases connections and memory."""
        return


@dataclass
class Tally:
    """Counts of a run's prompts, answers and tokens."""

    prompts: int = 0
    cached: int = 0  # answered from the cache
    failed: int = 0  # refused, or without an answer after all retries
    cut: int = 0  # answers cut at the limit of tokens
    malformed: int = 0  # answers in another form than asked for, left out of scores
    tokens_in: int = 0
    tokens_out: int = 0

    def cost(self, price_in: float, price_out: float) -> float:
        """The cost in the unit of the prices, which are per million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6

    def add(self, other: Tally, times: float = 1.0) -> None:
        """Adds another tally, multiplied by `times`."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + round(times * value))

    def __str__(self) -> str:
        return (
            f"{self.prompts:,} prompts: {self.cached:,} answered from the cache, {self.failed:,} "
            f"failed; {self.malformed:,} answers malformed, {self.cut:,} cut at their limit of tokens"
        )


class Asker(ABC):
    """Sends prompts to a client, unless their answers are in the cache.

    Args:
        max_tokens: limit of a description, thoughts included.
        score_tokens: limit of an answer to a scorer; None: `max_tokens`, or more for many numbers.
    """

    def __init__(self, client: Client, cache: Cache, max_tokens: int, score_tokens: int | None):
        self.client, self.cache, self.tally = client, cache, Tally()
        self.max_tokens, self.score_tokens = max_tokens, score_tokens

    async def describe(self, messages: Messages, number: int = 0) -> Answer | None:
        """An answer, or None if none came; `number` distinguishes several answers to one prompt."""
        return await self._ask(messages, self.max_tokens, DESCRIPTION_TOKENS, number)

    async def score(self, messages: Messages, n: int) -> Answer | None:
        """The answer to a prompt that asks for a list of `n` numbers, or None if none came."""
        limit = self.score_tokens or max(8 * n + 16, self.max_tokens)
        return await self._ask(messages, limit, 3 * n)

    async def _ask(
        self, messages: Messages, limit: int, usual: int, number: int = 0
    ) -> Answer | None:
        self.tally.prompts += 1
        key = prompt_hash([self.client.model, self.client.temperature, messages, limit, number])
        if (cached := self.cache.get(key)) is not None:
            self.tally.cached += 1
            answer = Answer(**cached)
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
    """Sends prompts that are not in the cache, and caches each answer as it comes.

    Args:
        concurrency: prompts sent at a time.
        patience: consecutive prompts without an answer that end the run.

    Raises:
        NoAnswer: `patience` prompts in a row had no answer; from `describe` and `score`.
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
        self._sent = self._judged = 0  # numbers of prompts, in the order in which they were sent
        self._failed: dict[int, bool] = {}  # results of prompts not judged yet
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
        """Raises NoAnswer when `patience` prompts in a row have failed, in the order they were sent.

        In the order of replies a few refusals, which come at once, would precede all answers.
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
    """Counts the prompts that would be sent, and sends nothing."""

    async def _fresh(self, key: str, messages: Messages, limit: int, usual: int) -> Answer:
        characters = sum(len(message["content"]) for message in messages)
        text = f"DESCRIPTION: {STAND_IN} {self.tally.prompts}"  # no two are the same
        return Answer(text, True, round(characters / CHARACTERS_PER_TOKEN), min(usual, limit))


def prompt_hash(prompt: Any) -> str:
    return hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:32]

"""Language models that answer prompts: each answer is paid for once, however often it is asked for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from dictlearn.explain.prompt import Messages

CACHE = "explain_cache.jsonl"
CHARACTERS_PER_TOKEN = 3.5  # where a tokenizer is not at hand


class NoAnswer(OSError):
    """A prompt that got no answer, after every retry."""


@dataclass(frozen=True)
class Answer:
    text: str
    whole: bool  # False: it was cut at its limit of tokens
    tokens_in: int
    tokens_out: int


class Client(ABC):
    """A language model somewhere."""

    model: str
    temperature: float

    @abstractmethod
    async def complete(self, messages: Messages, max_tokens: int) -> Answer:
        """Raises NoAnswer where there is none, ValueError where asking again is of no use."""

    async def close(self) -> None:
        """Gives back what it holds."""
        return


@dataclass
class Tally:
    """What a run asked for and what it cost."""

    prompts: int = 0
    cached: int = 0  # answered from the disk
    failed: int = 0  # no answer after every retry
    cut: int = 0  # at the limit of tokens
    malformed: int = 0  # answers in another form than asked for: left out of scores
    tokens_in: int = 0
    tokens_out: int = 0

    def cost(self, price_in: float, price_out: float) -> float:
        """In the unit of the prices, which are per million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


@final
class Asker:
    """Asks a client, through a cache on the disk: one JSON line an answer, synced as it comes.

    Args:
        folder: where the cache is; None keeps none.
        patience: prompts in a row without an answer before the run stops.
    """

    def __init__(self, client: Client, folder: Path | None, concurrency: int, patience: int = 5):
        self.client, self.tally, self.patience = client, Tally(), patience
        self._slots = asyncio.Semaphore(concurrency)
        self._path = None if folder is None else folder / CACHE
        self._known = {} if self._path is None else _read(self._path)
        self._failed_in_a_row = 0

    async def ask(self, messages: Messages, max_tokens: int, number: int = 0) -> Answer | None:
        """None where no answer came. `number` tells apart several answers to one prompt."""
        self.tally.prompts += 1
        key = self._key(messages, max_tokens, number)
        if key in self._known:
            self.tally.cached += 1
            return self._known[key]
        async with self._slots:
            try:
                answer = await self.client.complete(messages, max_tokens)
            except NoAnswer:
                self.tally.failed += 1
                self._failed_in_a_row += 1
                if self._failed_in_a_row >= self.patience:
                    raise
                return None
        self._failed_in_a_row = 0
        self.tally.tokens_in += answer.tokens_in
        self.tally.tokens_out += answer.tokens_out
        self.tally.cut += not answer.whole
        self._known[key] = answer
        if self._path is not None:
            _append(self._path, {"key": key, **asdict(answer)})
        return answer

    def _key(self, messages: Messages, max_tokens: int, number: int) -> str:
        asked = [self.client.model, self.client.temperature, messages, max_tokens, number]
        return prompt_hash(asked)


@final
@dataclass
class Estimating(Client):
    """Answers nothing and costs nothing: counts what would be asked."""

    model: str = "estimate"
    temperature: float = 0.0
    answer_tokens: int = 60
    seen: list[int] = field(default_factory=list)

    async def complete(self, messages: Messages, max_tokens: int) -> Answer:
        characters = sum(len(message["content"]) for message in messages)
        out = min(self.answer_tokens, max_tokens)
        return Answer("", True, round(characters / CHARACTERS_PER_TOKEN), out)


def prompt_hash(asked: Any) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, Answer]:
    """The answers on the disk; a line that a kill left half written is passed over."""
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        key = entry.pop("key")
        found[key] = Answer(**entry)
    return found


def _append(path: Path, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and not _ends_whole(path):
            file.write(b"\n")  # half a line of a killed process ends here
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

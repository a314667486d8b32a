"""explainer=openai: any server that speaks the OpenAI protocol (POST <base_url>/chat/completions)."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import httpx

from dictlearn.explain.client import Answer, Client, NoAnswer
from dictlearn.explain.prompt import Messages, Prompt, without_system
from dictlearn.explain.response import TooLong, answer_in, complaint, read_body, seconds_named
from dictlearn.explain.scorers import Scorer
from dictlearn.explain.written import Written
from dictlearn.ranges import Count, Natural, NonNegative, Positive

LONGEST_WAIT = 60.0  # seconds between two tries, unless the server names a time
REFUSES_PROMPT = (400, 403, 413, 422, 451)  # statuses with which servers refuse one prompt
SECRET = 8  # characters; shorter keys are dummies, such as EMPTY


def openai_explainer(
    prompt: Prompt,
    scorers: Mapping[str, Scorer],
    base_url: str,
    model: str,
    key_env: str = "OPENAI_API_KEY",
    concurrency: Count = 8,
    requests_per_minute: Positive | None = None,
    retries: Natural = 6,
    timeout: Positive = 120.0,
    temperature: NonNegative | None = 0.7,
    max_tokens: Count = 200,
    score_tokens: Count | None = None,
    best_of: Count = 1,
    price_in: NonNegative = 0.0,
    price_out: NonNegative = 0.0,
) -> Written:
    """The arguments are explained in conf/explainer/openai.yaml."""
    client = OpenAI(base_url, model, key_env, requests_per_minute, retries, timeout, temperature)
    asked = concurrency, max_tokens, score_tokens, best_of, price_in, price_out
    return Written("openai", client, prompt, scorers, *asked)


@dataclass(frozen=True)
class _Form:
    """The form of a request, in which servers of this protocol differ."""

    temperature: float | None
    limit: str = "max_tokens"
    system: bool = True

    def body(self, model: str, messages: Messages, max_tokens: int) -> dict[str, Any]:
        sent = messages if self.system else without_system(messages)
        body = {"model": model, "messages": sent, self.limit: max_tokens}
        return body if self.temperature is None else body | {"temperature": self.temperature}

    def corrected(self, refusal: str) -> _Form:
        """The form without the parameter that a refusal names; the same if it names none."""
        refusal = refusal.lower()
        if self.limit == "max_tokens" and "max_completion_tokens" in refusal:
            return replace(self, limit="max_completion_tokens")
        if self.temperature is not None and "temperature" in refusal:
            return replace(self, temperature=None)
        if self.system and re.search(r"system\b.{0,40}\brole|roles must alternate", refusal):
            return replace(self, system=False)
        return self


@dataclass(frozen=True)
class _Reply:
    status: int
    body: bytes
    wait: float | None  # seconds that the server asks for

    @property
    def passing(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status in (200, 408, 429) or self.status >= 500


@final
class OpenAI(Client):
    """One model of one server.

    It retries on 408, 429, any 5xx, a failed connection, an answer that isn't whole within `timeout`
    seconds, and one that can't be read. Waits double, or follow Retry-After, up to `timeout`. A
    request whose form is refused is sent again once in each corrected form.

    Raises:
        ValueError: no header can hold the key.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_env: str = "OPENAI_API_KEY",
        requests_per_minute: float | None = None,
        retries: int = 6,
        timeout: float = 120.0,
        temperature: float | None = 0.7,
        first_wait: float = 1.0,
    ):
        self.url = _url(base_url)
        self.model, self.temperature = model, temperature
        self.retries, self.first_wait = retries, first_wait
        self._form = _Form(temperature)
        self._shown = str(self.url.copy_with(username=None, password=None, query=None))
        self._key_env, self._key, self._timeout = key_env, _key(key_env), timeout
        self._spacing = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._http: httpx.AsyncClient | None = None

    async def complete(self, messages: Messages, max_tokens: int) -> Answer:
        reason = ""
        for number in range(self.retries + 1):
            wait = min(self.first_wait * 2 ** min(number, 30), LONGEST_WAIT)
            wait *= random.uniform(0.75, 1.25)
            try:
                reply = await self._sent(messages, max_tokens)
            except TimeoutError:
                reason = f"no whole answer within explainer.timeout={self._timeout:g} seconds"
            except TooLong as error:
                reason = str(error)
            except httpx.RequestError as error:  # some have only their name
                reason = f"{type(error).__name__} {error}".strip()
            else:
                answer = answer_in(reply.body) if reply.status == 200 else None
                if answer is not None:
                    return replace(answer, text=self._hidden(answer.text))
                reason = f"status {reply.status}: {self._complaint(reply)[:200]}"
                if reply.status in REFUSES_PROMPT:
                    raise NoAnswer(f"{self._shown} refused the prompt, {reason}")
                if not reply.passing:
                    raise ValueError(self._refusal(reply.status, reason))
                wait = wait if reply.wait is None else reply.wait
            if number < self.retries:
                await asyncio.sleep(min(wait, self._timeout))
        raise NoAnswer(
            f"{self._shown}: no answer in {self.retries + 1} tries; the last: {self._hidden(reason)}"
        )

    def remark(self) -> str:
        changes = []
        if self._form.temperature != self.temperature:
            changes.append("explainer.temperature was left out")
        if not self._form.system:
            changes.append("the system's text went in front of the user's")
        return (
            f"the server refuses requests as they were put: {' and '.join(changes)}"
            if changes
            else ""
        )

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _sent(self, messages: Messages, max_tokens: int) -> _Reply:
        """The reply to the request, in a form that this server takes; that form is kept."""
        form = self._form
        reply = await self._posted(form.body(self.model, messages, max_tokens))
        refused = reply
        while refused.status in (400, 422):
            corrected = form.corrected(self._complaint(refused))
            if corrected == form:
                return reply
            form = corrected
            refused = await self._posted(form.body(self.model, messages, max_tokens))
        if refused.status == 200:
            self._form = form
        return refused

    async def _posted(self, body: dict[str, Any]) -> _Reply:
        await self._turn()
        async with (
            asyncio.timeout(self._timeout),
            self._client().stream("POST", self.url, json=body) as response,
        ):
            content = await read_body(response)
        return _Reply(response.status_code, content, seconds_named(response))

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            headers = {"Accept-Encoding": "identity"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            limits = httpx.Limits(max_connections=None)
            try:
                self._http = httpx.AsyncClient(
                    timeout=self._timeout, headers=headers, limits=limits
                )
            except (ImportError, ValueError) as error:  # an unsupported kind of proxy
                raise ValueError(
                    f"explainer: the environment's proxy can't be used ({error})"
                ) from error
        return self._http

    async def _turn(self) -> None:
        """Waits until the rate allows one more request."""
        now = time.monotonic()
        self._next = max(self._next + self._spacing, now)
        await asyncio.sleep(self._next - now)

    def _complaint(self, reply: _Reply) -> str:
        return self._hidden(complaint(reply.body))

    def _hidden(self, text: str) -> str:
        """The text with the key replaced, which a server may echo."""
        return text.replace(self._key, "[key]") if len(self._key) >= SECRET else text

    def _refusal(self, status: int, reason: str) -> str:
        hint = ""
        if status == 401:
            holds = "holds no key" if not self._key else "holds a key that it doesn't take"
            hint = f"; the environment variable explainer.key_env={self._key_env} {holds}"
        return f"explainer: {self._shown} refused the request, {reason}{hint}"


def _url(base_url: str) -> httpx.URL:
    message = f"explainer.base_url={base_url}: want http://... or https://..."
    try:
        url = httpx.URL(base_url.rstrip("/") + "/chat/completions")
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"{message} ({error})") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(message)
    return url


def _key(name: str) -> str:
    """The server's key from the environment, stripped of white space."""
    key = os.environ.get(name, "").strip()
    if not all(" " <= letter <= "~" for letter in key):
        raise ValueError(
            f"explainer.key_env={name}: the key in this environment variable has a character that no "
            "header can hold; want letters, digits and signs of ASCII on one line"
        )
    return key

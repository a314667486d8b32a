"""explainer=openai: any server that speaks the OpenAI protocol (POST <base_url>/chat/completions)."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping
from typing import Any, final

import httpx

from dictlearn.explain.client import Answer, Client, NoAnswer
from dictlearn.explain.prompt import Messages, Prompt
from dictlearn.explain.scorers import Scorer
from dictlearn.explain.written import Written

LONGEST_WAIT = 60.0  # seconds between two tries, unless the server names a time


def openai_explainer(
    prompt: Prompt,
    scorers: Mapping[str, Scorer],
    base_url: str,
    model: str,
    key_env: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    requests_per_minute: float | None = None,
    retries: int = 6,
    timeout: float = 120.0,
    temperature: float = 0.7,
    max_tokens: int = 200,
    best_of: int = 1,
    price_in: float = 0.0,
    price_out: float = 0.0,
) -> Written:
    """See conf/explainer/openai.yaml for what they are."""
    client = OpenAI(base_url, model, key_env, requests_per_minute, retries, timeout, temperature)
    return Written(
        "openai", client, prompt, scorers, concurrency, max_tokens, best_of, price_in, price_out
    )


@final
class OpenAI(Client):
    """One model of one server.

    Tries again, with longer and longer waits or after the time that Retry-After names, on 408, 429,
    any 5xx, a connection that fails or times out, and a body that is cut off.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_env: str = "OPENAI_API_KEY",
        requests_per_minute: float | None = None,
        retries: int = 6,
        timeout: float = 120.0,
        temperature: float = 0.7,
        first_wait: float = 1.0,
    ):
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"explainer.base_url={base_url}: want http://... or https://...")
        if retries < 0 or timeout <= 0 or (requests_per_minute or 1) <= 0:
            raise ValueError(
                f"explainer: retries={retries}, timeout={timeout}, requests_per_minute="
                f"{requests_per_minute}; want at least 0 retries and positive numbers"
            )
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model, self.temperature = model, temperature
        self.retries, self.first_wait = retries, first_wait
        self.tries = 0  # requests sent
        self._key_env, self._timeout = key_env, timeout
        self._spacing = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._http: httpx.AsyncClient | None = None

    async def complete(self, messages: Messages, max_tokens: int) -> Answer:
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": self.temperature,
        }
        reason = ""
        for number in range(self.retries + 1):
            await self._turn()
            wait = min(self.first_wait * 2**number, LONGEST_WAIT) * random.uniform(0.75, 1.25)
            try:
                response = await self._client().post(self.url, json=body)
                self.tries += 1
            except httpx.TransportError as error:
                reason = f"{type(error).__name__} {error}".strip()
                if isinstance(error, httpx.UnsupportedProtocol):
                    raise ValueError(f"explainer.base_url: {error}") from error
            else:
                if response.status_code == 200 and (answer := _answer(response)) is not None:
                    return answer
                reason = f"status {response.status_code}: {response.text[:200]}"
                if not _passing(response.status_code):
                    raise ValueError(f"explainer: {self.url} refused the request, {reason}")
                wait = _retry_after(response) or wait
            if number < self.retries:
                await asyncio.sleep(wait)
        raise NoAnswer(f"{self.url}: no answer in {self.retries + 1} tries; the last: {reason}")

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            key = os.environ.get(self._key_env)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            limits = httpx.Limits(max_connections=None)
            self._http = httpx.AsyncClient(timeout=self._timeout, headers=headers, limits=limits)
        return self._http

    async def _turn(self) -> None:
        """Waits until the rate allows one more request."""
        now = time.monotonic()
        self._next = max(self._next + self._spacing, now)
        await asyncio.sleep(self._next - now)


def _passing(status: int) -> bool:
    """Whether the same request may be answered later."""
    return status in (200, 408, 429) or status >= 500


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(float(response.headers["Retry-After"]), 0.0)
    except (KeyError, ValueError):  # the header may also be a date
        return None


def _answer(response: httpx.Response) -> Answer | None:
    """None where the body is not what the protocol says."""
    try:
        body: Any = response.json()
        choice, usage = body["choices"][0], body.get("usage") or {}
        text = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if text is not None and not isinstance(text, str):
        return None
    return Answer(
        text or "",
        choice.get("finish_reason") != "length",
        int(usage.get("prompt_tokens", 0)),
        int(usage.get("completion_tokens", 0)),
    )

"""Reads a server's answers, which may be too long, malformed or hostile."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import httpx

from dictlearn.explain.client import Answer, NoAnswer
from dictlearn.store.text import without_surrogates

MOST_BYTES = 4 * 2**20  # of an unpacked answer: many times the longest that a model writes
MOST_TOKENS = 10**9  # larger counts of a server are taken for 0


class TooLong(ValueError):
    """An answer of more than MOST_BYTES."""


async def read_body(response: httpx.Response) -> bytes:
    """The unpacked body. Memory stays within the limit, whatever the server sends.

    Raises:
        TooLong: the body has more than MOST_BYTES, packed or unpacked.
        httpx.DecodingError: the body can't be unpacked.
    """
    packing = response.headers.get("Content-Encoding", "identity").strip().lower()
    packed = bytearray()
    async for part in response.aiter_raw():
        packed += part
        if len(packed) > MOST_BYTES:
            raise TooLong(f"an answer of more than {MOST_BYTES:,} bytes")
    if packing in ("identity", ""):
        return bytes(packed)
    if packing not in ("gzip", "x-gzip", "deflate"):
        raise httpx.DecodingError(f"an answer packed as {packing[:40]}, which nobody asked for")
    try:
        body = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(packed, MOST_BYTES + 1)
    except zlib.error as error:
        raise httpx.DecodingError(f"an answer that can't be unpacked ({error})") from error
    if len(body) > MOST_BYTES:
        raise TooLong(f"an answer of more than {MOST_BYTES:,} bytes when unpacked")
    return body


def answer_in(body: bytes) -> Answer | None:
    """The answer in a body; None if the body doesn't follow the protocol.

    Raises:
        NoAnswer: the server's content filter stopped the answer.
    """
    try:
        reply: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    match reply:
        case {"choices": [{"message": {**message}} as choice, *_]}:
            text, reason = _text(message.get("content")), choice.get("finish_reason")
        case _:
            return None
    if reason == "content_filter":
        raise NoAnswer("the server's content filter stopped the answer")
    if text is None:
        return None
    usage = reply.get("usage")
    return Answer(
        without_surrogates(text),
        reason != "length",
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
    )


def complaint(body: bytes) -> str:
    """A server's error message, as one short line without control characters."""
    text = body.decode("utf-8", "replace")
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        reply = None
    match reply:
        case (
            {"error": {"message": str(message)}}
            | {"message": str(message)}
            | {"error": str(message)}
            | {"detail": str(message)}
        ):
            text = message
    shown = "".join(letter if letter.isprintable() else " " for letter in text[:2000])
    return " ".join(shown.split())


def seconds_named(response: httpx.Response) -> float | None:
    """The seconds in Retry-After, at least 0 and maybe infinite; None without a number."""
    try:
        seconds = float(response.headers["Retry-After"])
    except (KeyError, ValueError):  # the header may also be a date
        return None
    return None if math.isnan(seconds) else max(seconds, 0.0)


def _text(content: Any) -> str | None:
    """A message's text, which may come in parts; thoughts are parts of another type."""
    match content:
        case str(text):
            return text
        case None:  # the model only thought
            return ""
        case [*parts]:
            texts = [part.get("text") for part in parts if _is_text(part)]
            return "".join(text for text in texts if isinstance(text, str))
    return None


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text"


def _count(usage: Any, name: str) -> int:
    """A count of tokens; 0 if the server gives none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return int(value) if 0 <= value <= MOST_TOKENS else 0

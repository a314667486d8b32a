"""Against a real server on loopback: retries, limits, and answers paid for once."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from dictlearn.explain.client import CACHE, Asker, NoAnswer
from dictlearn.explain.openai import OpenAI
from tests.explain.server import Server, serving

MESSAGES = [{"role": "user", "content": "say"}]


def client(server: Server, **options) -> OpenAI:
    settings = {"retries": 3, "timeout": 5.0, "first_wait": 0.01, "temperature": 0.5, **options}
    return OpenAI(server.url, "some-model", **settings)


def ask(one: OpenAI, folder=None, prompts=("say",), concurrency=4, patience=5):
    async def run():
        asker = Asker(one, folder, concurrency, patience)
        asked = [asker.ask([{"role": "user", "content": p}], 50) for p in prompts]
        try:
            return await asyncio.gather(*asked), asker.tally
        finally:
            await one.close()

    return asyncio.run(run())


def echo(body) -> str:
    return body["messages"][-1]["content"].upper()


@pytest.mark.parametrize("fault", ["429", "500", "503", "408", "slow", "truncated", "not json"])
def test_what_passes_is_tried_again(fault):
    with serving(echo, [fault, fault]) as server:
        (answer,), tally = ask(client(server, timeout=0.4 if fault == "slow" else 5.0))
    assert answer is not None and answer.text == "SAY" and answer.whole
    assert len(server.bodies) == 3 and tally.failed == 0
    assert (tally.tokens_in, tally.tokens_out) == (10, 3)


def test_the_server_says_how_long_to_wait():
    with serving(echo, ["429"]) as server:
        started = time.monotonic()
        ask(client(server, first_wait=30.0))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("status", ["400", "401", "404"])
def test_what_stays_wrong_is_refused_at_once(status):
    with serving(echo, [status] * 9) as server, pytest.raises(ValueError, match=f"status {status}"):
        ask(client(server))
    assert len(server.bodies) == 1


def test_no_answer_after_every_retry_is_counted_and_then_enough():
    with serving(echo, ["500"] * 100) as server:
        (answer,), tally = ask(client(server, retries=2))
        assert answer is None and tally.failed == 1 and len(server.bodies) == 3
        with pytest.raises(NoAnswer, match="no answer in 3 tries; the last: status 500"):
            ask(client(server, retries=2), prompts="abc", patience=2, concurrency=1)


def test_an_answer_cut_at_its_limit_is_counted():
    with serving(echo, ["cut"]) as server:
        (answer,), tally = ask(client(server))
    assert answer is not None and not answer.whole and tally.cut == 1


def test_nothing_is_paid_for_twice(tmp_path):
    with serving(echo) as server:
        first, _ = ask(client(server), tmp_path, "ab")
        path = tmp_path / CACHE
        path.write_bytes(path.read_bytes() + b'{"key": "half of a li')  # killed here
        again, tally = ask(client(server), tmp_path, "abc")
        assert [a and a.text for a in again] == ["A", "B", "C"] and again[:2] == first
        assert tally.cached == 2 and len(server.bodies) == 3
        _, tally = ask(client(server), tmp_path, "abc")
        assert tally.cached == 3 and tally.tokens_in == 0 and len(server.bodies) == 3
        ask(client(server, temperature=0.0), tmp_path, "a")  # another question
        assert len(server.bodies) == 4
    assert len(path.read_bytes().strip().split(b"\n")) == 5


def test_concurrency_is_limited():
    with serving(echo) as server:
        server.delay = 0.05
        ask(client(server), prompts="abcdefgh", concurrency=2)
    assert server.most_at_once == 2


def test_a_rate_limit_spaces_requests():
    with serving(echo) as server:
        started = time.monotonic()
        ask(client(server, requests_per_minute=600), prompts="abcd")
    assert time.monotonic() - started >= 0.3


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret")
    with serving(echo) as server:
        ask(client(server, key_env="MY_KEY"), tmp_path)
    assert server.keys == ["Bearer s3cret"]
    assert "s3cret" not in (tmp_path / CACHE).read_text()
    body = server.bodies[0]
    assert body["model"] == "some-model" and body["max_tokens"] == 50
    assert json.loads((tmp_path / CACHE).read_text())["text"] == "SAY"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url=localhost:8000: want http://"),
        ({"retries": -1}, "retries=-1"),
        ({"requests_per_minute": -2.0}, "requests_per_minute=-2.0"),
    ],
)
def test_senseless_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OpenAI(**{"base_url": "http://x/v1", "model": "m", **options})

"""Against a real server on loopback: retries, limits, and answers paid for once."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib

import pytest

from dictlearn.explain.cache import FILE, Cache
from dictlearn.explain.client import NoAnswer, Sender
from dictlearn.explain.openai import OpenAI
from dictlearn.explain.response import MOST_BYTES
from tests.explain.server import Reply, Server, completion, serving


def client(server: Server, **options) -> OpenAI:
    settings = {"retries": 3, "timeout": 5.0, "first_wait": 0.01, "temperature": 0.5, **options}
    return OpenAI(server.url, "some-model", **settings)


def ask(one: OpenAI, folder=None, prompts=("say",), concurrency=4, patience=5, system=""):
    """The answers to some prompts, and the tally."""

    async def run():
        asker = Sender(one, Cache(folder), 50, None, concurrency, patience)
        before = [{"role": "system", "content": system}] if system else []
        asked = [asker.describe([*before, {"role": "user", "content": p}]) for p in prompts]
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


@pytest.mark.parametrize("named", ["0.05", "1000000000", "inf", "nan", "-1", "tomorrow"])
def test_a_server_names_its_wait_within_limits(named, monkeypatch):
    """What it names is waited for, up to `timeout`; what is no number is passed over."""
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with serving(echo, [Reply(b"busy", 429, {"Retry-After": named})]) as server:
        (answer,), _ = ask(client(server, first_wait=1.5))
    (wait,) = [seconds for seconds in waited if seconds > 0] or [0]
    assert answer is not None
    expected = {"0.05": (0.05, 0.05), "-1": (0, 0), "nan": (1, 2), "tomorrow": (1, 2)}
    low, high = expected.get(named, (5, 5))
    assert low <= wait <= high


@pytest.mark.parametrize("status", ["401", "404"])
def test_what_stays_wrong_is_refused_at_once(status):
    with serving(echo, [status] * 9) as server, pytest.raises(ValueError, match=f"status {status}"):
        ask(client(server))
    assert len(server.bodies) == 1


def test_one_refused_prompt_is_counted_and_the_others_are_answered():
    """A content filter, as a status or in an answer's end; five such in a row are enough."""

    def answer(body):
        asked = body["messages"][-1]["content"]
        if asked == "bad":
            said = {"error": {"message": "filtered: temperature too hot", "code": "content_filter"}}
            return Reply(json.dumps(said).encode(), 400)
        return Reply(completion("", finish="content_filter")) if asked == "worse" else echo(body)

    with serving(answer) as server:
        found, tally = ask(client(server), prompts=("bad", "a", "worse", "b"))
        assert [one and one.text for one in found] == [None, "A", None, "B"]
        assert tally.failed == 2 and tally.prompts == 4
        # What was left out of the refused request helped nothing: it stays in the others.
        others = [one for one in server.bodies if one["messages"][-1]["content"] in "ab"]
        assert [one["temperature"] for one in others] == [0.5, 0.5]
        with pytest.raises(NoAnswer, match="5 prompts in a row.*5 failed.*filtered: temperature"):
            ask(client(server), prompts=["bad"] * 9, concurrency=1)


def test_refusals_that_overtake_answers_end_nothing():
    """In the order of sending there are never five in a row, as they come there are eight."""

    def answer(body):
        if echo(body) == "BAD":
            return Reply(b"filtered", 400)
        time.sleep(0.3)
        return echo(body)

    prompts = ["a", *["bad"] * 4, "b", *["bad"] * 4, "c"]
    with serving(answer) as server:
        found, tally = ask(client(server), prompts=prompts, concurrency=4)
    assert [one.text for one in found if one] == ["A", "B", "C"] and tally.failed == 8


def test_no_answer_after_every_retry_is_counted_and_then_enough():
    with serving(echo, ["500"] * 100) as server:
        (answer,), tally = ask(client(server, retries=2))
        assert answer is None and tally.failed == 1 and len(server.bodies) == 3
        with pytest.raises(NoAnswer, match="no answer in 3 tries; the last: status 500"):
            ask(client(server, retries=2), prompts="abc", patience=2, concurrency=1)


@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["a flood", "a trickle"])
def test_a_stream_without_an_end_ends(pause):
    piece = b" " * (2**16 if not pause else 1)
    with serving(echo, [Reply(piece, endless=True, pause=pause)]) as server:
        (answer,), _ = ask(client(server, timeout=0.5))
    assert answer is not None and answer.text == "SAY"
    assert server.sent < 4 * MOST_BYTES


@pytest.mark.parametrize(
    "bomb",
    [
        Reply(gzip.compress(bytes(2 * MOST_BYTES)), headers={"Content-Encoding": "gzip"}),
        Reply(zlib.compress(bytes(2 * MOST_BYTES)), headers={"Content-Encoding": "deflate"}),
        Reply(gzip.compress(gzip.compress(b"x")), headers={"Content-Encoding": "gzip, gzip"}),
        Reply(b"no gzip", headers={"Content-Encoding": "gzip"}),
        Reply(completion("A" * MOST_BYTES)),
        Reply(b'{"choices":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        Reply(b'{"choices": [{"message": "text"}]}'),
        Reply(b'{"choices": {"0": 1}}'),
        Reply(b"[[1]]"),
        Reply(completion({"text": "an object"})),
    ],
    ids=[
        "gzip",
        "deflate",
        "twice",
        "no gzip",
        "long",
        "deep",
        "text",
        "object",
        "list",
        "content",
    ],
)
def test_what_cant_be_read_is_tried_again(bomb):
    with serving(echo, [bomb]) as server:
        (answer,), tally = ask(client(server))
    assert answer is not None and answer.text == "SAY"
    assert len(server.bodies) == 2 and tally.failed == 0


def test_a_packed_answer_is_unpacked():
    packed = Reply(gzip.compress(completion("yes")), headers={"Content-Encoding": "gzip"})
    with serving(lambda body: packed) as server:
        (answer,), _ = ask(client(server))
    assert answer is not None and answer.text == "yes"


@pytest.mark.parametrize(
    "usage",
    [None, [1], "many", 5, {"prompt_tokens": None}, {"prompt_tokens": "1"}, {"prompt_tokens": -3}]
    + [{"prompt_tokens": float("inf")}, {"prompt_tokens": 10**30}, {"completion_tokens": True}],
    ids=str,
)
def test_usage_of_another_shape_is_no_tokens(usage):
    body = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": usage}).encode()
    with serving(lambda _: Reply(body)) as server:
        (answer,), tally = ask(client(server))
    assert answer is not None and answer.text == "x"
    assert (tally.tokens_in, tally.tokens_out, len(server.bodies)) == (0, 0, 1)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (completion("faces \ud83d and \ud83d\ude00"), "faces \N{REPLACEMENT CHARACTER} and 😀"),
        (completion(None, reasoning_content="hm"), ""),
        (completion("x", reasoning_content="hm"), "x"),
        (completion([{"type": "thinking", "text": "hm"}, {"type": "text", "text": "x"}]), "x"),
        (completion("<think>hm</think>x"), "x"),
    ],
    ids=["half a surrogate", "thoughts alone", "thoughts beside", "thoughts as a part", "in tags"],
)
def test_only_what_is_said_is_the_answer(reply, text, tmp_path):
    with serving(lambda _: Reply(reply)) as server:
        (answer,), _ = ask(client(server), tmp_path)
        (again,), tally = ask(client(server), tmp_path)
    assert answer is not None and answer.text == text and again == answer
    assert tally.cached == 1 and len(server.bodies) == 1


def test_the_request_is_put_as_the_server_wants_it():
    """Each lesson costs one request, is learned once, and is told."""

    def answer(body):
        for bad, said in (
            ("max_tokens" in body, "Unsupported parameter: use 'max_completion_tokens' instead."),
            ("temperature" in body, "'temperature' does not support 0.5 with this model."),
            (body["messages"][0]["role"] == "system", "System role not supported"),
        ):
            if bad:
                return Reply(json.dumps({"error": {"message": said}}).encode(), 400)
        return echo(body)

    with serving(answer) as server:
        one = client(server)
        found, tally = ask(one, prompts="ab", concurrency=1, system="be brief")
        assert [a and a.text for a in found] == ["BE BRIEF\n\nA", "BE BRIEF\n\nB"]
        assert len(server.bodies) == 5 and tally.failed == 0
        assert server.bodies[-1]["max_completion_tokens"] == 50
        assert "temperature was left out" in one.remark() and "system" in one.remark()
        ask(client(server, temperature=None))
        assert "temperature" not in server.bodies[-2]


def test_a_request_that_stays_refused_is_not_sent_for_ever():
    refusal = b"max_tokens, max_completion_tokens, temperature, system role"
    with serving(lambda _: Reply(refusal, 400)) as server:
        (answer,), tally = ask(client(server), system="s")
    assert answer is None and tally.failed == 1 and len(server.bodies) == 4


def test_an_answer_cut_at_its_limit_is_counted(tmp_path):
    with serving(echo, ["cut"]) as server:
        for _ in range(2):  # the second time from the cache
            (answer,), tally = ask(client(server), tmp_path)
            assert answer is not None and not answer.whole and tally.cut == 1


def test_nothing_is_paid_for_twice(tmp_path):
    with serving(echo) as server:
        first, _ = ask(client(server), tmp_path, "ab")
        path = tmp_path / FILE
        path.write_bytes(path.read_bytes() + b'[1]\n{"key": 3}\n{"key": "half of a li')  # killed
        again, tally = ask(client(server), tmp_path, "abc")
        assert [a and a.text for a in again] == ["A", "B", "C"] and again[:2] == first
        assert tally.cached == 2 and len(server.bodies) == 3
        _, tally = ask(client(server), tmp_path, "abc")
        assert tally.cached == 3 and tally.tokens_in == 0 and len(server.bodies) == 3
        ask(client(server, temperature=0.0), tmp_path, "a")  # another question
        assert len(server.bodies) == 4
    assert len(path.read_bytes().strip().split(b"\n")) == 7


def test_a_cache_that_cant_be_written_is_named(tmp_path):
    (tmp_path / FILE).mkdir()
    with serving(echo) as server, pytest.raises(OSError, match=FILE):
        ask(client(server), tmp_path)


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


KEY = "s3cret-and-long"


@pytest.mark.parametrize("around", ["", "\n", " \r\n\t"], ids=repr)
def test_the_key_comes_from_the_environment_and_goes_nowhere_else(tmp_path, monkeypatch, around):
    monkeypatch.setenv("MY_KEY", around + KEY + around)
    with serving(lambda _: f"you are {KEY}") as server:
        (answer,), _ = ask(client(server, key_env="MY_KEY"), tmp_path)
    assert server.keys == [f"Bearer {KEY}"]
    assert answer is not None and answer.text == "you are [key]"
    assert KEY not in (tmp_path / FILE).read_text()
    body = server.bodies[0]
    assert body["model"] == "some-model" and body["max_tokens"] == 50


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_a_key_that_a_server_echoes_is_not_shown(monkeypatch, status):
    monkeypatch.setenv("MY_KEY", KEY)
    said = json.dumps({"error": {"message": f"\x1b[31mno such key: Bearer {KEY}"}}).encode()
    with (
        serving(lambda _: Reply(said, status)) as server,
        pytest.raises((ValueError, OSError)) as error,
    ):
        url = server.url.replace("//", "//user:passw0rd@")
        one = OpenAI(url, "m", "MY_KEY", retries=1, first_wait=0.01)
        ask(one, patience=1)
    assert "no such key: Bearer [key]" in str(error.value) and "\x1b" not in str(error.value)
    assert KEY not in repr(error.value) and "passw0rd" not in str(error.value)
    assert status != 401 or "explainer.key_env=MY_KEY holds a key" in str(error.value)


@pytest.mark.parametrize("key", ["sk-“curly”", "two\nlines", "bell\x07", "é"], ids=repr)
def test_a_key_that_no_header_can_hold_is_refused_before_work(monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(
        ValueError, match="explainer.key_env=MY_KEY: .* no header can hold"
    ) as error:
        OpenAI("http://x/v1", "m", "MY_KEY")
    assert key not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url=localhost:8000: want http://"),
        ({"base_url": "http://"}, "base_url=http://: want http://"),
        ({"base_url": "http://[::1"}, "want http://"),
        ({"base_url": "http://host:port"}, "want http://"),
    ],
)
def test_senseless_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OpenAI(**{"base_url": "http://x/v1", "model": "m", **options})


def test_a_proxy_that_cant_be_used_is_one_sentence(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks9://127.0.0.1:1")
    with pytest.raises(ValueError, match="explainer: the environment's proxy"):
        ask(OpenAI("http://x/v1", "m"))

"""Signatures of provenance: own, or anybody's."""

from __future__ import annotations

import pytest

from dictlearn.ckpt import signature
from dictlearn.ckpt.signature import is_own, key_file, signed

SAID = {"model": "pico", "revision": None, "data": {"paths": ["a.txt"]}, "tokens": 5}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_what_this_user_signed_is_own():
    own = signed(SAID)
    assert is_own(own) and signed(own) == own
    assert is_own({**own, "tokens": 6}), "what nobody follows may change"
    assert key_file().stat().st_mode & 0o077 == 0, "nobody else reads the key"


@pytest.mark.parametrize("key", signature.FOLLOWED)
def test_whatever_is_followed_is_signed(key):
    assert not is_own({**signed(SAID), key: "another"})


@pytest.mark.parametrize("odd", [None, "", "0" * 64, 5, ["x"], "\u00e9" * 64])
def test_another_signature_is_a_strangers(odd):
    signed(SAID)
    assert not is_own({**SAID, signature.SIGNATURE: odd})


def test_another_users_signature_is_a_strangers(tmp_path, monkeypatch):
    theirs = signed(SAID)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert not is_own(theirs)
    assert not key_file().exists(), "looking makes no key"
    assert is_own(signed(SAID)) and not is_own(theirs)


def test_without_a_home_nothing_is_own(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert signed(SAID) == SAID and not is_own(signed(SAID))


def test_the_first_key_stays(monkeypatch):
    first = signed(SAID)
    monkeypatch.setattr(
        signature.Path, "exists", lambda _: False
    )  # as a process that starts beside it
    assert signed(SAID) == first
    assert [path.name for path in key_file().parent.iterdir()] == ["key"]

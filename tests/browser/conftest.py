"""Chromium, and one tab of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.devtools import Browser


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(running: Browser) -> Iterator[Browser]:
    """One tab for all, wide and light at first; after each test nothing may have been complained of."""
    running.errors.clear()
    running.look(1400, 900)
    yield running
    assert not running.errors

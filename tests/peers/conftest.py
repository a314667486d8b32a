"""The comparison's own code lives in scripts/, which no package holds. Tests that need the peers
installed are marked `peers`, and are not collected where they aren't: they would say nothing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "peers: needs pip install '.[peers]'")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if find_spec("sae_lens") and find_spec("sparsify"):
        return
    unwanted = [item for item in items if item.get_closest_marker("peers")]
    items[:] = [item for item in items if item not in unwanted]
    config.hook.pytest_deselected(items=unwanted)

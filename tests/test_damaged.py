"""Everything that is read, damaged at random: one sentence, or the right result; memory stays bounded.

`python scripts/damage.py` tries more of it.
"""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.damaged import KINDS, fingerprint, tried

EACH = 30  # damaged files of each kind: 500 and some in all
ROOM = 3 << 30  # bytes above what the process has: nothing here is larger than a megabyte


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.filterwarnings("ignore")  # libraries warn of what they are given here
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_one_sentence_or_makes_no_difference(name: str, tmp_path: Path):
    kind, rng = KINDS[name], random.Random(name)
    kind.make(tmp_path / "whole")
    expected = fingerprint(kind.read(tmp_path / "whole"))
    outcomes = [
        tried(kind, tmp_path / "whole", expected, tmp_path / "damaged", rng) for _ in range(EACH)
    ]
    wrong = [one for one in outcomes if one not in ("refused", "right", "changed")]
    assert not wrong, "\n".join(wrong)

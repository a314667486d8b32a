"""Verbs on a run with one damaged file: one sentence and status 2, or the right result.

`python scripts/damage_verbs.py` tries every verb, and many more files.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.damaged_verbs import (
    COMMANDS,
    FINE,
    MAKE,
    ROOM,
    Whole,
    called,
    damage_one,
    expected,
    fresh,
    judged,
    made,
    touching,
)

FILES = 10
QUICK = ("lookup", "label", "report", "export feature_files")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cross-layer transcoder of one run, its features and their descriptions."""
    folder = tmp_path_factory.mktemp("whole")
    made(folder, "", [MAKE[0], MAKE[2], MAKE[4]])
    yield folder


@pytest.mark.filterwarnings("ignore")  # libraries warn of what they are given here
def test_a_damaged_file_is_one_sentence_or_makes_no_difference(whole: Path, tmp_path: Path):
    place, known = tmp_path / "tree", dict[str, Whole]()
    wrong = []
    for number in range(FILES):
        rng = random.Random(number)
        damaged_tree = tmp_path / "damaged"
        fresh(whole, damaged_tree)
        what, file, believed = damage_one(damaged_tree, rng, QUICK)
        name = rng.choice([name for name in QUICK if name in touching(file)])
        if name not in known:
            known[name] = expected(name, whole, place, "")
        fresh(damaged_tree, place)
        call = called(COMMANDS[name], place, "")
        outcome = judged(call, known[name], str(file), believed)
        if outcome not in FINE or call.grown > ROOM:
            wrong.append(f"{number}: {what}: {name}: {outcome}, {call.grown >> 20} MiB more")
    assert not wrong, "\n".join(wrong)

"""A multirun's folders: named by what changed, never two runs in one, never outside their own."""

from __future__ import annotations

import re

import pytest

from dictlearn import multirun

SHARED = {"steps", "data"}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["steps=9", "dict.k=16", "optim.lr=0.0003"], "dict.k=16,optim.lr=0.0003"),
        (["optim.lr=0.0003", "dict.k=16"], "dict.k=16,optim.lr=0.0003"),  # whatever their order
        (["dict=sae", "data=text"], "dict=sae"),
        (["+callbacks.ema.decay=0.9"], "+callbacks.ema.decay=0.9"),
        (["steps=9"], "7"),
        ([], "7"),
    ],
)
def test_a_run_is_called_what_was_changed_in_it(overrides: list[str], name: str) -> None:
    assert multirun.folder(overrides, SHARED, 7) == name


NASTY = [
    "../../out",
    "/etc/passwd",
    "~",
    "a b",
    "[0.25,1.0]",
    "'x'",
    "ü\x1b[31m",
    "",
    ".",
    "k" * 400,
]


def test_every_name_is_one_safe_folder_and_no_two_are_the_same() -> None:
    names = {multirun.folder([f"model.path={value}"], SHARED, 0) for value in NASTY}
    names |= {multirun.folder([value], SHARED, 0) for value in ("../x", "..", ".hidden")}
    assert len(names) == len(NASTY) + 3
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_.,=+-]{1,128}", name) and name[0] not in ".-"

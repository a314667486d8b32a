"""Damages everything that is read, many times over: `python scripts/damage.py --each 500 --seed 1`.

Prints what came of each kind, and everything that was neither one sentence nor the right result. The
tests try a few of each (tests/test_damaged.py).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.damaged import KINDS, fingerprint, tried  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=200, help="damaged files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    wrong = 0
    for name, kind in KINDS.items():
        if given.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            whole, rng = Path(folder) / "whole", random.Random(f"{given.seed} {name}")
            kind.make(whole)
            expected = fingerprint(kind.read(whole))
            outcomes = Counter(
                tried(kind, whole, expected, Path(folder) / "damaged", rng)
                for _ in range(given.each)
            )
        fine = {key: outcomes.pop(key, 0) for key in ("refused", "right", "changed")}
        said = ", ".join(f"{count} {what}" for what, count in fine.items())
        print(f"{name}: {said}, {sum(outcomes.values())} wrong")
        for what, count in outcomes.most_common():
            print(f"    {count} x {what}")
        wrong += sum(outcomes.values())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

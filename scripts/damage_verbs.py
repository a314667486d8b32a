"""Calls verbs on a tree with a damaged file, many times: `python scripts/damage_verbs.py --files 300`.

Makes one small tree of everything that verbs read (a model, text, runs with checkpoints, features and
descriptions, stored targets, other tools' dictionaries, a graph, vectors), then, file after file, damages
one of it: bits flipped, cut short, another file's content, a value of another type or size, depth. In 40
of 100 cases the hashes in the manifests are written anew, as whoever means harm would. On copies of that
tree it calls some of the verbs that read the file, each in a process of its own.

Each call has to end in one sentence and exit status 2, or in the right result, within a bounded memory
and time. "Right" is what the same command prints and writes on the whole tree; what comes out different
each time (measured times) is not compared. A result that differs is in order where stderr says what was
left out, or where nothing could have told: in formats without a hash, and where the hashes were made to
fit. What is printed at the end says how many calls came to what, and everything that was neither. How it
is judged stands in tests/damaged_verbs.py, and the tests try a few files (tests/test_damaged_verbs.py).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402

from tests.damaged_verbs import (  # noqa: E402
    COMMANDS,
    FINE,
    ROOM,
    Call,
    Whole,
    answer,
    called,
    damage_one,
    expected,
    fresh,
    judged,
    made,
    touching,
)
from tests.explain.server import serving  # noqa: E402

MOST = (
    4 << 30
)  # bytes of addresses that a process gets beyond its own: what a wild size asks for fails
LONG = 180  # seconds for one call


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first: to try one again"
    )
    parser.add_argument("--calls", type=int, default=2, help="for each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="*", default=list(COMMANDS), help="commands, by their names"
    )
    parser.add_argument("--log", type=Path, help="a JSON line for each call")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, serving(answer) as server:
        place = Path(folder) / "damaged"
        whole = Path(folder) / "whole"
        whole.mkdir()
        made(whole, server.url)  # here, so that what is imported and compiled is so in each process
        known: dict[str, Whole] = {}
        outcomes: Counter[str] = Counter()
        wrong: list[str] = []
        largest = 0
        for number in range(given.first, given.first + given.files):
            rng = random.Random(f"{given.seed} {number}")
            what, damaged, commands = "", None, []
            with tempfile.TemporaryDirectory() as other:
                tree = Path(other) / "tree"
                fresh(whole, tree)
                what, damaged, believed = damage_one(tree, rng, given.only)
                commands = drawn(damaged, given.only, given.calls, rng)
                for name in commands:
                    if name not in known:
                        known[name] = apart(expected, name, whole, place, server.url)
                    fresh(tree, place)
                    call = apart(called, COMMANDS[name], place, server.url)
                    outcome = judged(call, known[name], str(damaged), believed)
                    if call.grown > ROOM:
                        outcome = f"took {call.grown >> 20} MiB"
                    largest = max(largest, call.grown)
                    outcomes[outcome if outcome in FINE else "wrong"] += 1
                    log(
                        given.log,
                        number=number,
                        what=what,
                        command=name,
                        outcome=outcome,
                        call=call,
                    )
                    if outcome not in FINE:
                        wrong.append(f"{number}: {what}: {name}: {outcome}")
                        print(wrong[-1], flush=True)
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"{given.files} files, {sum(outcomes.values())} calls: {said}")
    print(f"at most {largest / 2**20:.0f} MiB more memory in a call")
    return 1 if wrong else 0


def drawn(damaged: Path, names: list[str], n: int, rng: random.Random) -> list[str]:
    """`n` of the commands that read the file; now and then one that doesn't."""
    readers = [name for name in names if name in touching(damaged)]
    others = [name for name in names if name not in readers]
    some = rng.sample(readers, min(n, len(readers)))
    return some + rng.sample(others, min(rng.random() < 0.1, len(others)))


def apart(function: Any, *args: Any) -> Any:
    """`function(*args)` in a process of its own; a `Call` where that dies or takes too long."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=lambda: theirs.send(bounded(function, *args))
    )
    process.start()
    theirs.close()
    try:
        if not ours.poll(LONG if function is called else None):
            return Call("takes too long")
        return ours.recv()
    except EOFError:
        process.join()
        if function is not called:
            raise SystemExit(f"{function.__name__} failed") from None
        return Call(f"the process died: {process.exitcode}")
    finally:
        process.kill()
        process.join()


def bounded(function: Any, *args: Any) -> Any:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MOST
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return function(*args)


def log(path: Path | None, *, call: Call, **more: Any) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps({**more, "time": time.time(), **asdict(call)}) + "\n")


if __name__ == "__main__":
    sys.exit(main())

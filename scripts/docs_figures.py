"""Writes the figures of README.md and docs/ anew, from quick commands and from benchmarks/results/.

    python scripts/docs_figures.py
    python scripts/docs_figures.py --check                 # writes nothing; status 1 if a page differs
    python scripts/docs_figures.py --record name=demo      # first runs marked commands with these words

Marks say where figures come from, and what stands between a mark and its end is never typed:

    <!-- printed by: COMMAND --> ... <!-- /printed -->     by a command that this script runs each time
    <!-- printed from "WORDS" on by: COMMAND -->           the end of that
    <!-- printed once by: COMMAND; COMMAND -->             by the last one, when --record ran them
    <!-- table: NAME --> ... <!-- /table -->               a function of figures/tables.py makes it
    <!-- not on record: WHY --> ... <!-- /not -->          measured, but not kept: left as it is

Figures within sentences are those of figures/quoted.py. --record appends to printed.json.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from figures import printed, quoted, tables

ROOT = Path(__file__).resolve().parents[1]
PRINTED = re.compile(
    r'(<!-- printed (?P<once>once )?(?:from "(?P<start>[^"]+)" on )?by: (?P<commands>.*?) -->\n)'
    r".*?<!-- /printed -->",
    re.DOTALL,
)
TABLE = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?<!-- /table -->", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--record", metavar="WORDS", help="run commands that take minutes")
    options = parser.parse_args()
    if options.record:
        for commands in sorted(once()):
            if options.record in commands:
                print(f"recording {commands}", flush=True)
                printed.record(commands)
    changed = [page for page in pages() if renewed(page) != page.read_text(encoding="utf-8")]
    for page in changed:
        print(page.relative_to(ROOT), "differs" if options.check else "is written anew")
        if not options.check:
            page.write_text(renewed(page), encoding="utf-8")
    return 1 if options.check and changed else 0


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def once() -> set[str]:
    """The marked commands whose output is on record, or should be."""
    found = [m for page in pages() for m in PRINTED.finditer(page.read_text(encoding="utf-8"))]
    return {mark["commands"] for mark in found if mark["once"]}


def renewed(page: Path) -> str:
    """The page with every figure as it is on record or printed now.

    Raises:
        ValueError: of a mark whose figures are not there, or a sentence that the page does not hold.
    """

    def block(found: re.Match[str]) -> str:
        block = printed.recorded if found["once"] else printed.now
        return f"{found[1]}{block(found['commands'], found['start'])}\n<!-- /printed -->"

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}{tables.made(found['name'])}\n<!-- /table -->"

    text = TABLE.sub(table, PRINTED.sub(block, page.read_text(encoding="utf-8")))
    return quoted.renewed(text, page.relative_to(ROOT).as_posix())


if __name__ == "__main__":
    sys.exit(main())

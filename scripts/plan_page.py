"""Writes the figures of docs/plan.md anew: python scripts/plan_page.py

A block between `<!-- plan: OVERRIDES -->` and `<!-- /plan -->` is what `dictlearn plan OVERRIDES` prints,
one between `<!-- speed: OVERRIDES -->` and `<!-- /speed -->` its lines on devices alone. The machine is
a made-up one, so that every machine writes the same page; what a CPU takes for its selection depends on
its instructions, so no full plan for a CPU is shown.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from dictlearn import config
from dictlearn.verbs.machine import Machine
from dictlearn.verbs.plan import Plan, planned

PAGE = Path(__file__).parents[1] / "docs" / "plan.md"
LAPTOP = Machine(cores=8, memory=24e9, free=500e9, flops=4e11, bandwidth=4e10)
WIDTH = 104


def main() -> None:
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def renewed(page: str) -> str:
    """The page with every block as the command prints it now."""
    return re.sub(r"<!-- (plan|speed): (.*?) -->\n.*?<!-- /\1 -->", _block, page, flags=re.DOTALL)


def _block(found: re.Match[str]) -> str:
    kind, overrides = found[1], found[2]
    cfg = config.compose("plan", ["name=run", *overrides.split()])
    plan = planned(cfg, LAPTOP)
    lines = [f"$ dictlearn plan {overrides}", *_wrapped(plan.speeds())]
    lines += _wrapped([f"{name}: {sentence}" for name, sentence in plan.mistakes.items()])
    if kind == "plan":
        lines[1:1] = [*_facts(plan), ""]
    shown = "\n".join(f"    {line}".rstrip() for line in lines)
    return f"<!-- {kind}: {overrides} -->\n{shown}\n<!-- /{kind} -->"


def _facts(plan: Plan) -> list[str]:
    name_width = max(map(len, plan.facts))
    return [f"{name:<{name_width}}  {fact}" for name, fact in plan.facts.items()]


def _wrapped(lines: list[str]) -> list[str]:
    options = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": "  "}
    return [text for line in lines for text in textwrap.wrap(line, WIDTH, **options)]


if __name__ == "__main__":
    main()

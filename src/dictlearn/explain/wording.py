"""Writes rules as sentences, and tokens in their contexts."""

from __future__ import annotations

from collections.abc import Sequence

from dictlearn.explain.predicates import SLOTS, Predicates
from dictlearn.explain.rules import Literal, Rule, Term


def sentence(rule: Rule, predicates: Predicates) -> str:
    """The rule in words, with tokens in Markdown's code quotes; "" for no rule."""
    return "; or ".join(_term(term, predicates) for term in rule)


def _term(term: Term, predicates: Predicates) -> str:
    phrases: dict[str, list[str]] = {"head": [], "which": [], "where": []}
    for literal in sorted(term, key=lambda literal: literal.slot):
        phrases[SLOTS[literal.slot].role].append(_phrase(literal, predicates))
    head = " that is ".join(phrases["head"]) or "any token"
    token = " ".join([head, " and ".join(phrases["which"])]).strip()
    return ", ".join([token, *phrases["where"]])


def _phrase(literal: Literal, predicates: Predicates) -> str:
    slot = SLOTS[literal.slot]
    values = [predicates.values[i] for i in literal.ids]
    return slot.phrase.format(either([quoted(v) for v in values] if slot.quoted else values))


def either(names: Sequence[str]) -> str:
    """The names joined as in "a, b or c"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def quoted(text: str) -> str:
    """A token as Markdown's code; white space, which code quotes would hide, is put in words."""
    if text and not text.strip():
        return _white_space(text)
    shown = text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def _white_space(text: str) -> str:
    lines, rest = text.count("\n"), text.rpartition("\n")[2]
    parts = []
    if lines:
        parts.append("a line break" if lines == 1 else f"{lines} line breaks")
    if rest:
        name = "space" if rest.strip(" ") == "" else "white character"
        parts.append(f"a {name}" if len(rest) == 1 else f"{len(rest)} {name}s")
    return " and ".join(parts)


def in_context(pieces: Sequence[str], index: int, before: int = 16, after: int = 6) -> str:
    """The pieces around one of them, which is put between << and >>."""
    first = max(0, index - before)
    left, right = pieces[first:index], pieces[index + 1 : index + 1 + after]
    return "".join([*left, "<<", pieces[index], ">>", *right])

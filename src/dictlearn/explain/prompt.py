"""A prompt: what a yaml of conf/prompt holds, and how its fields are filled."""

from __future__ import annotations

from collections.abc import Iterable
from string import Template
from typing import final

Messages = list[dict[str, str]]  # {"role": "system" | "user", "content": ...}


@final
class Prompt:
    """Two templates in which $name stands for a field.

    Args:
        system: who answers, and in which form.
        user: the question.
    """

    def __init__(self, system: str, user: str):
        self.system, self.user = Template(system), Template(user)

    def check(self, fields: Iterable[str]) -> None:
        """Raises ValueError where a template has a field that nobody fills."""
        known = sorted(fields)
        for template in (self.system, self.user):
            if not template.is_valid():
                raise ValueError("prompt: a lone $ stands in it; want $$ for the sign itself")
            for name in template.get_identifiers():
                if name not in known:
                    raise ValueError(f"prompt: ${name} is no field of it; want {', '.join(known)}")

    def filled(self, **fields: str) -> Messages:
        return [
            {"role": "system", "content": self.system.substitute(fields).strip()},
            {"role": "user", "content": self.user.substitute(fields).strip()},
        ]


def without_system(messages: Messages) -> Messages:
    """The system's text in front of the user's, for models that know no system role."""
    first, *others = messages
    if first["role"] != "system" or not others:
        return messages
    text = f"{first['content']}\n\n{others[0]['content']}"
    return [{**others[0], "content": text}, *others[1:]]

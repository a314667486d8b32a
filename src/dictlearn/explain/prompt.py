"""Prompts: templates from conf/prompt with fields to fill."""

from __future__ import annotations

from collections.abc import Iterable
from string import Template
from typing import final

Messages = list[dict[str, str]]  # {"role": "system" | "user", "content": ...}


@final
class Prompt:
    """Two templates in which $name stands for a field.

    Args:
        system: the model's role, and the form of its answers.
        user: the question.
    """

    def __init__(self, system: str, user: str):
        self.system, self.user = Template(system), Template(user)

    def check(self, fields: Iterable[str]) -> None:
        """Raises ValueError if a template has a field other than `fields`."""
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
    """Puts the system's text before the user's, for models without a system role."""
    first, *others = messages
    if first["role"] != "system" or not others:
        return messages
    text = f"{first['content']}\n\n{others[0]['content']}"
    return [{**others[0], "content": text}, *others[1:]]

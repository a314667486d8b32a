"""Conversations: a row's messages in one form, whatever names a data set gives them.

A conversation travels as JSON, so that it is a document like any other: repeated ones are left out, and
its content decides on which side of the split it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from dictlearn.sources.columns import Row, value_at
from dictlearn.sources.left_out import MESSAGES, PARTS, LeftOut

Message = dict[str, Any]  # role and content, both text, and what else the template may read
ROLES = {"human": "user", "gpt": "assistant"}  # what some data sets call them


class Conversation(NamedTuple):
    messages: list[Message]
    tools: list[Any] | None  # JSON schemas of what the assistant may call


def as_text(conversation: Conversation) -> str:
    """The conversation as JSON; `from_text` reads it."""
    found: dict[str, Any] = {"messages": conversation.messages}
    if conversation.tools is not None:
        found["tools"] = conversation.tools
    return json.dumps(found, ensure_ascii=False, default=str)


def from_text(text: str) -> Conversation:
    found = json.loads(text)
    return Conversation(found["messages"], found.get("tools"))


@final
@dataclass(frozen=True)
class ChatColumn:
    """Makes a conversation of a row's messages, or of its prompt and response.

    A message has a role and a content, or `from` and `value` as ShareGPT has. A content is text, or a
    list of parts of which the text is joined; other parts are counted in `left_out`. Fields without a
    value are not there.

    Args:
        messages: the field of the messages, a list or JSON of one.
        prompt, response: the fields of what a user and the assistant said, instead of messages.
        tools: the field of the tools, which a row may lack; None reads none.
    """

    messages: str | None
    prompt: str | None
    response: str | None
    tools: str | None
    left_out: LeftOut
    lacking: str = MESSAGES

    @property
    def wants(self) -> str:
        if self.messages is None:
            return "text"
        return "messages, a list with a role and a content each"

    @property
    def fields(self) -> dict[str, str]:
        named = {
            "data.field": self.messages,
            "data.prompt": self.prompt,
            "data.response": self.response,
        }
        return {key: field for key, field in named.items() if field is not None}

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.fields.values(), *([self.tools] if self.tools is not None else []))

    def document(self, row: Row) -> str | None:
        messages = self._messages(row)
        if not messages:
            return None
        return as_text(Conversation(messages, None if self.tools is None else self._tools(row)))

    def _messages(self, row: Row) -> list[Message] | None:
        if self.messages is None:
            asked, said = value_at(row, self.prompt or ""), value_at(row, self.response or "")
            if not isinstance(asked, str) or not isinstance(said, str):
                return None
            return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        found = _parsed(value_at(row, self.messages))
        if not isinstance(found, list):
            return None
        messages = [self._message(message) for message in found]
        return None if None in messages else [m for m in messages if m is not None]

    def _message(self, found: object) -> Message | None:
        """The message in our form, None if it has no role or no content that can be read."""
        if not isinstance(found, Mapping):
            return None
        message = {str(key): value for key, value in _without_null(found).items()}
        role = message.pop("from", None) if "role" not in message else message["role"]
        content = message.pop("value", "") if "content" not in message else message["content"]
        if not isinstance(role, str):
            return None
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = self._joined(content)
        if not isinstance(content, str):
            return None
        return {**message, "role": ROLES.get(role, role), "content": content}

    def _joined(self, parts: Sequence[object]) -> str:
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
        joined = [text for text in texts if isinstance(text, str)]
        self.left_out[PARTS] += len(texts) - len(joined)
        return "".join(joined)

    def _tools(self, row: Row) -> list[Any] | None:
        tools = _parsed(value_at(row, self.tools or ""))
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            return None
        return _without_null(tools) or None


def _parsed(value: Any) -> Any:
    """What JSON says, if the value is text that could be some: columns of tables hold it so."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _without_null(value: Any) -> Any:
    """The same without fields that are null: a table gives all messages all fields of any."""
    if isinstance(value, Mapping):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_null(item) for item in value]
    return value

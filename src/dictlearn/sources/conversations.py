"""Convert the messages of a row to conversations, whatever names the data set uses.

A conversation is stored as JSON, so it is a document like any other: repeated ones are left out, and its
content decides its split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from dictlearn.sources.columns import Row, value_at
from dictlearn.sources.left_out import MESSAGES, PARTS, LeftOut

Message = dict[str, Any]  # role and content, both text, and other fields for the template
ROLES = {"human": "user", "gpt": "assistant"}  # other names of roles in some data sets


class Conversation(NamedTuple):
    messages: list[Message]
    tools: list[Any] | None  # JSON schemas of the tools that the assistant may call


def as_text(conversation: Conversation) -> str:
    """The conversation as JSON, which `from_text` reads."""
    content: dict[str, Any] = {"messages": conversation.messages}
    if conversation.tools is not None:
        content["tools"] = conversation.tools
    return json.dumps(content, ensure_ascii=False, default=str)


def from_text(text: str) -> Conversation:
    content = json.loads(text)
    return Conversation(content["messages"], content.get("tools"))


@final
@dataclass(frozen=True)
class ChatColumn:
    """Makes a conversation of a row's messages, or of its prompt and response.

    A message has a role and a content, or `from` and `value` as in ShareGPT. The content is text, or a
    list of parts, whose text is joined; other parts are counted in `left_out`. Null fields are ignored.

    Args:
        messages: the field of the messages, a list or a list in JSON.
        prompt, response: the fields of the user's and the assistant's text, instead of messages.
        tools: the optional field of the tools; None reads none.
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
            user, assistant = value_at(row, self.prompt or ""), value_at(row, self.response or "")
            if not isinstance(user, str) or not isinstance(assistant, str):
                return None
            return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        values = _parse_json(value_at(row, self.messages))
        if not isinstance(values, list):
            return None
        messages = [self._message(value) for value in values]
        return None if None in messages else [m for m in messages if m is not None]

    def _message(self, value: object) -> Message | None:
        """The message in our form, or None if it has no role or no readable content."""
        if not isinstance(value, Mapping):
            return None
        message = {str(key): item for key, item in _without_null(value).items()}
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
        tools = _parse_json(value_at(row, self.tools or ""))
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            return None
        return _without_null(tools) or None


def _parse_json(value: Any) -> Any:
    """The parsed value if it is a JSON list in a text, as in some tables; else the value itself."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _without_null(value: Any) -> Any:
    """The value without null fields: in a table, all messages have the fields of any."""
    if isinstance(value, Mapping):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_null(item) for item in value]
    return value

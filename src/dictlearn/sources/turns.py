"""Render a conversation with a chat template, and find the position of each turn in the text.

A template is a program that may put a turn anywhere, trim it, or leave out an earlier turn's thoughts
after the next question. So a turn can't be found by its text. Instead the conversation is rendered
again with a mark in place of the turn's content; the part in which the two texts differ is the turn.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import jinja2
from transformers import PreTrainedTokenizerBase

from dictlearn.sources.conversations import Conversation, Message

TURN_FIELDS = (
    "tool_calls",
    "reasoning_content",
    "reasoning",
    "thinking",
)  # fields of a turn's text beside content
MARKS = "\ue000\ue001\ue002\ue003"  # private-use characters, which templates don't change
REFUSALS = (
    *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    RecursionError,
)
NOW = "strftime_now"
# For templates that print today's date, this is a constant: the fallback of Llama's template.
SOME_DAY = (
    "{%- macro strftime_now(format) -%}{{ format"
    " | replace('%Y', '2024') | replace('%m', '07') | replace('%d', '26') | replace('%b', 'Jul')"
    " | replace('%B', 'July') | replace('%A', 'Friday') | replace('%a', 'Fri')"
    " | replace('%y', '24') | replace('%H', '12') | replace('%M', '00') | replace('%S', '00')"
    " }}{%- endmacro -%}"
)


class Refused(Exception):
    """The template refuses the conversation; the message is the template's."""


class NotApart(Exception):
    """The template mixes a turn with others, so the turn has no position in the text."""


class Span(NamedTuple):
    """Characters `start` to `stop` - 1 of a rendered conversation."""

    start: int
    stop: int


@final
class Template:
    """A tokenizer's chat template, or a replacement.

    Args:
        source: the Jinja source of a template, or the name of one of the tokenizer's; None for the
            one that the tokenizer uses.
        values: values of the template's own variables, such as {"enable_thinking": False}. Raises
            ValueError for a name that has another meaning in transformers.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        source: str | None = None,
        values: Mapping[str, Any] | None = None,
    ):
        self._tokenizer, self._source, self._values = tokenizer, source, dict(values or {})
        own = inspect.signature(tokenizer.apply_chat_template).parameters
        taken = {"messages", *own} - {"kwargs"}
        if wrong := sorted(taken & set(self._values)):
            raise ValueError(
                f"data.template_values.{wrong[0]}: is no variable of a template's own; want such as "
                f"{{enable_thinking: false}}"
            )

    def source(self, tools: Sequence[Any] | None = None) -> str:
        """The Jinja source. Raises ValueError if the tokenizer has no template for such conversations."""
        source = self._tokenizer.get_chat_template(self._source, tools)  # type: ignore[arg-type]
        return SOME_DAY + source if NOW in source else source

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """The text of a conversation. Raises Refused, with the template's message, if it refuses.

        transformers runs the template in a sandbox, where it can read and write nothing.
        """
        source = self.source(tools)
        try:
            rendered = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=tools,  # type: ignore[arg-type]
                chat_template=source,
                tokenize=False,
                **self._values,
            )
        except jinja2.TemplateSyntaxError as error:
            line = error.lineno
            raise ValueError(
                f"data.template: it is not a Jinja template: line {line}: {error}"
            ) from error
        except REFUSALS as error:
            raise Refused(str(error)) from error
        assert isinstance(rendered, str)
        return rendered


def turns(
    template: Template, conversation: Conversation, roles: Sequence[str], around: bool = False
) -> tuple[str, list[Span]]:
    """The text of a conversation, and the spans of the turns of some roles.

    A turn consists of content, thoughts and calls of tools. With `around` its span includes what the
    template puts around these: the turn's header and its end.

    Raises:
        Refused: the template refuses the conversation.
        NotApart: a turn has no position.
    """
    messages, tools = conversation
    text = template.render(messages, tools)
    mark = next((mark for mark in MARKS if mark not in text), None)
    if mark is None:
        raise NotApart
    spans = [_span(template, text, messages, tools, i, mark) for i in range(len(messages))]
    order = sorted(range(len(messages)), key=spans.__getitem__)  # order of the turns in the text
    ordered = [spans[i] for i in order]
    if any(before.stop > after.start for before, after in zip(ordered, ordered[1:], strict=False)):
        raise NotApart
    kept = [rank for rank, i in enumerate(order) if messages[i]["role"] in roles]
    if not around:
        return text, [ordered[rank] for rank in kept]
    ordered.append(Span(len(text), len(text)))

    def end(rank: int) -> int:
        """The end of a turn, including what the template writes after it."""
        start = ordered[rank].stop
        between = text[start : ordered[rank + 1].start]
        return start + _end_length(template, conversation, order[rank], between, mark)

    return text, [Span(end(rank - 1) if rank else 0, end(rank)) for rank in kept]


def _marked(messages: Sequence[Message], i: int, mark: str, bare: bool) -> list[Message]:
    """The messages, with the mark as content of message i; `bare` removes its other text."""
    message = {**messages[i], "content": mark}
    if bare:
        message = {key: value for key, value in message.items() if key not in TURN_FIELDS}
    return [*messages[:i], message, *messages[i + 1 :]]


def _render_marked(
    template: Template, messages: Sequence[Message], tools: Sequence[Any] | None, i: int, mark: str
) -> str:
    """The text with the mark in place of a turn, and of its tool calls if the template allows it."""
    try:
        return template.render(_marked(messages, i, mark, bare=True), tools)
    except Refused:
        pass
    try:
        return template.render(_marked(messages, i, mark, bare=False), tools)
    except Refused as error:
        raise NotApart from error


def _span(
    template: Template,
    text: str,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    i: int,
    mark: str,
) -> Span:
    marked = _render_marked(template, messages, tools, i, mark)
    start = len(os.path.commonprefix([text, marked]))
    rest, marked_rest = text[start:], marked[start:]
    if marked_rest.count(mark) != 1:
        if marked == text and not any(messages[i].get(key) for key in TURN_FIELDS):
            return Span(len(text), len(text))  # the template leaves the turn out
        raise NotApart
    stop = len(text) - len(os.path.commonprefix([rest[::-1], marked_rest[::-1]]))
    return Span(start, stop)


def _end_length(
    template: Template, conversation: Conversation, i: int, between: str, mark: str
) -> int:
    """The length of the part of `between` that ends turn i; the rest is the header of the next turn.

    It is the common prefix of `between` and of what follows the turn if the conversation ends with it.
    It is 0 if the template refuses such a conversation, for example a system message alone.
    """
    messages, tools = conversation
    try:
        alone = _render_marked(template, messages[: i + 1], tools, i, mark)
    except NotApart:
        return 0
    _, _, following = alone.partition(mark)
    return len(os.path.commonprefix([following, between]))

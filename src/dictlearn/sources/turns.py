"""A conversation as a model reads it: a chat template's text, and where in it each turn stands.

A template is a program that may put a turn anywhere, trim it, or leave out an earlier turn's thoughts
once another question follows. So no turn is looked for by its text. The conversation is rendered once
more with a mark in place of one turn's content: what differs between the two texts is that turn.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import jinja2
from transformers import PreTrainedTokenizerBase

from dictlearn.sources.conversations import Conversation, Message

SAID = (
    "tool_calls",
    "reasoning_content",
    "reasoning",
    "thinking",
)  # what a turn says beside content
MARKS = "\ue000\ue001\ue002\ue003"  # private characters, which no template trims or changes
REFUSALS = (
    *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    RecursionError,
)
NOW = "strftime_now"
# Some templates print today's date. Ours is always the one that Llama's falls back to.
SOME_DAY = (
    "{%- macro strftime_now(format) -%}{{ format"
    " | replace('%Y', '2024') | replace('%m', '07') | replace('%d', '26') | replace('%b', 'Jul')"
    " | replace('%B', 'July') | replace('%A', 'Friday') | replace('%a', 'Fri')"
    " | replace('%y', '24') | replace('%H', '12') | replace('%M', '00') | replace('%S', '00')"
    " }}{%- endmacro -%}"
)


class Refused(Exception):
    """The template does not take the conversation; the message is its own."""


class NotApart(Exception):
    """The template mixes a turn with others, so it can't be said where the turn stands."""


class Span(NamedTuple):
    """Characters `start` to `stop` - 1 of a rendered conversation."""

    start: int
    stop: int


@final
class Template:
    """A tokenizer's chat template, or another in its place.

    Args:
        source: the Jinja source of a template, or the name of one of the tokenizer's; None for the
            one that the tokenizer uses.
        values: what the template's own variables are, such as {"enable_thinking": False}.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        source: str | None = None,
        values: Mapping[str, Any] | None = None,
    ):
        self._tokenizer, self._source, self._values = tokenizer, source, dict(values or {})

    def source(self, tools: Sequence[Any] | None = None) -> str:
        """The Jinja source. ValueError if the tokenizer has no template for conversations like that."""
        source = self._tokenizer.get_chat_template(self._source, tools)  # type: ignore[arg-type]
        return SOME_DAY + source if NOW in source else source

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """The text of a conversation. Refused, with what the template says, if it takes none such.

        transformers runs the template in its sandbox, where it reads and writes nothing.
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
                f"data.template: it is no template of Jinja: line {line}: {error}"
            ) from error
        except REFUSALS as error:
            raise Refused(str(error)) from error
        assert isinstance(rendered, str)
        return rendered


def turns(
    template: Template, conversation: Conversation, roles: Sequence[str], around: bool = False
) -> tuple[str, list[Span]]:
    """The text of a conversation, and where the turns of some roles stand in it.

    A turn is what was said: content, thoughts and calls of tools. With `around` it is also what the
    template puts around that: the turn's header, and its end.

    Raises:
        Refused: by the template.
        NotApart: a turn's place can't be told.
    """
    messages, tools = conversation
    text = template.render(messages, tools)
    mark = next((mark for mark in MARKS if mark not in text), None)
    if mark is None:
        raise NotApart
    spans = [_span(template, text, messages, tools, i, mark) for i in range(len(messages))]
    order = sorted(range(len(messages)), key=spans.__getitem__)  # as the turns stand in the text
    ordered = [spans[i] for i in order]
    if any(before.stop > after.start for before, after in zip(ordered, ordered[1:], strict=False)):
        raise NotApart
    wanted = [place for place, i in enumerate(order) if messages[i]["role"] in roles]
    if not around:
        return text, [ordered[place] for place in wanted]
    ordered.append(Span(len(text), len(text)))

    def end(place: int) -> int:
        """Where a turn's own end is, which the template writes behind it."""
        start = ordered[place].stop
        between = text[start : ordered[place + 1].start]
        return start + _own_end(template, conversation, order[place], between, mark)

    return text, [Span(end(place - 1) if place else 0, end(place)) for place in wanted]


def _marked(messages: Sequence[Message], i: int, mark: str, bare: bool) -> list[Message]:
    """The messages, one of them saying the mark; `bare` takes all else from it that it says."""
    message = {**messages[i], "content": mark}
    if bare:
        message = {key: value for key, value in message.items() if key not in SAID}
    return [*messages[:i], message, *messages[i + 1 :]]


def _render_marked(
    template: Template, messages: Sequence[Message], tools: Sequence[Any] | None, i: int, mark: str
) -> str:
    """The text with the mark in place of a turn; of a call of tools too, where the template lets it."""
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
    other = _render_marked(template, messages, tools, i, mark)
    start = len(os.path.commonprefix([text, other]))
    rest, other_rest = text[start:], other[start:]
    if other_rest.count(mark) != 1:
        if other == text and not any(messages[i].get(key) for key in SAID):
            return Span(len(text), len(text))  # the template leaves the turn out
        raise NotApart
    stop = len(text) - len(os.path.commonprefix([rest[::-1], other_rest[::-1]]))
    return Span(start, stop)


def _own_end(
    template: Template, conversation: Conversation, i: int, between: str, mark: str
) -> int:
    """How much of the text between a turn and the next one ends this one: the rest heads the next.

    It is what follows the turn where the conversation ends with it, as far as that agrees. Nothing
    does where there is no such conversation, as of a system message alone.
    """
    messages, tools = conversation
    try:
        alone = _render_marked(template, messages[: i + 1], tools, i, mark)
    except NotApart:
        return 0
    _, _, following = alone.partition(mark)
    return len(os.path.commonprefix([following, between]))

"""Text as it is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from transformers import PreTrainedTokenizerBase, TextStreamer


@final
class Stream(TextStreamer):
    """Calls `on_text` with each piece of text as soon as no later token can change it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)

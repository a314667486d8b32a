"""A language model in a notebook: text in, activations out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel, bos_id
from dictlearn.store.text import token_text
from dictlearn.types import ModelInfo


@final
class OpenModel:
    """A model that never trains, and its tokenizer. `lm` is what the rest of dictlearn works with."""

    def __init__(self, lm: LanguageModel):
        self.lm = lm

    @property
    def info(self) -> ModelInfo:
        """Name, family, layers, width, vocabulary, context length."""
        return self.lm.info

    def tokens(self, text: str) -> Tensor:
        """Ids of the text behind the token that a document starts with, int64 [positions]."""
        if self.lm.tokenizer is None:
            raise ValueError(f"model.path={self.info.name}: has no tokenizer; pass token ids")
        ids = self.lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        start = bos_id(self.lm)
        return torch.tensor([*([] if start is None else [start]), *ids], dtype=torch.int64)

    def pieces(self, tokens: Tensor | Sequence[int]) -> list[str]:
        """The text of each token."""
        if self.lm.tokenizer is None:
            raise ValueError(f"model.path={self.info.name}: has no tokenizer")
        return token_text(self.lm.tokenizer, [int(token) for token in tokens])

    def special(self, tokens: Tensor) -> Tensor:
        """Which of these a dictionary never sees, in training or evaluation: bool, as `tokens`."""
        ids = torch.tensor(sorted(self.lm.special_ids), dtype=tokens.dtype)
        return torch.isin(tokens, ids.to(tokens.device))

    def activations(self, text: str | Tensor, sites: str | Sequence[str]) -> Tensor:
        """What the model holds at one site, or at several, such as a dictionary's `sources`.

        Args:
            text: a text, or ids as [positions] or [batch, positions], all of them real tokens.
            sites: a name gives [positions, width], a sequence [positions, sites, width], each with
                the batch in front where ids have one.

        Raises:
            ValueError: there is no such site, or more positions than the model reads.
        """
        tokens = self.tokens(text) if isinstance(text, str) else torch.as_tensor(text)
        names = [sites] if isinstance(sites, str) else list(sites)
        most = self.info.context_length
        if tokens.ndim not in (1, 2) or tokens.is_floating_point():
            raise ValueError(
                f"token ids of shape {tuple(tokens.shape)} and {tokens.dtype}: want integers, "
                "[positions] or [batch, positions]"
            )
        if most and tokens.shape[-1] > most:
            raise ValueError(
                f"{tokens.shape[-1]} tokens: {self.info.name} reads at most {most} at once"
            )
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._n_ids:
            raise ValueError(f"token ids: {self.info.name} has those from 0 to {self._n_ids - 1}")
        found = capture(self.lm, tokens.reshape(-1, tokens.shape[-1]), names)
        values = torch.stack([found[name] for name in names], dim=2)  # B P sites D
        values = values if tokens.ndim == 2 else values[0]
        return values.squeeze(-2) if isinstance(sites, str) else values

    @property
    def _n_ids(self) -> int:
        embeddings = self.lm.model.get_input_embeddings()
        assert isinstance(embeddings.weight, Tensor)
        return len(embeddings.weight)

    def __repr__(self) -> str:
        info = self.info
        revision = f" at {info.revision}" if info.revision else ""
        dtype = str(self.lm.model.dtype).removeprefix("torch.")
        return (
            f"Model: {info.name}{revision}\n"
            f"  {info.family}, {info.n_layers} layers, width {info.width:,}, vocabulary "
            f"{info.vocab_size:,}, context {info.context_length:,}\n"
            f"  {dtype} on {self.lm.device}"
        )

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
from dictlearn.words import a

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@final
class OpenModel:
    """A model that never trains, and its tokenizer. The rest of dictlearn works with `lm`."""

    def __init__(self, lm: LanguageModel):
        self.lm = lm

    @property
    def info(self) -> ModelInfo:
        """Name, family, layers, width, vocabulary, context length."""
        return self.lm.info

    def tokens(self, text: str) -> Tensor:
        """Ids of the text after the start-of-document token, int64 [positions]."""
        if not isinstance(text, str):
            raise ValueError(f"tokens: want a text, not {a(type(text).__name__)}")
        if self.lm.tokenizer is None:
            raise ValueError(f"model.path={self.info.name}: has no tokenizer; pass token ids")
        ids = self.lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        start = bos_id(self.lm)
        return torch.tensor([*([] if start is None else [start]), *ids], dtype=torch.int64)

    def pieces(self, tokens: Tensor | Sequence[int]) -> list[str]:
        """The text of each token."""
        if self.lm.tokenizer is None:
            raise ValueError(f"model.path={self.info.name}: has no tokenizer")
        return token_text(self.lm.tokenizer, self._ids(tokens).flatten().tolist())

    def special(self, tokens: Tensor | Sequence[int]) -> Tensor:
        """True for tokens that a dictionary never sees, in training or evaluation; bool, as `tokens`."""
        tokens = self._ids(tokens)
        ids = torch.tensor(sorted(self.lm.special_ids), dtype=tokens.dtype)
        return torch.isin(tokens, ids.to(tokens.device))

    def activations(self, text: str | Tensor | Sequence[int], sites: str | Sequence[str]) -> Tensor:
        """The model's activations at one site, or at several, such as a dictionary's `sources`.

        Args:
            text: a text, or ids as [positions] or [batch, positions], all of them real tokens.
            sites: a name gives [positions, width], a sequence [positions, sites, width], each with
                the batch in front if the ids have one.

        Raises:
            ValueError: there is no such site, or more positions than the model reads.
        """
        names = [sites] if isinstance(sites, str) else sites
        if not (
            isinstance(names, list | tuple) and names and all(isinstance(n, str) for n in names)
        ):
            raise ValueError(f"sites={sites!r}: want the name of a site, or a list of names")
        tokens = self.tokens(text) if isinstance(text, str) else self._ids(text)
        most = self.info.context_length
        if not tokens.numel():
            raise ValueError("there are no tokens to read: want one or more")
        if most and tokens.shape[-1] > most:
            raise ValueError(
                f"{tokens.shape[-1]} tokens: {self.info.name} reads at most {most} at once"
            )
        captured = capture(self.lm, tokens.reshape(-1, tokens.shape[-1]), names)
        values = torch.stack([captured[name] for name in names], dim=2)  # B P sites D
        values = values if tokens.ndim == 2 else values[0]
        return values.squeeze(-2) if isinstance(sites, str) else values

    def _ids(self, values: Tensor | Sequence[int]) -> Tensor:
        """Token ids as a tensor. Raises ValueError if they are not ids of this model."""
        wanted = "want whole numbers, [positions] or [batch, positions]"
        try:
            tokens = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError, OverflowError):  # ragged rows are ValueErrors
            message = f"token ids as {a(type(values).__name__)}: {wanted}, with rows of one length"
            raise ValueError(message) from None
        if not tokens.numel():
            return tokens.long()
        if tokens.ndim not in (1, 2) or tokens.dtype not in INTEGERS:
            dtype = str(tokens.dtype).removeprefix("torch.")
            raise ValueError(f"token ids of shape {tuple(tokens.shape)} and {dtype}: {wanted}")
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self._n_ids:
            raise ValueError(f"token ids: {self.info.name} has those from 0 to {self._n_ids - 1}")
        return tokens.long()

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

"""A language model in a notebook: activations, dictionaries in place, interventions, generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final, overload

import torch
from torch import Tensor

from dictlearn.api.placed import (
    Firings,
    Placeable,
    as_dictionaries,
    as_edits,
    descriptions,
    firings,
    setting,
)
from dictlearn.interventions import run as passes
from dictlearn.interventions.placed import Placed
from dictlearn.interventions.run import Effect, Outcome
from dictlearn.interventions.stream import Stream
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel, bos_id
from dictlearn.lm.other_names import names_of, site_named
from dictlearn.store.text import token_text
from dictlearn.types import Code, ModelInfo
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
        tokens = self.read(text)
        captured = capture(self.lm, tokens.reshape(-1, tokens.shape[-1]), names)
        values = torch.stack([captured[name] for name in names], dim=2)  # B P sites D
        values = values if tokens.ndim == 2 else values[0]
        return values.squeeze(-2) if isinstance(sites, str) else values

    def names(self, site: str) -> dict[str, str]:
        """What TransformerLens, SAELens, interp-engine, nnsight and nnterp call a site: tool -> name.

        A tool that has no name for it is left out. Raises ValueError if the model has no such site.
        """
        return names_of(self.lm, site)

    def site(self, tool: str, name: str) -> str:
        """The site that a tool calls `name`, as in `site("saelens", "blocks.3.hook_mlp_out")`.

        Raises:
            ValueError: there is no such tool, or none of the model's sites is called so.
        """
        return site_named(self.lm, tool, name)

    # --- with dictionaries in place -------------------------------------------------------------

    def features(
        self,
        text: str | Tensor | Sequence[int],
        dictionary: Placeable,
        strongest: int | None = None,
    ) -> Firings:
        """Which features fire on which token, with their descriptions if it is a run that has some.

        Args:
            strongest: keep this many of each token and source; None: all.
        """
        if strongest is not None and strongest < 1:
            raise ValueError(f"strongest={strongest}: want at least 1")
        placed = as_dictionaries("features", dictionary)[0]
        tokens = self.read(text)
        code = passes.run(self.lm, tokens[None], [placed]).codes[0]
        if strongest is not None:
            code = _strongest(code, strongest)
        return firings(placed, code, self.pieces(tokens), descriptions(dictionary, placed))

    def run(
        self,
        text: str | Tensor | Sequence[int],
        dictionaries: Placeable | Sequence[Placeable] = (),
        edits: Any = (),
        *,
        error: bool = True,
        constrained: bool | range = False,
        freeze_attention: bool = False,
    ) -> Outcome:
        """Logits and codes of one pass with dictionaries in place.

        Args:
            text: a text, or ids as [positions] or [batch, positions].
            edits: an `Edit`, a `Push`, circuit-tracer's (source, position, feature, value), or a list.
            error: keep what the dictionaries don't reconstruct. With it, and without edits, logits
                are the model's own to the bit.
            constrained: hold all MLPs (or those of a range of blocks) at their values without
                interventions, and attention too: direct effects. If all are held, so are norms' scales.
            freeze_attention: hold attention patterns.

        Raises:
            ValueError: an edit, a site or a size is wrong, or two dictionaries write one site.
        """
        tokens = self.read(text)
        return passes.run(
            self.lm,
            tokens.reshape(-1, tokens.shape[-1]),
            as_dictionaries("run", dictionaries),
            as_edits(self.lm, edits),
            setting(self.lm, error, constrained, freeze_attention),
        )

    def intervene(
        self,
        text: str | Tensor | Sequence[int],
        dictionaries: Placeable | Sequence[Placeable],
        edits: Any,
        *,
        error: bool = True,
        constrained: bool | range = False,
        freeze_attention: bool = False,
    ) -> Effect:
        """Logits and codes before and after edits; the arguments are those of `run`."""
        tokens = self.read(text)
        return passes.effect(
            self.lm,
            tokens.reshape(-1, tokens.shape[-1]),
            as_dictionaries("intervene", dictionaries),
            as_edits(self.lm, edits),
            setting(self.lm, error, constrained, freeze_attention),
        )

    @contextmanager
    def with_dictionaries(
        self,
        dictionaries: Placeable | Sequence[Placeable],
        edits: Any = (),
        *,
        error: bool = True,
    ) -> Iterator[Placed]:
        """Dictionaries in place in every pass of `lm` within the context; hooks are removed after it."""
        placed = Placed(
            self.lm,
            as_dictionaries("with_dictionaries", dictionaries),
            as_edits(self.lm, edits),
            setting(self.lm, error, False, False),
        )
        with placed.attached():
            yield placed

    @overload
    def generate(self, prompt: str, *args: Any, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: Sequence[str], *args: Any, **options: Any) -> list[str]: ...
    def generate(
        self,
        prompt: str | Sequence[str],
        dictionaries: Placeable | Sequence[Placeable] = (),
        edits: Any = (),
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        error: bool = True,
        on_text: Callable[[str], None] | None = None,
    ) -> str | list[str]:
        """The continuation of a prompt, or of several, with edits in place on every token.

        Args:
            temperature: 0 takes the likeliest token each time.
            on_text: receives the text piece by piece while it is generated; one prompt only.

        Raises:
            ValueError: as for `run`, or prompt and `max_tokens` are more than the model reads.
        """
        prompts: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
        if not prompts or not all(isinstance(text, str) for text in prompts):
            raise ValueError(f"prompt={prompt!r}: want a text, or a list of texts")
        if type(max_tokens) is not int or max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens!r}: want a whole number of at least 1")
        if not isinstance(temperature, int | float) or not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature={temperature!r}: want a number of at least 0")
        if on_text is not None and len(prompts) > 1:
            raise ValueError("on_text: takes the text of one prompt, not of several")
        ids = [self.read(text).tolist() for text in prompts]
        most, longest = self.info.context_length, max(map(len, ids)) + max_tokens
        if most and longest > most:
            raise ValueError(
                f"max_tokens={max_tokens}: with the prompt these are {longest} tokens, and "
                f"{self.info.name} reads at most {most}"
            )
        assert self.lm.tokenizer is not None, "the prompts were tokenised"
        rows = passes.generate(
            self.lm,
            ids,
            as_dictionaries("generate", dictionaries),
            as_edits(self.lm, edits),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            error=error,
            streamer=Stream(self.lm.tokenizer, on_text) if on_text is not None else None,
        )
        texts = self.lm.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts[0] if isinstance(prompt, str) else texts

    def read(self, text: str | Tensor | Sequence[int]) -> Tensor:
        """Token ids of a text, or checked ids. Raises ValueError if the model can't read as many."""
        tokens = self.tokens(text) if isinstance(text, str) else self._ids(text)
        most = self.info.context_length
        if not tokens.numel():
            raise ValueError("there are no tokens to read: want one or more")
        if most and tokens.shape[-1] > most:
            raise ValueError(
                f"{tokens.shape[-1]} tokens: {self.info.name} reads at most {most} at once"
            )
        return tokens

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


def _strongest(code: Code, n: int) -> Code:
    """The n largest values of every row."""
    order = code.values.argsort(descending=True)
    order = order[code.rows[order].argsort(stable=True)]
    rank = torch.arange(len(order), device=order.device) - code.row_starts[code.rows[order]]
    keep = torch.zeros_like(code.features, dtype=torch.bool)
    keep[order[rank < n]] = True
    return code.where(keep)

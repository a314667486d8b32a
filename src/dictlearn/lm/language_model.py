"""A frozen language model with what the rest of the house asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dictlearn.types import ModelInfo

OTHER = "other/"


@final
@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model that never trains: evaluation mode (no dropout), no parameter wants a gradient.

    It is no nn.Module, so that a trainer which holds it can neither move it, nor save it, nor put
    it into training mode.
    """

    model: PreTrainedModel  # a causal LM with its head, or an encoder without
    tokenizer: PreTrainedTokenizerBase | None
    info: ModelInfo
    special_ids: frozenset[int]  # specials, pads and ids no text makes: never seen by a dictionary
    other: LanguageModel | None = None  # reads the same tokens; its sites are other/<site>

    def at(self, site: str) -> tuple[LanguageModel, str]:
        """Whose the site is, and what it is called there."""
        if not site.startswith(OTHER):
            return self, site
        if self.other is None:
            raise ValueError(f"site {site}: there is no other model; model.other=<path> names it")
        return self.other, site.removeprefix(OTHER)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def trunk(self) -> nn.Module:
        """The model without its head: embeddings, blocks, final norm. Captures run this alone.

        In a model that also sees images it is the language half.
        """
        return self.model.get_decoder()

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        """Itself: what never changes is shared, also by a copy of whatever holds it."""
        return self

    def logits(self, tokens_BP: Tensor) -> Tensor:
        """Next-token logits [B, P, V] in the model's dtype.

        Keeps a graph only where something inside wants a gradient, as a replacement of `patched`
        does; the model itself never does.
        """
        if self.trunk is self.model:
            raise ValueError(
                f"model.path={self.info.name}: {self.info.family} has no next-token head here; "
                f"logits, CE and KL want a causal language model"
            )
        return self.model(input_ids=tokens_BP).logits


def freeze(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    name: str = "in memory",
    revision: str | None = None,
) -> LanguageModel:
    """A model that you already hold, as a LanguageModel. Freezes it in place."""
    model.requires_grad_(False)
    model.eval()
    # A key-value cache is of no use to one pass over whole windows, and costs memory.
    model.config.get_text_config().use_cache = False
    info = describe(model.config, name, revision)
    return LanguageModel(model, tokenizer, info, special_ids(model.config, tokenizer))


def describe(config: PretrainedConfig, name: str, revision: str | None) -> ModelInfo:
    """What a config says of its model's text half. Zero stands for what a family does not have."""
    text = config.get_text_config()

    def size(key: str) -> int:
        # Families differ in which fields they have; attribute maps make the common names work.
        return getattr(text, key, None) or 0

    return ModelInfo(
        name=name,
        revision=revision,
        family=text.model_type,
        n_layers=size("num_hidden_layers"),
        width=size("hidden_size"),
        vocab_size=size("vocab_size"),
        context_length=size("max_position_embeddings"),
    )


def special_ids(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None
) -> frozenset[int]:
    """Ids whose positions never reach a dictionary.

    With a tokenizer: its special tokens, and the rows of the embedding that stand for no token at
    all (vocabularies are padded to round numbers). The config's ids are not asked then: where a
    config leaves them out, its class invents some, and an invented id is somebody's word.
    """
    text = config.get_text_config()
    if tokenizer is None:
        return frozenset(_ids_in(text))
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(i for i in tokenizer.all_special_ids if i is not None)
    vocab_size = describe(config, "", None).vocab_size
    unused = set(range(vocab_size)).difference(tokenizer.get_vocab().values())
    return frozenset(special | unused)


def bos_id(lm: LanguageModel) -> int | None:
    """The id a document starts with: BOS, or an encoder's CLS; None where there is neither."""
    if lm.tokenizer is None:
        return None
    candidates = (lm.tokenizer.bos_token_id, lm.tokenizer.cls_token_id)
    return next((i for i in candidates if isinstance(i, int)), None)


def _ids_in(config: PretrainedConfig) -> Iterator[int]:
    for key, value in config.to_dict().items():
        if key.endswith("_token_id"):
            ids = value if isinstance(value, list) else [value]
            yield from (i for i in ids if isinstance(i, int) and i >= 0)

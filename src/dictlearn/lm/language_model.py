"""A frozen language model with its tokenizer, special tokens and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard, final

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dictlearn.types import ModelInfo

OTHER = "other/"

POSITIONS_AFTER_PAD = (  # families in which the first position is the padding id plus 1
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert"),
    *("data2vec-text", "esm", "ibert", "longformer", "mpnet", "xmod"),
)

Inputs = dict[str, Tensor]  # keyword arguments of the model's forward
Send = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model in evaluation mode (no dropout), whose parameters need no gradient.

    It is not an nn.Module, so a trainer that holds it can neither move it, nor save it, nor put it
    into training mode.
    """

    model: PreTrainedModel  # a causal LM with its head, or an encoder without one
    tokenizer: PreTrainedTokenizerBase | None
    info: ModelInfo
    special_ids: frozenset[int]  # special tokens, pads and unused ids: no dictionary reads them
    other: LanguageModel | None = None  # reads the same tokens; its sites are other/<site>

    def at(self, site: str) -> tuple[LanguageModel, str]:
        """The model that has the site, and the site's name in that model."""
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
        """The model without its head: embeddings, blocks and final norm.

        For a model that also takes images it is the language model alone.
        """
        return self.model.get_decoder()

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        """Returns the model itself: it never changes, so copies share it."""
        return self

    def inputs(self, tokens_BP: Tensor, send: Send | None = None) -> Inputs:
        """The keyword arguments of a forward pass over windows, on the model's device.

        Windows that end in padding get an attention mask, because an encoder attends to the whole
        window. Windows without padding get none: a mask of ones would choose another attention
        kernel, which rounds differently.

        Args:
            tokens_BP: token ids on any device, or a vision model's pixels.
            send: moves a tensor to the device; the default copies it and waits for the copy.
        """
        send = send or (lambda tensor: tensor.to(self.device))
        inputs = {self.model.main_input_name: send(tokens_BP)}
        mask_BP = attention_mask(self, tokens_BP) if tokens_BP.ndim == 2 else None
        return inputs if mask_BP is None else inputs | {"attention_mask": send(mask_BP)}

    def seen_bytes(self, tokens_BP: Tensor, kept_BP: Tensor) -> bytes:
        """Bytes for a fingerprint: token ids, and `kept_BP` if the ids don't determine it."""
        tokens_BP, kept_BP = tokens_BP.cpu().long(), kept_BP.cpu()
        special_BP = torch.isin(
            tokens_BP, torch.tensor(sorted(self.special_ids), dtype=torch.int64)
        )
        determined = torch.equal(kept_BP, ~special_BP)
        return tokens_BP.numpy().tobytes() + (b"" if determined else kept_BP.numpy().tobytes())

    def logits(self, tokens_BP: Tensor) -> Tensor:
        """Next-token logits [B, P, V] in the model's dtype.

        They have a graph only if a replacement of `patched` needs a gradient; the model's
        parameters need none.
        """
        if self.trunk is self.model:
            raise ValueError(
                f"model.path={self.info.name}: {self.info.family} has no next-token head here; "
                f"logits, CE and KL want a causal language model"
            )
        return self.model(**self.inputs(tokens_BP)).logits


def freeze(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    name: str = "in memory",
    revision: str | None = None,
) -> LanguageModel:
    """Wraps a model that is already in memory, and freezes it in place."""
    model.requires_grad_(False)
    model.eval()
    # One pass over whole windows never reads a key-value cache, which would cost memory.
    model.config.get_text_config().use_cache = False
    info = describe(model.config, name, revision)
    return LanguageModel(model, tokenizer, info, special_ids(model.config, tokenizer))


def describe(config: PretrainedConfig, name: str, revision: str | None) -> ModelInfo:
    """Sizes of the text model in a config; zero for a size that its family doesn't have."""
    text = config.get_text_config()

    def size(key: str) -> int:
        # The attribute maps of transformers translate these names for each family.
        return getattr(text, key, None) or 0

    return ModelInfo(
        name=name,
        revision=revision,
        family=text.model_type,
        n_layers=size("num_hidden_layers"),
        width=size("hidden_size"),
        vocab_size=size("vocab_size"),
        context_length=max(size("max_position_embeddings") - _unread_positions(text), 0),
    )


def _unread_positions(text: PretrainedConfig) -> int:
    """The number of rows at the start of the position table that no token uses."""
    kind = getattr(text, "position_embedding_type", "absolute")
    if text.model_type not in POSITIONS_AFTER_PAD or kind != "absolute":
        return 0
    return (getattr(text, "pad_token_id", None) or 0) + 1


def special_ids(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None
) -> frozenset[int]:
    """Token ids that dictionaries never read.

    With a tokenizer these are its special tokens, and the rows of the embedding without a token
    (vocabularies are padded to round numbers). The ids in the config count only without a tokenizer:
    config classes have defaults for them, which may be ordinary words of this vocabulary.
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
    """The id of BOS, or of an encoder's CLS; None if the tokenizer has neither."""
    if lm.tokenizer is None:
        return None
    candidates = (lm.tokenizer.bos_token_id, lm.tokenizer.cls_token_id)
    return next((i for i in candidates if _known(i, lm)), None)


def pad_id(lm: LanguageModel) -> int | None:
    """The special token that pads the last window; None if the model has no special token."""
    if lm.tokenizer is None:
        return None
    candidates = (lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id, bos_id(lm))
    return next((i for i in candidates if _known(i, lm) and i in lm.special_ids), None)


def document_start(lm: LanguageModel) -> int | None:
    """The id that precedes each document: BOS, or without one the padding token.

    Tokenizers without a BOS (Qwen) pad with the token that separated documents in pretraining; their
    EOS may be the end of a chat's turn.
    """
    bos = bos_id(lm)
    return bos if bos is not None else pad_id(lm)


def attention_mask(lm: LanguageModel, tokens_BP: Tensor) -> Tensor | None:
    """int64 [B, P]: 0 on the padding at the end of windows, else 1; None if there is no padding.

    If the padding token also precedes documents, a single one at the end of a window counts as the
    start of the next document.
    """
    pad = pad_id(lm)
    if pad is None:
        return None
    padding_BP = (tokens_BP == pad).flip(1).cummin(1).values.flip(1)
    n_B1 = padding_BP.sum(1, keepdim=True)
    shortest = 2 if pad == document_start(lm) else 1
    padding_BP &= (n_B1 >= shortest) & (n_B1 < tokens_BP.shape[1])
    return (~padding_BP).long() if bool(padding_BP.any()) else None


def n_embedded(model: PreTrainedModel) -> int:
    """The number of rows of the token embedding; a larger id cannot be embedded."""
    embedding: Any = model.get_input_embeddings()
    return getattr(embedding, "num_embeddings", None) or len(embedding.weight)


def _known(token_id: object, lm: LanguageModel) -> TypeGuard[int]:
    """Whether the embedding has this id; tokens may have been added to the tokenizer only."""
    return isinstance(token_id, int) and 0 <= token_id < n_embedded(lm.model)


def _ids_in(config: PretrainedConfig) -> Iterator[int]:
    for key, value in config.to_dict().items():
        if key.endswith("_token_id"):
            ids = value if isinstance(value, list) else [value]
            yield from (i for i in ids if isinstance(i, int) and i >= 0)

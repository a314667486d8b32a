"""A frozen language model with what the rest of the house asks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard, final

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dictlearn.types import ModelInfo

OTHER = "other/"

BEHIND_PADDING = (  # families whose positions are counted from behind the padding's id
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert"),
    *("data2vec-text", "esm", "ibert", "longformer", "mpnet", "xmod"),
)

Inputs = dict[str, Tensor]  # by name, as the model's forward takes them
Send = Callable[[Tensor], Tensor]


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

    def inputs(self, tokens_BP: Tensor, send: Send | None = None) -> Inputs:
        """What a forward pass is given for some windows, on the model's device.

        Windows that end in padding come with an attention mask, so that what fills them up changes
        no real token (an encoder attends to all of a window). Windows without any come without:
        a mask of ones takes other paths through attention, which round otherwise.

        Args:
            tokens_BP: token ids on any device, or a vision model's pixels.
            send: moves tensors to the device, in place of a copy that is waited for.
        """
        send = send or (lambda tensor: tensor.to(self.device))
        found = {self.model.main_input_name: send(tokens_BP)}
        attended_BP = attended(self, tokens_BP) if tokens_BP.ndim == 2 else None
        return found if attended_BP is None else found | {"attention_mask": send(attended_BP)}

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
        return self.model(**self.inputs(tokens_BP)).logits


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
        context_length=max(size("max_position_embeddings") - _unread_positions(text), 0),
    )


def _unread_positions(text: PretrainedConfig) -> int:
    """Rows at the start of a table of positions that no token has."""
    kind = getattr(text, "position_embedding_type", "absolute")
    if text.model_type not in BEHIND_PADDING or kind != "absolute":
        return 0
    return (getattr(text, "pad_token_id", None) or 0) + 1


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
    return next((i for i in candidates if _known(i, lm)), None)


def pad_id(lm: LanguageModel) -> int | None:
    """The id that fills up the last window: a special one that the model has; None without any."""
    if lm.tokenizer is None:
        return None
    candidates = (lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id, bos_id(lm))
    return next((i for i in candidates if _known(i, lm) and i in lm.special_ids), None)


def document_start(lm: LanguageModel) -> int | None:
    """The id before each document: BOS; else what the model was trained to read between documents.

    A tokenizer without a BOS (Qwen) pads with that token; its EOS may be the end of a chat's turn.
    """
    bos = bos_id(lm)
    return bos if bos is not None else pad_id(lm)


def attended(lm: LanguageModel, tokens_BP: Tensor) -> Tensor | None:
    """int64 [B, P]: 0 on the padding at the end of windows, 1 elsewhere; None where there is none.

    Where the pad also begins documents, a single one at the end of a window is taken for that: it is
    what the next document would begin with.
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
    """How many ids the embedding has a row for, from 0 on: none above can be read."""
    table: Any = model.get_input_embeddings()
    return getattr(table, "num_embeddings", None) or len(table.weight)


def _known(token_id: object, lm: LanguageModel) -> TypeGuard[int]:
    """Whether it is an id that the embedding has: a tokenizer may have got more tokens since."""
    return isinstance(token_id, int) and 0 <= token_id < n_embedded(lm.model)


def _ids_in(config: PretrainedConfig) -> Iterator[int]:
    for key, value in config.to_dict().items():
        if key.endswith("_token_id"):
            ids = value if isinstance(value, list) else [value]
            yield from (i for i in ids if isinstance(i, int) and i >= 0)

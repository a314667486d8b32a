"""Run a model with dictionaries in place: logits, codes, and both before and after interventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from dictlearn.interventions.edits import Edit, Push
from dictlearn.interventions.passes import Setting
from dictlearn.interventions.placed import Placed
from dictlearn.lm.language_model import LanguageModel
from dictlearn.types import Code, DictionaryLike


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """What a pass gives. `codes` has one code for each dictionary, with a row for every position."""

    tokens: Tensor  # int64 [B, P]
    logits: Tensor  # [B, P, V]
    codes: tuple[Code, ...]

    def __repr__(self) -> str:
        rows, positions = self.tokens.shape
        lines = [f"Outcome: {rows} × {positions} tokens, logits over {self.logits.shape[-1]:,}"]
        return "\n".join([*lines, *(f"  {code!r}" for code in self.codes)])


class Shift(NamedTuple):
    """How likely a token is next, before and after an intervention."""

    token: int
    before: float
    after: float


@final
@dataclass(frozen=True, eq=False, repr=False)
class Effect:
    """The same tokens without interventions and with them."""

    before: Outcome
    after: Outcome

    @property
    def kl(self) -> Tensor:
        """KL(before ‖ after) of the next token at every position, in nats: [B, P]."""
        before, after = (out.logits.float().log_softmax(-1) for out in (self.before, self.after))
        return (before.exp() * (before - after)).sum(-1)

    def __repr__(self) -> str:
        kl = self.kl
        (rows, positions), most = kl.shape, int(kl.argmax())
        return (
            f"Effect on {rows} × {positions} tokens: KL {float(kl.mean()):.4f} nats per token, "
            f"{float(kl.max()):.4f} at most, after token {most % positions} of row {most // positions}"
        )

    def top(self, n: int = 10, position: int = -1, row: int = 0) -> list[Shift]:
        """The n tokens whose probability after `position` changes most."""
        before, after = (
            out.logits[row, position].float().softmax(-1) for out in (self.before, self.after)
        )
        most = (after - before).abs().topk(min(n, len(after))).indices
        pairs = zip(most.tolist(), before[most].tolist(), after[most].tolist(), strict=True)
        return [Shift(*pair) for pair in pairs]


@torch.no_grad()
def run(
    lm: LanguageModel,
    tokens_BP: Tensor,
    dictionaries: Sequence[DictionaryLike],
    edits: Sequence[Edit | Push] = (),
    setting: Setting | None = None,
) -> Outcome:
    """One pass with dictionaries in place. Windows may end in padding, as those of `lm.inputs`."""
    placed = Placed(lm, dictionaries, edits, setting)
    tokens_BP = tokens_BP.to(lm.device)
    with placed.attached():
        logits = lm.logits(tokens_BP)
        codes = tuple(placed.code(number) for number in range(len(dictionaries)))
    return Outcome(tokens_BP, logits, codes)


def effect(
    lm: LanguageModel,
    tokens_BP: Tensor,
    dictionaries: Sequence[DictionaryLike],
    edits: Sequence[Edit | Push],
    setting: Setting | None = None,
) -> Effect:
    """The pass with interventions, and the one with the same setting without them."""
    setting = setting or Setting()
    plain = Setting(error=setting.error)
    return Effect(
        run(lm, tokens_BP, dictionaries, (), plain),
        run(lm, tokens_BP, dictionaries, edits, setting),
    )


@torch.no_grad()
def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    dictionaries: Sequence[DictionaryLike] = (),
    edits: Sequence[Edit | Push] = (),
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    error: bool = True,
    cache: bool = True,
    streamer: Any = None,
) -> list[list[int]]:
    """Continues prompts with the interventions in place; the new tokens of each.

    Prompts of different lengths are padded on the left. Interventions hold on every generated
    token that their `positions` include.

    Args:
        temperature: 0 takes the likeliest token.
        cache: keep keys and values; without, each step reads everything again.
        streamer: of transformers; it receives tokens as they come, for one prompt.
    """
    longest = max(map(len, prompts))
    pad = lm.tokenizer.pad_token_id if lm.tokenizer is not None else None
    pad = next((i for i in (pad, min(lm.special_ids, default=None)) if i is not None), 0)
    rows = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    tokens_BP = torch.tensor(rows, device=lm.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=lm.device)
    mask_BP = torch.arange(longest, device=lm.device) >= longest - lengths[:, None]
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature > 0
        else {"do_sample": False}
    )
    placed = Placed(lm, dictionaries, edits, Setting(error=error, generating=True))
    devices = [lm.device] if lm.device.type == "cuda" else []
    with placed.attached(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        model: Any = lm.model  # its stubs don't know generate
        out_BP = model.generate(
            input_ids=tokens_BP,
            attention_mask=mask_BP.long(),
            max_new_tokens=max_tokens,
            pad_token_id=pad,
            use_cache=cache,
            streamer=streamer,
            **sampling,
        )
    ends = _ends(lm)
    return [_until(row[longest:].tolist(), ends) for row in out_BP]


def _ends(lm: LanguageModel) -> set[int]:
    ends = lm.model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends])


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first one that ends a text, which is kept; padding follows it."""
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]

"""Steering by one operation on a feature, or along a direction, with a strength that has a unit.

A feature's unit is an activation that it reaches on text, so strength 1 is as much as text itself
brings about, whatever the scale of the dictionary. A direction's unit is its own length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.interventions import run as passes
from dictlearn.interventions.directions import Direction, of_feature
from dictlearn.interventions.edits import EDITS, Edit, Gate, Push
from dictlearn.lm.language_model import LanguageModel, bos_id
from dictlearn.sources.documents import with_whole_characters

Op = Literal[
    "add", "set", "scale", "clamp", "zero", "push", "add_scaled", "project_out", "cap"
]  # fmt: skip
When = Literal["always", "token", "input"]
PUSHED = {"push": "add", "add_scaled": "add_scaled", "project_out": "project_out", "cap": "cap"}
FACTORS = ("scale", "add_scaled")  # their strength is a plain factor
PLAIN = ("zero", "project_out")  # and these take none


@final
@dataclass(frozen=True, eq=False)
class Steered:
    """A feature of the first dictionary in place, or a direction, with the unit of its strength.

    Args:
        size: what strength 1 is, in the feature's activations or the direction's lengths.
        feature: (source, index); None: `direction` is pushed.
        direction: for the operations along a direction.
        gate: the feature that `when` asks; None: the steered one.
    """

    size: float
    feature: tuple[int, int] | None = None
    direction: Direction | None = None
    gate: tuple[int, int] | None = None

    def value(self, op: Op, strength: float) -> float | None:
        """The strength in the units of what is changed; None for an operation without one."""
        if op in PLAIN:
            return None
        if op in FACTORS:
            return strength
        length = float(self.direction.vector.norm()) if op == "cap" and self.direction else 1.0
        return strength * self.size * length

    def interventions(self, op: Op, strength: float, when: When = "always") -> list[Edit | Push]:
        """What a pass has to change. Raises ValueError where the operation has nothing to work on."""
        value = self.value(op, strength)
        if op in EDITS and self.feature is not None:
            source, index = self.feature
            gated = when if when == "always" or self.gate is None else self._gate(when)
            return [Edit(index, value, op, source, when=gated)]  # type: ignore[arg-type]
        if self.direction is None or self.direction.site is None:
            raise ValueError(f"op={op}: works along a direction, and there is none at a site")
        if self.feature is None and op == "add":
            op = "push"
        if op not in PUSHED:
            raise ValueError(
                f"op={op}: changes a feature's activation; along a vector want one of "
                f"{', '.join(PUSHED)}"
            )
        gated = "always" if when == "always" else self._gate(when)
        vector_D = self.direction.vector
        number = 1.0 if value is None else value
        return [Push(self.direction.site, vector_D, number, PUSHED[op], when=gated)]  # type: ignore[arg-type]

    def _gate(self, when: When) -> Gate:
        asked = self.gate or self.feature
        if asked is None:
            raise ValueError(f"when={when}: a vector fires nowhere; want gate=<a feature>")
        return Gate(asked[1], asked[0], on="input" if when == "input" else "token")


def steered_feature(
    dictionary: Dictionary, feature: tuple[int, int], size: float, op: Op, site: str | None = None
) -> Steered:
    """A feature; with its decoder vector if the operation is along a direction.

    Raises:
        ValueError: as `of_feature`.
    """
    direction = of_feature(dictionary, *feature, site) if op in PUSHED else None
    return Steered(size, feature, direction)


def prompt_tokens(lm: LanguageModel, text: str, room: int) -> list[int]:
    """The ids of a prompt behind the start-of-document token, with `room` for further tokens.

    Raises:
        ValueError: the model has no tokenizer, or reads no more tokens than the prompt has.
    """
    if lm.tokenizer is None:
        raise ValueError(f"model.path={lm.info.name}: has no tokenizer, and prompts are text")
    start = bos_id(lm)
    whole = with_whole_characters(text)
    encoded: list[int] = lm.tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[assignment]
    ids = [*([] if start is None else [start]), *encoded]
    most = lm.info.context_length
    if not ids:
        raise ValueError("prompt: is empty, and the model has no token that starts a document")
    if most and len(ids) + room > most:
        raise ValueError(
            f"tokens={room}: with the prompt's {len(ids)} these are {len(ids) + room}, and "
            f"{lm.info.name} reads at most {most}"
        )
    return ids


def decoded(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> list[str]:
    """The text of generated tokens, without special ones."""
    assert lm.tokenizer is not None, "the prompts were tokenised"
    ids = [list(row) for row in rows]
    return lm.tokenizer.batch_decode(ids, skip_special_tokens=True)


def kl_per_token(
    lm: LanguageModel,
    ids: Sequence[int],
    dictionaries: Sequence[Dictionary],
    edits: Sequence[Edit | Push],
) -> float:
    """KL(model ‖ steered model) of the next token, in nats: the mean over a text's tokens.

    Special tokens never change and don't count.
    """
    tokens_P = torch.tensor(list(ids), device=lm.device)
    special = torch.tensor(sorted(lm.special_ids), device=lm.device)
    kept_P = ~torch.isin(tokens_P, special)
    if not bool(kept_P.any()):
        return 0.0
    kl_P = passes.effect(lm, tokens_P[None], dictionaries, edits).kl[0]
    return float(kl_P[kept_P].mean())

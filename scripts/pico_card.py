"""The words of pico's model card. Every number in it is measured by train_pico.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARD = """\
---
language: code
license: mit
library_name: transformers
pipeline_tag: text-generation
tags: [interpretability, python]
---
# pico

A language model of {parameters:,} parameters, small enough to ship inside a Python package, so that
[dictlearn](https://pypi.org/project/dictlearn-lm/) has something real to train dictionaries on
without a download. It is a Qwen3 (4 layers, width 256, 4 query and 2 key-value heads of 64, MLP
width 512, tied embeddings, context 512), so every path that works on it is the path of its larger
relatives. It continues Python source; it is of no use for anything else.

## How good it is

Nats per token on {held_out_tokens:,} tokens of the held-out files{part}: lower is better. The
n-grams are interpolated modified Kneser-Ney, fitted on the same training tokens and scored on the
same held-out tokens, in windows of 512 like pico. The figures are those of the bf16 file beside
this card.

| model | nats per token |
|---|---|
| unigram | {unigram:.3f} |
| bigram | {bigram:.3f} |
| 5-gram | {five_gram:.3f} |
| **pico** | **{pico:.3f}** |

By position in the window, so that the whole context can be relied on:

| tokens before it | {positions} |
|---|{rules}|
| nats per token | {position_losses} |

Induction: BOS, then random tokens, then the same random tokens again, which only copying predicts.

| span | first copy | second copy |
|---|---|---|
| 128 tokens | {first_copy:.2f} | {second_copy:.2f} |
| 255 tokens | {first_copy_long:.2f} | {second_copy_long:.2f} |

## How it was trained

On the source of Python {python}'s standard library, its tests included: {train_tokens:,} tokens,
seen {epochs:.2f} times, {tokens:,} in all. A tenth of the files, by SHA-256 of their relative paths,
is held out from training and from the tokenizer; repeated contents are dropped. `data=stdlib` of
dictlearn splits by the same rule, so its evaluation text is text that pico has not seen either.

{steps:,} steps of {windows} windows of 512 tokens: Muon at {matrix_lr:g} (momentum {momentum:g}) for
the matrices of the blocks, AdamW at {lr:g} (betas {betas}) for the embedding and the norms,
weight decay {weight_decay:g} on matrices, {warmup_steps} warm-up steps, linear decay over the last
{decay_share:.0%} of the run, {precision}, {minutes:.0f} minutes on two CPU cores that others used too.

**{repeated:.0%} of the training windows are not Python.** They are spans of 8 to 256 random tokens
(uniform, or as frequent as in the text), repeated to fill the window, and scored from the second
copy on: a shortcut to the induction heads that a model of this size would otherwise form late. So
the induction figures above say that pico can copy; they are no evidence that it learned to from
code alone.

Documents are packed one after another, each behind `<|bos|>` (id 1), which also ends the one
before it. The tokenizer, a byte-level BPE of 4096 tokens, does not add it by itself. `<|pad|>` is
id 0.

## Licence

The weights and the tokenizer come under dictlearn's MIT licence. The text they were trained on is
the Python standard library, copyright the Python Software Foundation, under the
[PSF License Version 2](https://docs.python.org/3/license.html).

Made by `scripts/train_pico.py`.
"""


def model_card(figures: Mapping[str, float], facts: Mapping[str, Any]) -> str:
    """The card for these figures (of `evaluate`) and facts (of `ship`)."""
    edges = [key.split("_")[1:] for key in figures if key.startswith("position_")]
    recipe = facts["recipe"]
    return CARD.format(
        **figures,
        **{key: value for key, value in facts.items() if key != "recipe"},
        **{key: value for key, value in recipe.items() if key != "betas"},
        betas=" and ".join(map(str, recipe["betas"])),
        decay_share=1 - recipe["decay_from"],
        positions=" | ".join(f"{low} to {high}" for low, high in edges),
        rules="---|" * (len(edges) - 1) + "---",
        position_losses=" | ".join(f"{figures[f'position_{a}_{b}']:.3f}" for a, b in edges),
    )

"""Loads the tokenizer of a store's text."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from dictlearn.ckpt.signature import SIGNATURE, is_own, signed
from dictlearn.lm.load import load_tokenizer
from dictlearn.store.layout import Info


def signature_of(model: str, revision: str | None) -> str | None:
    """This user's signature of a store, which `tokenizer_of` recognises."""
    return signed({"model": model, "revision": revision}).get(SIGNATURE)


def tokenizer_of(info: Info) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the store's model: pico, a hub id or, in the user's own store, a folder.

    Raises:
        ValueError: another user's store names a folder of this machine.
    """
    origin = {"model": info.model, "revision": info.revision, SIGNATURE: info.signature}
    if info.model != "pico" and not is_own(origin) and Path(info.model).expanduser().exists():
        raise ValueError(
            f"the features say that their model lies in the folder {info.model}, and those that were "
            f"not gathered by your own `dictlearn features` choose no folder to read here; gather "
            f"them anew, or name the folder with `dictlearn pages tokenizer=`"
        )
    return load_tokenizer(info.model, info.revision)

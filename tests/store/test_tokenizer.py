"""A store chooses a folder of this machine only if its own user gathered it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dictlearn.lm.hub import PICO_PATH
from dictlearn.store.features import open_store
from dictlearn.store.tokenizer import signature_of, tokenizer_of
from tests.store.made import made_store


def test_a_strangers_store_chooses_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made_store(tmp_path)
    info = open_store(tmp_path).info
    assert tokenizer_of(info) is not None, "pico comes with the package"
    folder = replace(info, model=str(PICO_PATH))
    with pytest.raises(ValueError, match="choose no folder to read here"):
        tokenizer_of(folder)
    own = replace(folder, signature=signature_of(folder.model, folder.revision))
    assert tokenizer_of(own) is not None
    with pytest.raises(ValueError, match="choose no folder to read here"):
        tokenizer_of(replace(own, model=str(PICO_PATH.parent)))

"""Concept vectors from Python: the page in docs/ as it stands, its commands too."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from figures.printed import COMMAND, FENCE, run_python

from dictlearn import cli
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.dicts.sae import sae
from dictlearn.lm.load import read_info
from dictlearn.sparsity.topk import TopK

PAGE = Path(__file__).parents[2] / "docs" / "vectors.md"


def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = sae(read_info("pico"), partial(TopK, k=4), n_features=32, k=4, layer=1).eval()
    save_dictionary(small, Path("runs/first/dictionary"), {"model": "pico", "revision": None})
    for name, start in {"imports.txt": "import", "returns.txt": "return"}.items():
        Path(name).write_text(
            "".join(f"{start} {word}\n" for word in ("os", "sys", "re", "json", "a", "b"))
        )
    names: dict[str, Any] = {}
    text, ran = PAGE.read_text(encoding="utf-8"), []
    found = [*FENCE.finditer(text), *COMMAND.finditer(text)]
    for match in sorted(found, key=lambda match: match.start()):
        if match.re is COMMAND:
            command = match[1]
            ran.append(command.split()[1])
            monkeypatch.setattr("sys.argv", shlex.split(command))
            with pytest.raises(SystemExit) as leaving:
                cli.main()
            assert leaving.value.code == 0, capsys.readouterr().err
        else:
            run_python(match[2], names)
    assert ran == ["vector", "vector", "lookup", "lookup", "vector", "vector"]
    assert min(names["imports"].accuracy.values()) > 0.9
    assert names["steered"] != names["model"].generate("def main():\n", max_tokens=12)
    assert torch.equal(names["again"].at("resid_post.1"), names["direction"])
    assert Path("imports.gguf").is_file() and Path("feature.gguf").is_file()

"""A run on conversations and text: trained, resumed, and read again by every verb, from any folder."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import dictlearn
from dictlearn import cli
from dictlearn.ckpt.signature import signed
from dictlearn.lm.load import load_skeleton
from dictlearn.store.features import open_store
from dictlearn.verbs import build
from dictlearn.verbs.trained_text import part_of, trained_on
from tests.lines import settled

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
PARTS = (
    "{code: {data: text, paths: [code/*.txt]},"
    " chats: {data: chat, paths: chats.jsonl, template: own.jinja}}"
)
SMALL = [
    *("data=mix", f"data.parts={PARTS}", "data.weights={code: 2}", "data.context=32"),
    *("steps=4", "batch_tokens=128", "source.buffer_tokens=512", "source.lm_batch_windows=4"),
    *("dict.n_features=32", "dict.k=4", "eval_tokens=1024", "trainer=cpu", "~eval.baselines"),
    *("callbacks.checkpoint.every_steps=2",),
]

SMALLER = [text for text in SMALL if not text.startswith(("data", "source."))]


def run_verb(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.setattr(sys, "argv", ["dictlearn", *arguments])
        cli.main()
    return exit_.value.code or 0  # type: ignore[return-value]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, and the run `first` on them."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "code").mkdir()
    for i in range(40):
        (folder / "code" / f"{i}.txt").write_text(f"def f{i}(x):\n    return x + {i}\n" * 3)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} and one?"},
                {"role": "assistant", "content": f"It is {i + 1}, one more than {i}."},
            ]
        }
        for i in range(60)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.jinja").write_text(TEMPLATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert run_verb("train", *settled(*SMALL, "name=first")) == 0
    return folder


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))


def test_a_run_cut_in_two_is_the_run_in_one_piece(home: Path, monkeypatch) -> None:
    monkeypatch.chdir(home)
    shutil.copytree("runs/first/checkpoints/step-2", "runs/cut/checkpoints/step-2")
    assert run_verb("train", "name=cut", "resume=runs/cut/checkpoints/step-2") == 0
    whole, resumed = (dictlearn.load(f"runs/{name}").state_dict() for name in ("first", "cut"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def figures(name: str) -> dict[str, float]:
    found = json.loads(Path("runs", name, "figures.json").read_text())["figures"]
    assert all(math.isfinite(found[key]) for key in ("fvu", "l0", "ce_increase", "kl"))
    return found


def test_kl_trains_on_conversations(home: Path, monkeypatch) -> None:
    monkeypatch.chdir(home)
    chat = ["data=chat", "data.paths=chats.jsonl", "data.template=own.jinja", "data.context=32"]
    kl = ["objective=kl", "source=windows", "objective.terms.kl.coefficient=50"]
    assert run_verb("train", *SMALLER, *chat, "source=windows", "name=mse") == 0
    assert run_verb("train", *SMALLER, *chat, *kl, "name=kl") == 0
    assert figures("kl")["kl"] < figures("mse")["kl"]


def test_a_mixture_trains_from_a_store(home: Path, monkeypatch) -> None:
    monkeypatch.chdir(home)
    mix = [text for text in SMALL if text.startswith("data")]
    windows = ["source=cache_windows", "source.path=windows", "objective=kl"]
    store = ["tokens=2000", "sites=[resid_post.1]", "shard_tokens=1000"]
    assert run_verb("cache", *mix, *store, "output=windows", "order=windows") == 0
    assert run_verb("cache", *mix, *store, "output=rows") == 0
    assert run_verb("train", *SMALLER, *mix, *windows, "name=cached_kl") == 0
    rows = ["source=cache", "source.path=rows"]
    assert run_verb("train", *SMALLER, *mix, *rows, "name=cached") == 0
    assert figures("cached_kl") != figures("cached")


def test_verbs_read_the_same_tokens_again_from_elsewhere(home, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = str(home / "runs/first")
    assert run_verb("features", f"run={run}", "tokens=2000", "output=found") == 0
    info = open_store(Path("found/features")).info
    cfg = OmegaConf.create({"data": trained_on(_absolute(home), run)})
    held_out = build.build_windows(cfg, load_skeleton("pico", tokenizer=True), "eval")
    everything = range(len(held_out))
    assert info.tokens == int(held_out.kept(everything).sum())
    assert info.tokens < int((held_out.window_batch(everything) > 1).sum()), "users are left out"


def _absolute(home: Path) -> dict[str, Any]:
    """The provenance of the run with absolute paths, as its user's own."""
    data = json.loads((home / "runs/first/dictionary/dictionary.json").read_text())
    (found,) = (v["data"] for v in _mappings(data) if isinstance(v.get("data"), dict))
    parts = found["parts"]
    parts["code"]["paths"] = [str(home / "code/*.txt")]
    parts["chats"] |= {"paths": str(home / "chats.jsonl"), "template": str(home / "own.jinja")}
    return signed({"data": found})


def _mappings(node: Any) -> list[dict[str, Any]]:
    if not isinstance(node, dict):
        return []
    return [node, *(inner for value in node.values() for inner in _mappings(value))]


def test_text_of_a_part_is_recognised_and_only_its_held_out_part_is_read(home, monkeypatch) -> None:
    trained = _absolute(home)
    monkeypatch.chdir(home)

    def named(**data: Any) -> str:
        return part_of(OmegaConf.create(data), trained)

    chat = {"_target_": "dictlearn.sources.chat.chat_windows", "paths": "chats.jsonl"}
    assert named(**chat, field="messages", roles=["user"], template="other") == "eval"
    assert named(**chat, field="other") == "whole"
    text = {"_target_": "dictlearn.sources.tokens.text_windows", "paths": ["code/*.txt"]}
    assert named(parts={"a": text, "b": {"_target_": "another"}}) == "eval"
    assert named(**{**text, "paths": ["code/1*.txt"]}) == "whole"


def test_a_file_of_somebody_elses_chooses_neither_parts_nor_a_template(home: Path) -> None:
    trained = _absolute(home)
    settings = trained_on(trained, "d")
    assert settings["weights"] == {"code": 2} and "context" not in settings["parts"]["code"]
    theirs = {key: value for key, value in trained.items() if key != "signature"}
    with pytest.raises(ValueError, match=r"^d: was trained on data=mix, and a file that was not"):
        trained_on(theirs, "d")
    trained["data"]["parts"]["code"] = {"_target_": "os.system", "paths": "x"}
    with pytest.raises(ValueError, match=r"^d: does not say which text"):
        trained_on(signed(trained), "d")
    trained["data"]["parts"] = {
        "a": {
            "_target_": "dictlearn.sources.chat.chat_windows",
            "template_values": {"_x": 1},
            "x": 2,
        }
    }
    part = trained_on(signed(trained), "d")["parts"]["a"]
    assert part["template_values"] is None and "x" not in part

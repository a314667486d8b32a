"""`dictlearn cache` from the command line, and training on what it leaves behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from safetensors.torch import load_file

from dictlearn import cli
from dictlearn.activations.formats.dictlearn import Store
from dictlearn.activations.place import LocalPlace
from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.config import compose
from dictlearn.lm.language_model import LanguageModel
from dictlearn.train.trainee import Trainee
from dictlearn.verbs import build, plan, storing
from tests.activations.test_store import content
from tests.lines import settled
from tests.verbs.test_train import SMALL

TEXT = ["data.context=128", "data.max_tokens=20000"]
CACHE = ["sites=[resid_post.1,mlp_in.1,mlp_out.1]", "output=acts", "shard_tokens=1024", *TEXT]
TRAIN = [text for text in SMALL if not text.startswith(("source.", "eval.baselines"))]
STORED = ["source=cache", "source.path=acts", "eval=reconstruction"]
LAYER = ["dict.layer=1"]


def dictlearn_cache(folder: Path, *overrides: str) -> int:
    """Exit status of `dictlearn cache ...` in `folder`."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dictlearn", "cache", *settled(*CACHE, *overrides)])
        cli.main()
    return exit_.value.code or 0  # type: ignore[return-value]


def dictlearn_trains(folder: Path, *overrides: str, layer: list[str] = LAYER) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(folder)
        patch.setattr(
            sys, "argv", ["dictlearn", "train", *settled(*TRAIN, *STORED, *layer, *overrides)]
        )
        cli.main()
    return exit_.value.code or 0  # type: ignore[return-value]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    assert dictlearn_cache(folder, "tokens=3000") == 0
    return folder


def test_it_says_what_it_takes_and_what_is_there(folder, capsys):
    acts = folder / "acts"
    store = Store.opened(LocalPlace(acts))
    assert sorted(store.records) == [0, 1, 2] and store.about.dtype == "bfloat16"
    assert store.about.origin.model == "pico" and not store.about.origin.unknown
    assert load_file(acts / "statistics.safetensors")["mlp_in.1.rows"] == store.info.rows
    before = content(acts)
    assert dictlearn_cache(folder, "tokens=3000") == 0  # all is there
    assert content(acts) == before
    assert "rows of resid_post.1, mlp_in.1, mlp_out.1 in 3 shards" in capsys.readouterr().err
    assert not list(folder.glob(".*lock"))


def test_more_tokens_add_shards_and_parts_share_them(folder, tmp_path, capsys):
    for part in ("1/2", "0/2"):
        assert dictlearn_cache(tmp_path, "tokens=3000", f"partition={part}") == 0
    said = capsys.readouterr().err
    assert "1 of 3 shards are there" in said
    assert (
        "shards, 2,048 tokens of resid_post.1, mlp_in.1, mlp_out.1, " in said
        and " a token, " in said
    )
    assert content(tmp_path / "acts") == content(folder / "acts")
    assert dictlearn_cache(tmp_path, "tokens=5000") == 0
    grown, before = content(tmp_path / "acts"), content(folder / "acts")
    assert {name for name in before if grown[name] != before[name]} == {
        "statistics.safetensors",
        "complete.json",
    }
    assert len(Store.opened(LocalPlace(tmp_path / "acts")).records) == 5


def test_damaged_shards_are_made_anew(folder, tmp_path, capsys):
    before = content(folder / "acts")
    for name, data in before.items():
        (tmp_path / "acts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "acts" / name).write_bytes(data)
    path = tmp_path / "acts/shards/000001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert dictlearn_cache(tmp_path, "tokens=3000", "verify=true") == 0
    said = capsys.readouterr().err
    assert "made anew: acts/shards/000001.safetensors does not match its record" in said
    assert content(tmp_path / "acts") == before


def test_a_run_trains_on_a_store_and_runs_the_model_for_figures_alone(folder, monkeypatch):
    loaded: list[int] = []
    load = build.build_model

    def watched(cfg) -> LanguageModel | None:
        loaded.append(len(list(Path("runs/a").glob("checkpoints/step-*"))))
        return load(cfg)

    monkeypatch.setattr(build, "build_model", watched)
    assert dictlearn_trains(folder, "name=a", "callbacks.checkpoint.every_steps=2") == 0
    assert loaded == [2]  # when all steps are done
    figures = json.loads((folder / "runs/a/figures.json").read_text())["figures"]
    assert 0 < figures["fvu"] < 1
    origin: Any = load_dictionary(folder / "runs/a/dictionary").provenance
    assert origin["data"]["context"] == 128


def test_the_scales_of_a_run_are_those_of_the_whole_store(folder, monkeypatch):
    scales: list[list[float]] = []
    begin = Trainee.begin

    def watched(self: Trainee, *args: Any) -> None:
        begin(self, *args)
        normaliser = self.normaliser
        scales.append([normaliser.input_scale_S.item(), normaliser.output_scale_T.item()])

    monkeypatch.setattr(Trainee, "begin", watched)
    assert dictlearn_trains(folder, "name=scaled", "dict=transcoder", "steps=1") == 0
    stored = load_file(folder / "acts/statistics.safetensors")
    norms = [stored[f"{site}.norm"].item() for site in ("mlp_in.1", "mlp_out.1")]
    assert scales[0] == pytest.approx([256**0.5 / norm for norm in norms])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.max_tokens=9000"], "source.path=acts: its activations are of another text"),
        (["dict.layer=2"], "source.path=acts: has no resid_post.2; it has resid_post.1"),
        (["objective=kl"], "or source=cache_windows for a store"),
        (["source=cache_windows"], "source.path=acts: its rows are not kept in windows"),
        (["source.path=nowhere"], "source.path=nowhere: has no activations"),
    ],
    ids=str,
)
def test_what_a_store_cannot_serve_is_refused_before_work(folder, capsys, overrides, sentence):
    assert dictlearn_trains(folder, "name=refused", *overrides) == 2
    assert sentence in capsys.readouterr().err
    assert not (folder / "runs/refused").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["partition=4/4"], "partition=4/4: want i/n"),
        (["partition=x"], "partition=x: want i/n"),
        (["tokens=30000000"], "tokens=30000000: the text has "),
        (["sites=[nowhere.1]", "output=new"], "nowhere.1"),
        (["sites=[mlp_in.1,mlp_in.1]"], "want one site or more, each once"),
        (["dtype=int8"], "output=acts: its shards have dtype='bfloat16', these would have 'int8'"),
        (["output=runs"], "is not replaced"),
    ],
    ids=str,
)
def test_what_cannot_be_stored_is_refused_before_work(folder, capsys, overrides, sentence):
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "runs/mine").touch()
    before = {path for path in folder.rglob("*") if "runs" not in path.parts}
    assert dictlearn_cache(folder, *overrides) == 2
    assert sentence in capsys.readouterr().err
    assert {path for path in folder.rglob("*") if "runs" not in path.parts} == before


def test_a_store_in_windows_serves_objectives_that_run_the_model(tmp_path):
    assert dictlearn_cache(tmp_path, "order=windows", "tokens=2000", "dtype=int8") == 0
    options = ["objective=kl", "source=cache_windows", "steps=2", "dict=transcoder", "name=kl"]
    assert dictlearn_trains(tmp_path, *options) == 0
    lines = (tmp_path / "runs/kl/metrics.jsonl").read_text().splitlines()
    assert any(0 < json.loads(line).get("kl", 0.0) < 100 for line in lines)


@pytest.mark.parametrize(("forward", "disk", "least"), [(9.0, 5.0, 4), (5.0, 9.0, None), (9, 0, 2)])
def test_storing_pays_where_it_takes_less_time(forward, disk, least):
    assert storing.least_dictionaries(forward, disk) == least
    if least is not None:
        stored = [forward + disk + n * disk for n in (least - 1, least)]
        assert stored[0] >= (least - 1) * forward and stored[1] < least * forward


def test_a_plan_says_what_storing_takes_and_leaves_the_model_out_where_it_does_not_run(folder):
    sites = ["dict=transcoder", "dict.layer=1", "trainer=cpu", *TEXT]
    live = plan.planned(compose("plan", [*sites, "name=x", "gpu=H200"]))
    assert live.facts["activations, stored"].startswith("1.04 GB per million tokens")
    assert "s per million tokens; " in live.facts["activations, computed"]
    path = f"source.path={folder / 'acts'}"
    kept = plan.planned(compose("plan", [*sites, "name=x", "gpu=H200", "source=cache", path]))
    assert not kept.mistakes and "memory, language model" not in kept.facts
    assert "activations, stored" not in kept.facts and kept.predictions


def test_overwrite_empties_an_address_that_holds_something_else_and_no_run(tmp_path, capsys):
    fs, root = fsspec.core.url_to_fs(address := f"memory://{uuid4().hex}/acts")
    fs.pipe({f"{root}/notes.txt": b"x", f"{root}/old/a.bin": b"x", f"{root}2/kept": b"x"})
    one = [f"output={address}", "tokens=1000", "sites=[resid_post.1]"]
    assert dictlearn_cache(tmp_path, *one) == 2
    assert "holds notes.txt; want an empty address, or overwrite=true" in capsys.readouterr().err
    assert dictlearn_cache(tmp_path, *one, "overwrite=true") == 0
    assert "rows of resid_post.1 in 1 shard," in capsys.readouterr().err
    names = sorted(fs.find(root))
    assert f"{root}/store.json" in names and not any("notes" in n or "old" in n for n in names)
    assert fs.exists(f"{root}2/kept")
    assert dictlearn_cache(tmp_path, *one, "overwrite=true", "tokens=2000") == 0  # it goes on
    assert set(names) < set(fs.find(root))
    fs, root = fsspec.core.url_to_fs(address := f"memory://{uuid4().hex}/run")
    fs.pipe(f"{root}/checkpoints/step-1/manifest.json", b"x")
    assert dictlearn_cache(tmp_path, *one, f"output={address}", "overwrite=true") == 2
    assert "overwrite=true deletes no run" in capsys.readouterr().err
    assert fs.exists(f"{root}/checkpoints/step-1/manifest.json")

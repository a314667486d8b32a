"""No verb replaces what it did not write, before any work; overwrite=true says that it may."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from omegaconf import DictConfig
from safetensors.torch import save_file

from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.config import compose, conf_dir
from dictlearn.dicts.sae import sae
from dictlearn.evals.record import check_record_replaceable, write_record
from dictlearn.features.pages.write import OURS
from dictlearn.lm.load import read_info
from dictlearn.sparsity.topk import TopK
from dictlearn.verbs import evaluate, explain
from dictlearn.verbs.asked import asked
from tests.store.made import RULES, made_store
from tests.verbs.test_train import dictlearn_train


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a dictionary and features, and work of somebody's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    n = len(RULES)
    one = sae(read_info("pico"), partial(TopK, k=2), "resid_post.1", n_features=n, k=2).eval()
    save_dictionary(one, tmp_path / "runs/a/dictionary", {"model": "pico", "revision": None})
    (tmp_path / "runs/a/checkpoints").mkdir()
    made_store(tmp_path / "runs/a")
    save_file({"v": one.decoder.W_dec[0, 1].detach().clone()}, tmp_path / "v.safetensors")
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers/summary.json").write_text('{"years": "of work"}')
    for name in ("thesis.tex", "figures.json", "index.html", "features/index.html", "graph.json"):
        path = tmp_path / "work" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text('{"years": "of work"}')
    return tmp_path / "runs/a"


VERBS = [
    ("export", ["run=runs/a", "format=saelens", "output=work"]),
    ("export", ["run=runs/a", "format=neuronpedia", "output=work"]),
    ("targets", ["output=work"]),
    ("cache", ["sites=[mlp_in.1]", "output=work"]),
    ("lookup", ["run=runs/a", "vector=v.safetensors", "output=work/thesis.tex"]),
    ("evaluate", ["run=runs/a", "output=work"]),
    ("pages", ["run=runs/a", "output=work"]),
    ("pages", ["run=runs/a", "output=numbers"]),
    ("features", ["run=runs/a", "output=work"]),
]


def content() -> dict[str, bytes]:
    kept = [*Path("work").rglob("*"), *Path("numbers").rglob("*"), *Path("runs").rglob("*")]
    return {str(path): path.read_bytes() for path in kept if path.is_file()}


@pytest.mark.parametrize(("verb", "overrides"), VERBS, ids=lambda value: str(value))
def test_others_work_stays(verb: str, overrides: list[str]):
    before = content()
    with pytest.raises(OSError, match="cannot save .* is not replaced; .* overwrite=true"):
        import_module(f"dictlearn.verbs.{verb}").main(compose(verb, overrides))
    assert content() == before


def test_a_run_is_called_one():
    with pytest.raises(OSError, match="it is a run, and is not replaced; move it away") as refused:
        import_module("dictlearn.verbs.export").main(
            compose("export", ["run=runs/a", "format=sparsify", "output=runs/a"])
        )
    assert "overwrite" not in str(refused.value)


def test_a_run_stays_even_then():
    before = content()
    for output in ("runs/a", "runs"):
        overrides = ["run=runs/a", "format=saelens", f"output={output}", "overwrite=true"]
        with pytest.raises(OSError, match="run.*, and is not replaced"):
            import_module("dictlearn.verbs.export").main(compose("export", overrides))
    assert content() == before


@pytest.fixture
def other(run: Path) -> Path:
    """Another run with figures and features, copied without its checkpoints."""
    copy = run.parent / "b"
    copytree(run, copy)
    (copy / "checkpoints").rmdir()
    (copy / "features/index.html").write_bytes(OURS)
    write_record(copy, {"format": 1, "figures": {"fvu": 0.1}, "versions": {}})
    (copy / "report.html").write_text("its report")
    return copy


@pytest.mark.parametrize("extra", [[], ["overwrite=true"]], ids=["", "overwrite"])
@pytest.mark.parametrize(
    ("verb", "overrides"),
    [
        ("evaluate", ["output=runs/b"]),
        ("evaluate", ["output=runs"]),
        ("evaluate", ["output=runs/b/dictionary"]),
        ("features", ["output=runs/b"]),
        ("explain", ["output=runs/b"]),
        ("pages", ["output=runs/b"]),
        ("pages", ["output=runs/b/features"]),
        ("export", ["format=saelens", "output=runs/b"]),
        ("lookup", ["vector=v.safetensors", "output=runs/b/figures.json"]),
        ("lookup", ["vector=v.safetensors", "output=runs/b/dictionary/dictionary.json"]),
    ],
    ids=str,
)
def test_another_run_stays_whatever_is_said(
    other: Path, verb: str, overrides: list[str], extra: list[str]
):
    before = content()
    with pytest.raises(OSError, match="run|saved dictionary|not written by dictlearn"):
        import_module(f"dictlearn.verbs.{verb}").main(
            compose(verb, ["run=runs/a", *overrides, *extra])
        )
    assert content() == before


def test_figures_are_put_only_where_an_evaluation_left_its_own(tmp_path: Path):
    there = tmp_path / "full"
    there.mkdir()
    (there / ".report.html.lock").touch()  # a killed evaluation leaves it
    check_record_replaceable(there, False)
    write_record(there, {"format": 1, "figures": {}, "versions": {}})
    for name in ("report.html", "figures/fvu.png", "features/store/manifest.json"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).touch()
    check_record_replaceable(there, False)
    (there / "figures.json").write_text("{}")
    with pytest.raises(OSError, match=r"figures, which was not written"):
        check_record_replaceable(there, False)
    for name in ("figures.json", "figures/fvu.png", "report.html"):
        (there / name).unlink()
    (there / "figures").rmdir()
    (there / "notes.txt").touch()
    with pytest.raises(OSError, match=r"cannot save .*full: it holds notes\.txt.*overwrite=true"):
        check_record_replaceable(there, False)
    check_record_replaceable(there, True)


def test_a_run_keeps_its_figures_when_it_is_named_as_output():
    options = asked(compose("evaluate", ["run=runs/a"]))
    write_record(Path("runs/a"), {"format": 1, "figures": {}, "versions": {}, "asked": options})
    for given in (["run=runs/a"], ["dictionary=runs/a/dictionary"]):
        same = compose("evaluate", [*given, "output=runs/a"])
        evaluate.check_destination(same, *destination_and_options(same))
        changed = compose("evaluate", [*given, "output=runs/a", "eval_tokens=9", "overwrite=true"])
        with pytest.raises(ValueError, match="output=runs/a: it is the run itself.*eval_tokens=9"):
            evaluate.check_destination(changed, *destination_and_options(changed))


def destination_and_options(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    return evaluate.destination(cfg), asked(cfg)


def test_what_may_go_goes_and_what_is_ours_goes_unasked():
    pages = import_module("dictlearn.verbs.pages").main
    lookup = import_module("dictlearn.verbs.lookup").main
    for extra in (["overwrite=true"], []):
        assert pages(compose("pages", ["run=runs/a", "output=work", *extra])) == 0
        overrides = ["run=runs/a", "vector=v.safetensors", "output=work/graph.json", *extra]
        assert lookup(compose("lookup", overrides)) == 0
    assert Path("work/thesis.tex").is_file() and Path("work/pages/info.js").is_file()
    assert "norm" in Path("work/graph.json").read_text()


def test_every_verb_that_has_output_has_overwrite():
    """compare alone writes a page that it knows by its name."""
    texts = {path.stem: path.read_text() for path in conf_dir().glob("*.yaml")}
    with_output = {verb for verb, text in texts.items() if "\noutput:" in text}
    assert with_output - {"compare"} == {v for v, text in texts.items() if "\noverwrite:" in text}


def test_explain_refuses_at_once_what_its_pages_could_not_replace(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    (run / "features/pages").mkdir()
    (run / "features/pages/thesis.tex").write_text("years of work")
    monkeypatch.setattr(explain, "open_dictionary", lambda *_: pytest.fail("work had begun"))
    with pytest.raises(OSError, match=r"cannot save .*pages: it holds thesis\.tex"):
        explain.main(compose("explain", ["run=runs/a"]))


def test_training_refuses_at_once_what_it_could_not_save_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "runs/b/dictionary").mkdir(parents=True)
    (tmp_path / "runs/b/dictionary/thesis.tex").write_text("years of work")
    assert dictlearn_train(tmp_path, "name=b") == 2
    assert "cannot save runs/b/dictionary: it holds thesis.tex" in capsys.readouterr().err
    assert not (tmp_path / "runs/b/config.yaml").exists()

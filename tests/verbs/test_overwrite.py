"""No verb replaces what it did not write, before any work; overwrite=true says that it may."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from safetensors.torch import save_file

from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.config import compose, conf_dir
from dictlearn.dicts.sae import sae
from dictlearn.lm.load import read_info
from dictlearn.sparsity.topk import TopK
from dictlearn.verbs import explain
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

"""`dictlearn evaluate`: what it reads, where it writes, and how it refuses."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dictlearn.ckpt.dictionary import load_dictionary, save_dictionary
from dictlearn.ckpt.signature import signed
from dictlearn.config import compose, conf_dir
from dictlearn.dicts.sae import sae
from dictlearn.evals.record import write_record
from dictlearn.lm.load import load_model, read_info
from dictlearn.sparsity.abstopk import AbsTopK
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.sparsity.topk import TopK
from dictlearn.verbs import asked, build, evaluate, opened


@pytest.fixture(autouse=True)
def one_text(tmp_path, monkeypatch):
    """Text for pico, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [{"text": f"def f{i}(x):\n    return x + {i}\n" * 5} for i in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))


def saved(
    folder, width=256, site="resid_post.1", own=True, sparsity: type[Sparsity] = TopK, **training
):
    info = replace(read_info("pico"), width=width)
    dictionary = sae(info, partial(sparsity, k=4), site, n_features=64, k=4).eval()
    training = {
        "model": "pico",
        "revision": None,
        "data": {
            "_target_": "dictlearn.sources.tokens.text_windows",
            "_partial_": True,
            "paths": ["text.jsonl"],
            "context": 64,
            "held_out": 0.3,
        },
        **training,
    }
    save_dictionary(dictionary, folder, signed(training) if own else training)
    return dictionary


SMALL = ["eval_tokens=256", "eval_windows=2", "eval.baselines.fit_tokens=256"]


def test_a_run_is_evaluated_on_what_it_was_trained_on(tmp_path, capsys):
    saved(tmp_path / "runs/a/dictionary")
    assert evaluate.main(compose("evaluate", ["run=runs/a", *SMALL])) == 0
    record = json.loads((tmp_path / "runs/a/figures.json").read_text())
    assert record["model"]["name"] == "pico" and record["text"]["data"]["context"] == 64
    assert record["figures"]["l0"] == pytest.approx(4, abs=0.1)
    assert "PCA, rank 4" in record["baselines"]
    assert (tmp_path / "runs/a/report.html").is_file()
    output = capsys.readouterr()
    assert "mean ablation" in output.out and "runs/a/report.html" in output.err


def test_features_of_either_sign_have_figures_like_any_other(tmp_path):
    saved(tmp_path / "runs/a/dictionary", sparsity=AbsTopK)
    assert evaluate.main(compose("evaluate", ["run=runs/a", *SMALL])) == 0
    figures = json.loads((tmp_path / "runs/a/figures.json").read_text())["figures"]
    assert figures["l0"] == pytest.approx(4, abs=0.1) and math.isfinite(figures["fvu"])


def test_another_dictionary_stands_beside_the_first(tmp_path, capsys):
    """As training does with the PLT that a CLT is compared with."""
    first, other = saved(tmp_path / "a"), saved(tmp_path / "b")
    cfg = compose("evaluate", ["dictionary=a", "model=pico", "data=text", "data.paths=text.jsonl"])
    OmegaConf.update(cfg, "data.held_out", 0.3)
    cfg.eval = {name: cfg.eval[name] for name in ("reconstruction", "sparsity")}
    cfg.eval_tokens = 256
    lm = load_model("pico")
    text, beside = build.read_text(cfg, lm), {"the other one": other}
    record = evaluate.evaluated(cfg, first, lm, text, beside)
    evaluate.write_into(tmp_path / "run", record)
    assert record["beside"]["the other one"]["figures"].keys() == record["figures"].keys()
    assert record["beside"]["the other one"]["dictionary"]["parameters"] > 0
    assert "the other one" in capsys.readouterr().out
    assert "the other one" in (tmp_path / "run/report.html").read_text()


def test_the_same_text_gives_the_same_figures(tmp_path):
    saved(tmp_path / "runs/a/dictionary")
    records = []
    for output in ("first", "second"):
        evaluate.main(compose("evaluate", ["dictionary=runs/a", f"output={output}", *SMALL]))
        records.append(json.loads((tmp_path / output / "figures.json").read_text()))
    assert records[0]["figures"] == records[1]["figures"]
    assert records[0]["text"] == records[1]["text"]
    assert not (tmp_path / "runs/a/report.html").exists()


def test_model_and_data_can_be_others(tmp_path, capsys):
    saved(tmp_path / "d", model="somewhere/else", data={})
    overrides = ["dictionary=d", "model=pico", "data=text", "data.paths=text.jsonl"]
    overrides += ["data.context=32", "data.held_out=0.3", "eval=sparsity", "eval_tokens=128"]
    assert evaluate.main(compose("evaluate", overrides)) == 0
    assert "was trained on somewhere/else; the model is pico" in capsys.readouterr().err
    record = json.loads((tmp_path / "evaluations/d/figures.json").read_text())
    assert record["text"]["data"]["context"] == 32 and "fvu" not in record["figures"]


NAMED = ["dictionary=d", "model=pico", "data=text", "data.context=64", "eval=sparsity"]


def read(tmp_path, *overrides):
    """(tokens that evaluate read, positions of text)"""
    given = [*NAMED, "eval_tokens=1000000", "overwrite=true", *overrides]
    evaluate.main(compose("evaluate", given))
    return json.loads((tmp_path / "evaluations/d/figures.json").read_text())["text"]["tokens"]


def test_text_that_a_user_names_is_read_whole(tmp_path):
    """One file of text too, which has no documents to hold out."""
    saved(tmp_path / "d")
    text = "".join(f"class C{i}:\n    x = {i}\n" for i in range(100))
    (tmp_path / "one.txt").write_text(text)
    lines = [json.dumps({"text": text[i : i + 90]}) for i in range(0, len(text), 90)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    lm = load_model("pico")
    assert lm.tokenizer is not None
    n = len(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
    assert read(tmp_path, "data.paths=one.txt") == n
    assert read(tmp_path, "data.paths=rows.jsonl") > n  # each row after a token of its own
    assert read(tmp_path, "data.paths=rows.jsonl", "data.held_out=0.5") > n


def test_figures_on_other_text_leave_those_of_the_run():
    own = compose("evaluate", ["run=runs/a"])
    Path("runs/a").mkdir(parents=True)
    assert evaluate.destination(own) == Path("runs/a")
    named = compose("evaluate", ["run=runs/a", "data=stdlib"])
    assert evaluate.destination(named) == Path("evaluations/a")
    said = compose("evaluate", ["run=runs/a", "data=stdlib", "output=there"])
    assert evaluate.destination(said) == Path("there")


def asked_of_run(*given):
    """runs/a with figures such as training leaves; asked for with the default options but those given."""
    options = asked.asked(compose("evaluate", list(given)))
    record = {"format": 1, "figures": {}, "versions": {}, "asked": options}
    write_record(Path("runs/a"), record)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["eval_tokens=256"], "eval_tokens=256, not 65536"),
        (["eval.baselines.rank=3"], "eval.baselines.rank=3, not null"),
        (["eval=sparsity"], "eval has sparsity, not reconstruction, sparsity, downstream"),
        (["model=pico"], "model= named"),
        (["data=stdlib"], "data= named"),
    ],
    ids=str,
)
def test_other_options_leave_the_figures_of_the_run(given, why):
    asked_of_run()
    cfg = compose("evaluate", ["run=runs/a", *given])
    assert evaluate.destination(cfg) == Path("evaluations/a")
    assert re.search(why, asked.not_a_runs_own(Path("runs/a"), asked.asked(cfg)))
    assert evaluate.destination(compose("evaluate", ["run=runs/a"])) == Path("runs/a")
    same = compose("evaluate", ["run=runs/a", "eval_windows=1"])  # figures don't depend on it
    assert evaluate.destination(same) == Path("runs/a")


@pytest.mark.parametrize("spelling", ["./text.jsonl", "[text.jsonl]", "[./text.jsonl]"])
def test_two_spellings_of_a_path_are_one_evaluation(spelling):
    def of(paths):
        return asked.asked(compose("evaluate", ["run=runs/a", "data=text", f"data.paths={paths}"]))

    record = {"format": 1, "figures": {}, "versions": {}, "asked": of("text.jsonl")}
    write_record(Path("evaluations/a"), record)
    asked.refuse_other_figures(Path("evaluations/a"), of(spelling))
    with pytest.raises(ValueError, match="data.paths=other.jsonl, not text.jsonl"):
        asked.refuse_other_figures(Path("evaluations/a"), of("other.jsonl"))


def test_what_the_figures_in_the_way_are_of_is_said():
    named = compose("evaluate", ["run=runs/a", "data=text", "data.paths=[text.jsonl]"])
    record = {"format": 1, "figures": {}, "versions": {}, "asked": asked.asked(named)}
    write_record(Path("evaluations/a"), record)
    now = asked.asked(compose("evaluate", ["run=runs/a", "eval=sparsity"]))
    how = "no data= now, data= with text.jsonl there; eval has sparsity, not reconstruction, "
    with pytest.raises(ValueError, match=f"{how}.*output=<another folder>"):
        asked.refuse_other_figures(Path("evaluations/a"), now)


def test_a_run_made_with_other_options_keeps_its_figures_too():
    asked_of_run("eval_tokens=4096")
    cfg = compose("evaluate", ["run=runs/a"])
    assert evaluate.destination(cfg) == Path("evaluations/a")
    again = compose("evaluate", ["run=runs/a", "eval_tokens=4096"])
    assert evaluate.destination(again) == Path("runs/a")
    (Path("runs/a") / "figures.json").write_text("{")  # damaged ones are made anew
    assert evaluate.destination(cfg) == Path("runs/a")


def test_figures_of_two_evaluations_do_not_replace_each_other_unasked(tmp_path, capsys):
    saved(tmp_path / "runs/a/dictionary")
    asked_of_run("eval=sparsity")
    own = (tmp_path / "runs/a/figures.json").read_bytes()
    given = ["run=runs/a", "eval=sparsity", "eval_windows=2"]
    assert evaluate.main(compose("evaluate", [*given, "eval_tokens=128"])) == 0
    first = "The figures go to evaluations/a, and runs/a keeps its own: eval_tokens=128, not 65536"
    assert first in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"evaluations/a: .*\(eval_tokens=256, not 128\); output="):
        evaluate.main(compose("evaluate", [*given, "eval_tokens=256"]))
    for way in ("overwrite=true", "output=other"):
        assert evaluate.main(compose("evaluate", [*given, "eval_tokens=256", way])) == 0
    assert (tmp_path / "runs/a/figures.json").read_bytes() == own
    assert (tmp_path / "other/report.html").is_file()


def test_windows_are_as_long_as_in_training(tmp_path):
    saved(tmp_path / "d")
    data = ["dictionary=d", "data=text", "data.paths=text.jsonl"]
    for given, context in (([], 64), (["data.context=16"], 16)):
        cfg = compose("evaluate", [*data, *given])
        opened.open_dictionary(cfg, "evaluate", "evaluations")
        assert cfg.data.context == context


def test_what_a_folder_without_a_dictionary_is_is_said(tmp_path):
    (tmp_path / "new/checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no dictionary yet: the run has not ended"):
        load_dictionary(tmp_path / "new")
    saved(tmp_path / "several/k8/dictionary")
    with pytest.raises(ValueError, match="holds several runs; name one of k8"):
        load_dictionary(tmp_path / "several")


def test_of_the_text_of_training_the_held_out_part_is_read(tmp_path, caplog):
    saved(tmp_path / "d")
    held_out = read(tmp_path, f"data.paths={tmp_path / 'text.jsonl'}", "data.held_out=0.3")
    (said,) = [line for line in caplog.messages if "trained on this text" in line]
    assert said.endswith("the part that was held out is read.")
    (tmp_path / "text.jsonl").rename(tmp_path / "again.jsonl")
    assert held_out < 0.6 * read(tmp_path, "data.paths=again.jsonl")
    (tmp_path / "again.jsonl").rename(tmp_path / "text.jsonl")
    read(tmp_path, "data.paths=[text.jsonl]")
    assert "data.held_out=0.1 is not the 0.3 of its training" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing to evaluate; want run="),
        (["run=a", "dictionary=b"], "run= and dictionary= were both given"),
        (["run=nowhere"], "run=nowhere: no such folder"),
        (["dictionary=d", "eval_tokens=0"], "eval_tokens=0: want"),
    ],
    ids=str,
)
def test_senseless_requests_are_refused(tmp_path, overrides, message):
    saved(tmp_path / "d")
    with pytest.raises(ValueError, match=message):
        evaluate.main(compose("evaluate", overrides))


def test_a_dictionary_of_another_width_is_refused_before_weights_load(tmp_path, monkeypatch):
    saved(tmp_path / "d", width=128)
    monkeypatch.setattr(opened, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match="width 128, but those of pico have width 256"):
        evaluate.main(compose("evaluate", ["dictionary=d"]))


def test_a_site_the_model_lacks_is_refused(tmp_path):
    saved(tmp_path / "d", site="resid_post.9")
    with pytest.raises(ValueError, match="pico has layers 0 to 3"):
        evaluate.main(compose("evaluate", ["dictionary=d", *SMALL]))
    assert not (tmp_path / "evaluations").exists()


def test_a_file_names_no_code_to_run(tmp_path):
    known = "dictlearn.sources.tokens.text_windows"
    theirs = {"_target_": known, "_partial_": False, "paths": {"_target_": "os.abort"}, "evil": 1}
    ours = opened.trained_on(signed({"data": theirs | {"context": 99, "held_out": "x"}}), "d")
    assert ours["_target_"] == known and ours["_partial_"] is True and ours["context"] == 99
    own = OmegaConf.to_container(OmegaConf.load(conf_dir() / "data" / "text.yaml"))
    assert isinstance(own, dict) and ours == {**own, "context": 99}
    for odd in ({"_target_": "os.abort"}, {}, None, [1]):
        with pytest.raises(ValueError, match="does not say which text"):
            opened.trained_on(signed({"data": odd}), "d")


@pytest.mark.parametrize("named", ["run", "dictionary"])
def test_a_strangers_file_chooses_no_text(tmp_path, named):
    """Not even inside what looks like a run of one's own: a folder may be a copy of a stranger's."""
    saved(tmp_path / "runs/a/dictionary", own=False)
    with pytest.raises(ValueError, match="chooses no text to read here; name some with data="):
        evaluate.main(compose("evaluate", [f"{named}=runs/a", *SMALL]))
    text = ["data=text", "data.paths=text.jsonl", "data.context=64", "data.held_out=0.3"]
    assert (
        evaluate.main(compose("evaluate", [f"{named}=runs/a", "eval=sparsity", *SMALL[:2], *text]))
        == 0
    )


def test_own_provenance_that_was_edited_is_a_strangers(tmp_path):
    saved(tmp_path / "d")
    path = tmp_path / "d/dictionary.json"
    path.write_text(path.read_text().replace("text.jsonl", "id_rsa"))
    (tmp_path / "d/manifest.json").unlink()
    with pytest.raises(ValueError, match="chooses no text"):
        evaluate.main(compose("evaluate", ["dictionary=d", *SMALL]))


def test_text_that_comes_with_python_may_be_named_by_anybody(tmp_path):
    builder = "dictlearn.sources.tokens.stdlib_windows"
    ours = opened.trained_on(
        {"data": {"_target_": builder, "context": 64, "evil": "${oc.env:HOME}"}}, "d"
    )
    assert ours["_target_"] == builder and ours["context"] == 64 and "evil" not in ours


def test_nothing_in_own_provenance_is_interpolated(tmp_path, monkeypatch):
    """A key with `${` in its name is that key's name, in this process and in those beside it."""
    monkeypatch.setenv("SECRET", "swordfish")
    odd = "${oc.env:SECRET}"
    lines = [json.dumps({odd: f"def f{i}(x):\n    return x + {i}\n" * 5}) for i in range(60)]
    (tmp_path / "odd.jsonl").write_text("\n".join(lines))
    builder = "dictlearn.sources.tokens.text_windows"
    data = {
        "_target_": builder,
        "paths": ["odd.jsonl"],
        "field": odd,
        "context": 64,
        "held_out": 0.3,
    }
    saved(tmp_path / "d", data=data)
    overrides = ["dictionary=d", "eval=sparsity", *SMALL[:2], "output=out"]
    assert evaluate.main(compose("evaluate", overrides)) == 0
    record = (tmp_path / "out/figures.json").read_text()
    assert json.loads(record)["text"]["data"]["field"] == odd and "swordfish" not in record


def test_a_strangers_file_chooses_no_folder_as_model(tmp_path, monkeypatch):
    monkeypatch.setattr(opened, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    (tmp_path / "private").mkdir()
    for key in ("model", "other_model"):
        named = {"data": {"_target_": "dictlearn.sources.tokens.stdlib_windows"}, key: "private"}
        saved(tmp_path / key, own=False, **named)
        with pytest.raises(ValueError, match="chooses no folder to read here; name it with model="):
            evaluate.main(compose("evaluate", [f"dictionary={key}", *SMALL]))


def test_a_dictionary_without_provenance_asks_for_a_model(tmp_path):
    saved(tmp_path / "d", model=None)
    with pytest.raises(ValueError, match="does not say which model it reads; pass model="):
        evaluate.main(compose("evaluate", ["dictionary=d"]))
    assert torch.is_grad_enabled()


def test_a_planted_wrong_convention_is_named(capsys):
    """SAELens' folder of an SAE that subtracts b_dec, whose cfg.json says that it doesn't."""
    from tests.ckpt.foreign.test_layer_formats import LENS, write_tensors

    rows, folder = torch.cat([torch.eye(256), -torch.eye(256)]), Path("theirs")
    folder.mkdir()
    b_dec = torch.full((256,), 30.0)
    tensors = {
        "W_enc": rows.T.contiguous(),
        "b_enc": torch.zeros(512),
        "W_dec": rows,
        "b_dec": b_dec,
    }
    about = LENS["metadata"] | {"hook_name": "blocks.1.hook_resid_post", "model_name": "pico"}
    cfg = LENS | {"d_in": 256, "d_sae": 512, "apply_b_dec_to_input": False, "metadata": about}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    write_tensors(folder / "sae_weights.safetensors", tensors)
    text = ["data=text", "data.paths=[text.jsonl]", "data.context=64"]
    evaluate.main(compose("evaluate", [f"dictionary={folder}", *text, *SMALL]))
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "Convention: nothing is subtracted from the input; no scale; every positive value" in said
    )
    assert "is above 1" in said and "With b_dec subtracted from the input it would be" in said
    record = json.loads(Path("evaluations/theirs/figures.json").read_text())
    assert record["figures"]["fvu"] > 1 and record["convention"].startswith("Convention: nothing")
    assert record["other_conventions"]["with b_dec subtracted from the input"]["fvu"] < 1e-3

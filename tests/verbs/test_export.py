"""`dictlearn export`: refuses before it works, compares before it keeps."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

import dictlearn
from dictlearn import config
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.ckpt.signature import signed
from dictlearn.config import compose
from dictlearn.dicts.plt import plt
from dictlearn.export.circuit_tracer import CircuitTracer
from dictlearn.export.features import FeatureExporter
from dictlearn.export.protocol import Exporter
from dictlearn.lm.load import read_info
from dictlearn.sparsity.topk import TopK
from dictlearn.verbs import export

DATA = {
    "_target_": "dictlearn.sources.tokens.text_windows",
    "_partial_": True,
    "paths": ["text.jsonl"],
    "context": 64,
    "held_out": 0.3,
}
SMALL = ["tokens=1024", "windows=4"]


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    """A run of transcoders of pico that were not trained, and its text."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [{"text": f"def f{i}(x):\n    return x + {i}\n" * 5} for i in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    saved(tmp_path / "runs/a/dictionary")
    return tmp_path / "runs/a"


def saved(folder, layers=None):
    dictionary = plt(
        read_info("pico"), partial(TopK, k=4), layers, n_features=48, k=4, unit_norm=False
    )
    training = signed({"model": "pico", "revision": None, "data": DATA})
    save_dictionary(dictionary.eval(), folder, training)


def test_a_run_is_exported_calibrated_and_read_back(run, capsys):
    assert export.main(compose("export", ["run=runs/a", "format=circuit_tracer", *SMALL])) == 0
    said = capsys.readouterr().err
    assert "topk as jumprelu" in said and "L0 16.00 -> " in said and "FVU" in said
    assert "read back on 512 held-out tokens: encode differs by 0.0e+00" in said
    again = dictlearn.load(run / "export/circuit_tracer")
    ours = dictlearn.load(run)
    assert torch.equal(again.encoder.W_enc, ours.encoder.W_enc)
    assert again.sparsity.name == "jumprelu" and again.provenance["model"] == "pico"
    weights = run / "export/circuit_tracer/layer_1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")  # another number, and a whole file
    with pytest.raises(ValueError, match=r"layer_1\.safetensors does not match its manifest"):
        dictlearn.load(run / "export/circuit_tracer")


def test_a_foreign_folder_can_be_exported_too(run):
    export.main(compose("export", ["run=runs/a", "format=circuit_tracer", *SMALL]))
    theirs = "dictionary=runs/a/export/circuit_tracer"
    text = ["data=text", "data.paths=[text.jsonl]", "data.context=64", "data.held_out=0.3"]
    job = compose("export", [theirs, "format=circuit_tracer", "output=again", *text, *SMALL])
    assert export.main(job) == 0
    assert dictlearn.load("again").sparsity.name == "jumprelu"


def refused(*overrides: str) -> str:
    with pytest.raises(ValueError) as error:
        export.main(compose("export", [*SMALL, *overrides]))
    return str(error.value)


def test_mistakes_are_told_before_any_work(run, monkeypatch):
    monkeypatch.setattr("dictlearn.verbs.opened.load_model", lambda *a, **k: 1 / 0)
    assert "want format=<" in refused("run=runs/a")
    assert "nothing to export" in refused("format=circuit_tracer")
    saved(run.parent / "b/dictionary", layers=[1, 2])
    assert "MLP of every layer" in refused("run=runs/b", "format=circuit_tracer")
    assert not (run.parent / "b/export").exists()


def test_text_for_one_half_only_is_too_little(run):
    message = refused("run=runs/a", "format=circuit_tracer", "tokens=64")
    assert message.startswith("tokens=64: ")


def test_what_reads_back_otherwise_is_not_kept(run, monkeypatch):
    whole = CircuitTracer.write

    def write(self, job, folder):
        job.dictionary.decoder.W_dec.mul_(1.001)
        whole(self, job, folder)
        job.dictionary.decoder.W_dec.div_(1.001)

    monkeypatch.setattr(CircuitTracer, "write", write)
    assert "reads back as something else" in refused("run=runs/a", "format=circuit_tracer")
    assert not (run / "export").exists()


@pytest.mark.parametrize("name", config.options("format"))
def test_every_format_is_an_exporter_of_its_name(name):
    exporter = export.build_exporter(compose("export", [f"format={name}"]))
    assert isinstance(exporter, Exporter | FeatureExporter) and exporter.name == name

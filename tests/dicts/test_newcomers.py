"""A new kind of feature and a new decoder, each one file and one yaml outside of this package.

`newcomers/` holds what a user writes: blocks of several dimensions with a sparsity of their own, and a
decoder of low rank. Nothing else knows of them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import dictlearn
from dictlearn import cli
from dictlearn.train import fused_adam
from dictlearn.verbs import train

THEIRS = Path(__file__).parent / "newcomers"
FOUND_IN = f"--config-dir={THEIRS / 'conf'}"
SMALL = [
    FOUND_IN,
    "steps=20",
    "batch_tokens=128",
    "source.buffer_tokens=1024",
    "source.lm_batch_windows=4",
    "data.context=64",
    "data.max_tokens=20000",
    "dict.n_features=96",
    "eval_tokens=512",
    "trainer=cpu",
    "callbacks.checkpoint.every_steps=10",
    *("~eval.baselines", "~eval.jacobian", "~eval.replacement", "~eval.downstream"),
]
KINDS = {
    "block_sae": ["dict=block_sae", "sparsity=block_topk", "dict.size=3", "dict.k=4"],
    "low_rank": ["dict=low_rank", "dict.rank=8", "dict.k=4"],
}


def command(folder: Path, verb: str, *arguments: str) -> int:
    """Exit status of `dictlearn <verb> ...`."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(folder)
        patch.syspath_prepend(str(THEIRS))
        patch.setattr(fused_adam, "SMALLEST", 0)  # gradients in factors, as of large dictionaries
        patch.setattr(train, "SAMPLE_TOKENS", 1024)
        patch.setattr(sys, "argv", ["dictlearn", verb, *arguments])
        cli.main()
    return exit_.value.code or 0  # type: ignore[return-value]


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "runs" / request.param
    work = folder.parent.parent
    assert command(work, "train", *SMALL, *KINDS[request.param], f"name={request.param}") == 0
    return folder


def test_it_trains_and_loads_with_its_norms_kept(run):
    figures = json.loads((run / "figures.json").read_text())["figures"]
    assert figures["fvu"] < 1.1 and figures["l0"] == pytest.approx(
        12 if "block" in run.name else 4, 0.2
    )
    dictionary = dictlearn.load(run)
    assert dictionary.kind == run.name and dictionary.W_dec.shape == (96, 256)
    norms = dictionary.decoder.norms()  # one number, which folding has changed
    torch.testing.assert_close(norms, norms[:, :1].expand_as(norms), rtol=1e-4, atol=0)
    if dictionary.kind == "block_sae":
        assert float(dictionary.W_dec.norm(dim=1).std()) > 1e-3  # of whole blocks, not of rows
        assert bool((dictionary.encode(torch.randn(4, 256)).values < 0).any())
    else:
        assert torch.linalg.matrix_rank(dictionary.W_dec) == 8


def test_it_resumes_to_the_bit(run, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "write_into", lambda *_: None)  # the first run has a report
    step = run / "checkpoints/step-10"
    assert command(tmp_path, "train", FOUND_IN, f"resume={step}", "name=cut") == 0
    again = dictlearn.load(tmp_path / "runs/cut").state_dict()
    for name, tensor in dictlearn.load(run).state_dict().items():
        assert torch.equal(tensor, again[name]), name


def test_it_is_planned(run, tmp_path, capsys):
    assert command(tmp_path, "plan", *SMALL, *KINDS[run.name]) == 0
    out = capsys.readouterr().out
    numbers = 96 * 256 + 96 + 256 + (96 * 256 if "block" in run.name else 8 * (96 + 256))
    assert f"{numbers:,}" in out and "memory, peak" in out


REFUSED = {
    "block_sae": {"saelens": "block_topk", "sparsify": "block_topk", "circuit_tracer": "block_sae"},
    "low_rank": {"circuit_tracer": "low_rank"},
}


def test_formats_that_cannot_hold_it_say_so_by_name(run, capsys):
    for format, name in REFUSED[run.name].items():
        assert command(run.parent.parent, "export", f"run={run}", f"format={format}") == 2
        said = capsys.readouterr().err
        assert f"format={format}: " in said and name in said
    assert not (run / "export").exists()
    if run.name == "block_sae":
        assert command(run.parent.parent, "features", f"run={run}") == 2
        assert "its block_topk features may be negative" in capsys.readouterr().err
        assert not (run / "features").exists()


OF_A_FRESH_PROGRAM = """
import sys
from dictlearn import cli
theirs, run, folder = sys.argv[1:]
sys.path.append(theirs)
for arguments in ([], [folder]):
    sys.argv = ["dictlearn", "lookup", run, "vector=one.safetensors", "output=found.json", *arguments]
    try:
        cli.main()
    except SystemExit as exit:
        print("status", exit.code, flush=True)
"""


def test_a_fresh_program_finds_it_by_the_yaml_of_its_user(run, tmp_path):
    if run.name != "block_sae":
        pytest.skip("the other one has a link and a sparsity to be found")
    save_file({"one": torch.ones(256)}, tmp_path / "one.safetensors")
    arguments = [str(THEIRS), f"run={run}", FOUND_IN]
    program = [sys.executable, "-c", OF_A_FRESH_PROGRAM, *arguments]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert re.findall("status (.)", done.stdout) == ["2", "0"], done.stderr
    assert "link 'blocks' is not one of" in done.stderr and "--config-dir" in done.stderr
    assert json.loads((tmp_path / "found.json").read_text())["features"]

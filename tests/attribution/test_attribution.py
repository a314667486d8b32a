"""circuit-tracer itself, on dictionaries trained and exported here: loaded, attributed, scored.

Needs the environment of `make test-attribution`, and beside it dictlearn's own: the two want
different versions of transformers, and meet through files alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.graph import Graph, compute_graph_scores
from circuit_tracer.utils.create_graph_files import create_graph_files
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
PICO = ROOT / "src" / "dictlearn" / "lm" / "pico"
DICTLEARN = os.environ.get("DICTLEARN_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
NAMES = ("plt", "clt", "tied")


@pytest.fixture(scope="session")
def ours(trained: Path) -> dict[str, torch.Tensor]:
    return load_file(trained / "ours.safetensors")


def close(theirs: torch.Tensor, ours: torch.Tensor, tolerance: float = 1e-5) -> None:
    error = (theirs - ours).abs().max() / ours.abs().max()
    assert float(error) <= tolerance


def test_pico_is_the_same_model_under_transformers_4(ours):
    """Its config.json is version 5's: rope_parameters, dtype."""
    model = AutoModelForCausalLM.from_pretrained(PICO, dtype=torch.float32)
    with torch.no_grad():
        close(model(ours["tokens"][None]).logits[0], ours["logits"], 1e-4)
    tokenizer = AutoTokenizer.from_pretrained(PICO)
    assert tokenizer.bos_token_id == 1  # not 0, which circuit-tracer takes for no BOS at all


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_it_encodes_and_decodes_as_we_do(name, lazy, trained, ours):
    folder = trained / name / "export" / "circuit_tracer"
    transcoders, _ = load_transcoder_from_hub(
        str(folder), device=torch.device("cpu"), lazy_encoder=lazy, lazy_decoder=lazy
    )
    x_SND = ours["x"].transpose(0, 1).contiguous()
    with torch.no_grad():
        code_SNF = transcoders.encode(x_SND)
        y_hat_TND = transcoders.decode(code_SNF, x_SND)
    wanted_SNF = ours[f"{name}/code"].transpose(0, 1)
    assert int((wanted_SNF > 0).sum()) > 100
    assert torch.equal(code_SNF > 0, wanted_SNF > 0)
    close(code_SNF, wanted_SNF)
    close(y_hat_TND, ours[f"{name}/y_hat"].transpose(0, 1))


SETTINGS = {  # as tests/attribution/ours.py sets them
    "free": {"freeze_attention": False},
    "attention": {"freeze_attention": True},
    "inner": {"constrained_layers": range(1, 3)},
    "direct": {"constrained_layers": range(4)},
}


@pytest.mark.parametrize("name", NAMES)
def test_interventions_do_what_ours_do(name, trained, ours):
    folder = trained / name / "export" / "circuit_tracer"
    cpu = torch.device("cpu")
    transcoders, _ = load_transcoder_from_hub(str(folder), device=cpu)
    model = ReplacementModel.from_pretrained_and_transcoders(
        str(PICO), transcoders, backend="nnsight", device=cpu, dtype=torch.float32
    )
    edits = [(int(s), int(p), int(f), v) for s, p, f, v in ours[f"{name}/edits"].tolist()]
    text = model.tokenizer.decode(ours["tokens"])  # free running takes a text alone
    assert model.tokenizer(text).input_ids == ours["tokens"].tolist()
    for setting, options in SETTINGS.items():
        logits, _ = model.feature_intervention(text, edits, **options)
        moved = (ours[f"{name}/{setting}"] - ours["logits"]).abs().max()
        assert float(moved) > 0.1, "the edits change something"
        close(logits[0], ours[f"{name}/{setting}"], 1e-4)


GRAPHS = {"all": None, "some": 200}  # feature nodes, as in tests/attribution/ours.py


@pytest.mark.parametrize("which", GRAPHS)
@pytest.mark.parametrize("name", NAMES)
def test_its_graphs_are_ours(name, which, trained, ours, tmp_path):
    """The same selection and zeros, edges within 1e-5 of the largest, the same pruning and JSON."""
    cpu, folder = torch.device("cpu"), trained / name / "export" / "circuit_tracer"
    transcoders, _ = load_transcoder_from_hub(str(folder), device=cpu, lazy_decoder=False)
    model = ReplacementModel.from_pretrained_and_transcoders(
        str(PICO), transcoders, backend="nnsight", device=cpu, dtype=torch.float32
    )
    graph = attribute(ours["tokens"], model, batch_size=16, max_feature_nodes=GRAPHS[which])
    key, slug = f"{name}/{which}", f"{name}-{which}"
    assert torch.equal(graph.active_features[graph.selected_features], ours[f"{key}/selected"])
    edges = graph.adjacency_matrix
    assert int((edges != 0).sum()) > 10_000
    assert torch.equal(edges != 0, ours[f"{key}/edges"] != 0)
    close(edges, ours[f"{key}/edges"])
    close(torch.tensor(compute_graph_scores(graph)), ours[f"{key}/scores"])

    create_graph_files(graph, slug, str(tmp_path), scan="here")
    theirs = json.loads((tmp_path / f"{slug}.json").read_text())
    mine = json.loads((trained / "ours" / f"{slug}.json").read_text())
    assert theirs.keys() == mine.keys() and theirs["qParams"] == mine["qParams"]
    assert theirs["metadata"].items() <= mine["metadata"].items()
    for part in ("nodes", "links"):
        assert len(theirs[part]) == len(mine[part]) > 20
        for one, other in zip(theirs[part], mine[part], strict=True):
            assert one.keys() == other.keys()
            for field, value in one.items():
                same = pytest.approx(value, rel=1e-4, abs=1e-5) if type(value) is float else value
                assert other[field] == same, (part, one, other)


def test_graphs_are_made_scored_and_reported(trained):
    run = trained / "clt"
    dictionaries = [f"{name}={trained / name / 'export' / 'circuit_tracer'}" for name in NAMES]
    prompts = trained / "prompts.json"
    prompts.write_text(json.dumps(["def add(first, second):\n    return first +", "import os\n"]))
    script = ROOT / "scripts" / "attribution_scores.py"
    command = [sys.executable, str(script), "--run", str(run), "--prompts", str(prompts)]
    subprocess.run([*command, "--max-feature-nodes", "512", *dictionaries], check=True)

    record = json.loads((run / "attribution.json").read_text())
    scores = record["dictionaries"]
    assert len(scores) == 2 * len(NAMES)
    for name in NAMES:
        found, shuffled = scores[name], scores[f"{name}, decoder shuffled"]
        assert 0 < found["replacement"] < 1 and 0 < found["completeness"] < 1
        assert len(found["prompts"]) == 2
        graph = Graph.from_pt(str(run / "graphs" / name / f"{name}-0.pt"))
        assert graph.adjacency_matrix.isfinite().all() and len(graph.active_features) > 10
        drawn = json.loads((run / "graphs" / name / f"{name}-0.json").read_text())
        assert drawn["links"]
        if name != "tied":  # which never trained
            assert found["replacement"] > shuffled["replacement"] + 0.05
            kinds = {node["feature_type"] for node in drawn["nodes"]}
            assert "cross layer transcoder" in kinds and "logit" in kinds

    paths = [str(ROOT / "src"), str(ROOT / "kernels")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [DICTLEARN, "-c", "from dictlearn.cli import main; main()", "report", f"run={run}"]
    subprocess.run(command, check=True, env=environment)
    page = (run / "report.html").read_text()
    assert "Attribution graphs" in page
    assert f"{scores['clt']['replacement']:.3f}" in page

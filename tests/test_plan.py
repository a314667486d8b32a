"""`dictlearn plan` counts right, finds what training would refuse, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

from dictlearn import config
from dictlearn.lm.costs import flops_per_token, weights
from dictlearn.lm.load import load_skeleton
from dictlearn.verbs import build, costs, machine, plan, processes
from dictlearn.verbs.machine import Machine
from dictlearn.verbs.units import as_bytes, si

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(*overrides: str) -> plan.Plan:
    return plan.planned(config.compose("plan", overrides))


def test_it_counts_what_a_real_dictionary_has() -> None:
    cfg = config.compose("plan", ["dict=skip_transcoder"])
    real = build.build_dictionary(cfg, build.build_info(cfg))
    count = sum(p.numel() for p in real.parameters())
    made = plan.planned(cfg)
    assert made.facts["parameters"] == f"{count:,}"
    assert made.facts["memory, optimiser"] == as_bytes(2 * 4 * count)  # Adam has two moments
    assert not made.mistakes


def test_the_models_flops_stop_at_the_last_site() -> None:
    """Two per weight of every matrix in the blocks that run: by hand from pico's config."""
    lm = load_skeleton("pico")
    c = lm.model.config
    attention = 2 * c.hidden_size * c.head_dim * (c.num_attention_heads + c.num_key_value_heads)
    block = attention + 3 * c.hidden_size * c.intermediate_size
    for layer in range(lm.info.n_layers):
        flops = flops_per_token(lm, lm.info, [f"mlp_in.{layer}"])
        assert flops == 2 * block * (layer + 1)


def test_whole_windows_need_no_shuffle_buffer() -> None:
    made = {name: planned(f"objective={name}") for name in ("mse", "mse_then_kl", "kl")}
    assert not any(plan.mistakes for plan in made.values())
    has = {name: "memory, shuffle buffer" in plan.facts for name, plan in made.items()}
    assert has == {"mse": True, "mse_then_kl": True, "kl": False}


def test_a_code_takes_what_its_sparsity_says() -> None:
    cfg = config.compose("plan", ["dict.k=8", "sparsity=multi_topk"])
    many, one = build.build_dictionary(cfg, build.build_info(cfg)), dict(cfg.sparsity)
    assert many.sparsity.entries(8) == 8 + 4 * 8 and one["wide"] == 4
    wide, narrow = (planned("dict.k=8", f"sparsity={name}") for name in ("multi_topk", "topk"))
    assert wide.facts["memory, codes"] != narrow.facts["memory, codes"]


def test_a_sparsity_that_does_not_say_what_it_stores_is_not_planned() -> None:
    found = planned("sparsity=relu", "sparsity._target_=tests.sparsity.sparsemax.Sparsemax")
    assert found.mistakes == {
        "cost": "sparsity=sparsemax: its class doesn't say how many entries of each token it stores; "
        "want Sparsemax.entries"
    }


MISTAKES = {
    "dictionary": ["dict.layer=4"],
    "source": ["source.buffer_tokens=1024"],
    "configuration": ["trainer=cpu", "model.device=gpu0"],
    "text files": ["data=text", "data.paths=[absent.txt]"],
    "context": ["data.context=1"],
    "run folder": ["resume=absent"],
    "model": ["model=./absent", "data=stdlib"],
    "text": ["model=./absent"],
    "init": ["init=./absent"],
}


@pytest.mark.parametrize(("name", "overrides"), MISTAKES.items(), ids=MISTAKES.keys())
def test_it_finds_what_training_would_refuse(
    name: str, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config.compose("plan", overrides)
    assert list(plan.planned(cfg).mistakes)[0] == name
    assert plan.main(cfg) == 2
    assert f"{name}: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "device" in planned("model.device=cuda").mistakes


def test_the_flagship_needs_no_weights_no_hub_and_no_gpu(capsys, monkeypatch) -> None:
    monkeypatch.setattr(plan, "planned", functools.cache(plan.planned))  # main's is the same one
    flagship = ["model=qwen3_4b", "data=stdlib", "dict=clt", "trainer=ddp", "trainer.devices=8"]
    cfg = config.compose("plan", flagship)
    made = plan.planned(cfg)
    assert set(made.mistakes) <= {"device", "disk", "memory"}  # of this machine
    assert made.facts["parameters"] == "5,662,930,716"
    assert [one.gpu.name for one in made.predictions] == ["H200", "H100 80GB", "A100 80GB"]
    plan.main(cfg)
    out = capsys.readouterr().out
    for words in (
        "memory, gradients",
        "memory, peak, each device",
        "tokens/s at most",
        "dict.window=",
    ):
        assert words in out


@pytest.mark.parametrize(
    ("devices", "count"), [("8", 8), ("'0,1'", 2), ("[0,1,2]", 3), ("auto", 1), ("-1", 1)]
)
def test_devices_in_lightnings_words(
    devices: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert processes.count(config.compose("plan", [f"trainer.devices={devices}"])) == count


def test_no_devices() -> None:
    assert "trainer.devices=0" in planned("trainer.devices=0").mistakes["devices"]


def test_it_plans_without_a_language_model() -> None:
    made = planned("source=synthetic", "dict.n_features=64", "dict.k=4")
    assert not made.mistakes
    assert "memory, language model" not in made.facts


def test_numbers_are_short() -> None:
    assert [si(n) for n in (0, 999, 1000, 1.2345e9)] == ["0 ", "999 ", "1 k", "1.23 G"]


@pytest.mark.parametrize(
    ("overrides", "gpu_here", "device"),
    [
        ([], True, "auto"),  # load_model's own: cuda:<rank>
        ([], False, "cpu"),
        (["trainer=cpu"], True, "cpu"),
        (["trainer=gpu"], True, "auto"),
        (["trainer=cpu", "model.device=cuda:1"], True, "cuda:1"),
    ],
)
def test_the_model_goes_where_the_trainer_is(
    overrides: list[str], gpu_here: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu_here)
    cfg = config.compose("train", overrides)
    assert build.model_device(cfg) == device
    bytes_a_parameter = 4 if device == "cpu" else 2
    assert costs.model_bytes(cfg, on_gpu=device != "cpu") == bytes_a_parameter


LAPTOP = Machine(cores=2, memory=24e9, free=1e12, flops=1e11, bandwidth=1e10)
SERVER = Machine(cores=64, memory=1e12, free=1e12, gpus=(("NVIDIA H200", 150e9),))


def test_what_would_be_killed_here_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    flagship = config.compose("plan", ["model=qwen3_4b", "data=stdlib", "dict=clt", "name=x"])
    here = plan.planned(flagship, LAPTOP)
    assert list(here.mistakes) == ["memory"]
    assert "2 cores, 24 GB of memory, no GPU" in here.mistakes["memory"]
    assert "would be killed" in here.mistakes["memory"]
    there = plan.planned(flagship, SERVER)
    assert not there.mistakes and there.predictions[0].remedy == ""
    assert there.predictions[0].gpu.name == "NVIDIA H200"
    full = plan.planned(flagship, dataclasses.replace(SERVER, free=1e9))
    assert list(full.mistakes) == ["disk"]


@pytest.mark.parametrize("name", ["A10", "l4", "4090", "a100", "H100", "B200"])
def test_a_gpu_can_be_named(name: str) -> None:
    """Its own line alone, whatever is here; small GPUs have no room for a large model's dictionary."""
    made = plan.planned(config.compose("plan", [f"gpu={name}", "trainer=gpu"]), LAPTOP)
    assert not made.mistakes
    (line,) = made.speeds()
    assert "the run takes" in line and line.endswith(": fits")
    wide = ["model=gpt2", "data=stdlib", "dict.n_features=2000000"]
    large = plan.planned(config.compose("plan", [f"gpu={name}", *wide]), SERVER)
    assert ("memory" in large.mistakes) is (name in ("A10", "l4", "4090"))
    if large.mistakes:
        assert large.mistakes["memory"].startswith(f"gpu={name.upper()}: the run takes ")
        assert "dict.n_features=" in large.mistakes["memory"]


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    found = machine.this_machine(tmp_path / "not" / "there" / "yet")
    assert found.cores >= 1 and found.memory > 2**28 and found.free > 0
    assert found.gpus or (found.flops > 1e8 and found.bandwidth > 1e8)


def test_a_cpus_speed_is_that_of_idle_cores() -> None:
    """Where other programs keep them busy, that is said."""
    small = config.compose("plan", ["debug=fast", "trainer=cpu"])
    (idle,) = plan.planned(small, LAPTOP).speeds()
    assert idle.startswith("CPU, on idle cores: ")
    (busy,) = plan.planned(small, dataclasses.replace(LAPTOP, load=3.52)).speeds()
    assert busy.startswith("CPU, on idle cores (the load on these 2 is 3.5 now): ")


@pytest.mark.parametrize(
    ("sparsity", "has_k"),
    [("topk", True), ("batchtopk", True), ("jumprelu", True), ("abstopk", True), ("relu", False),
     ("gated", False), ("jumprelu_tanh", False)],
)  # fmt: skip
def test_k_is_shown_where_something_aims_at_it(sparsity: str, has_k: bool) -> None:
    made = planned(f"sparsity={sparsity}", "trainer=cpu")
    assert made.facts["dictionary"].endswith(", k = 32" if has_k else "features per source")


def test_two_models_are_counted_both():
    one = load_skeleton("pico")
    two = load_skeleton("pico", other="pico")
    assert weights(two) == 2 * weights(one)
    both = flops_per_token(two, two.info, ["resid_post.1", "other/resid_post.2"])
    apart = [flops_per_token(one, one.info, [f"resid_post.{i}"]) for i in (1, 2)]
    assert both == sum(apart)


def test_a_run_folder_is_one_word_however_long(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = f"runs/{'long_' * 30}name"
    plan.main(config.compose("plan", ["debug=fast", "trainer=cpu", f"run_dir={folder}"]))
    assert f"run folder: {folder}\n" in capsys.readouterr().out


def test_steps_too_short_to_time_have_no_rate() -> None:
    (tiny,) = planned("gpu=H200", "debug=fast", "dict.n_features=64", "dict.k=4").speeds()
    assert "the run takes under a second of computing, in steps too short" in tiny
    assert "tokens/s" not in tiny
    large = planned("gpu=H200", "batch_tokens=65536", "dict.n_features=131072", "steps=3000")
    assert "tokens/s at most, the run takes" in large.speeds()[0]

"""What a plan says of memory and parameters is what a training step has: measured on pico."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from dictlearn_kernels.topk_encode.compiled import largest

import dictlearn
from dictlearn import config
from dictlearn.lm.load import load_skeleton
from dictlearn.verbs import build, costs, gpus, train
from dictlearn.verbs.predictions import predictions, remedies
from tests.peak import Peak

SMALL = [
    "steps=3",
    "source.buffer_tokens=4096",
    "source.lm_batch_windows=4",
    "data=text",
    "trainer=cpu",
    "callbacks=null",
    "logger=null",
]


@pytest.fixture(scope="module", autouse=True)
def _loops_are_compiled():
    """What numba compiles a loop for, once a machine, it keeps until the next collection."""
    largest(torch.randn(2, 64), 1)
    gc.collect()


KINDS = {
    **{kind: [f"dict={kind}"] for kind in ("sae", "plt", "clt", "crosscoder", "molt")},
    "large molt": ["dict=molt", "dict.n=32"],  # large enough that its gradients' memory is kept
}


@pytest.mark.parametrize("all_dead", [False, True], ids=["none dead", "all dead"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_of_a_step(kind: str, all_dead: bool, tmp_path: Path):
    said, measured = memory_of_steps(KINDS[kind], all_dead, tmp_path)
    assert said.peak == pytest.approx(measured, rel=0.1), (said.phase, said.parts)


@pytest.mark.parametrize("sparsity", ["relu", "gated", "jumprelu", "jumprelu_tanh"])
def test_the_memory_of_the_first_steps_with_a_threshold(sparsity: str, tmp_path: Path):
    """Half of all features fire, or nearly all; what a code takes then depends on the terms."""
    said, measured = memory_of_steps([f"sparsity={sparsity}"], False, tmp_path)
    assert 0.85 * measured < said.peak < 1.5 * measured, (said.phase, said.parts)


def memory_of_steps(
    overrides: list[str], all_dead: bool, tmp_path: Path
) -> tuple[costs.Memory, float]:
    """(what is planned, measured peak bytes of tensors over whole steps, reading included)."""
    text = sorted(Path(dictlearn.__file__).parent.rglob("*.py"))[:20]
    paths = f"data.paths=[{','.join(map(str, text))}]"
    cfg = config.compose("train", [*SMALL, *overrides, f"run_dir={tmp_path}", paths])
    info = build.build_info(cfg)
    dictionary = build.build_dictionary(cfg, info)
    beside = build.build_beside(cfg, dictionary)
    training = build.build_training(cfg, dictionary, beside)
    for _, trainee in training.named_trainees():
        trainee.dead_after = 0 if all_dead else 10**9
    lm = build.build_model(cfg)
    assert lm is not None
    source = build.build_source(cfg, lm, dictionary, "train")
    before = [*training.parameters(), *training.buffers(), *lm.model.parameters()]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in before}
    with Peak() as peak:
        train.fit(cfg, training, source, None)
    measured = sum(storages.values()) + peak.most

    skeleton = load_skeleton("pico")
    with torch.device("meta"):
        planned = build.build_dictionary(cfg, info)
        planned_beside = tuple(build.build_beside(cfg, planned).values())
    run = costs.Run(cfg, planned, planned_beside, skeleton, info)
    said = costs.memory(run, on_gpu=False, dead=float(all_dead))
    assert costs.count(planned) == sum(p.numel() for p in dictionary.parameters())
    assert said.parts["weights"] == 4 * sum(p.numel() for p in training.parameters())
    return said, measured


def planned_run(*overrides: str) -> costs.Run:
    cfg = config.compose("plan", overrides)
    lm = load_skeleton(cfg.model.path)
    with torch.device("meta"):
        dictionary = build.build_dictionary(cfg, lm.info)
    return costs.Run(cfg, dictionary, (), lm, lm.info)


FLAGSHIP = ("model=qwen3_4b", "dict=clt")


def test_the_flagship_fits_one_h200():
    run = planned_run(*FLAGSHIP)
    layers, width, features = 36, 2560, 3151
    maps = layers + layers * (layers + 1) // 2
    count = features * maps * width + layers * features + layers * width
    assert costs.count(run.dictionary) == count
    said = costs.memory(run, on_gpu=True)
    assert said.parts["weights"] + said.parts["optimiser"] == 12 * count
    assert said.parts["gradients"] == 4 * (layers * features + layers * width)  # biases'
    rows = 65536 // 2 * 15 // 8  # what a buffer that refills at half ever holds
    rows += run.cfg.source.lm_batch_windows * run.cfg.data.context  # and a read ahead
    assert said.parts["shuffle buffer"] == rows * (2 * layers * width * 2 + 16)
    verdicts = {one.gpu.name: one.remedy for one in predictions(run, 1, gpus.SHOWN)}
    assert verdicts["H200"] == ""
    assert "dict.n_features=" in verdicts["A100 80GB"] and "tied=true" in verdicts["A100 80GB"]
    assert costs.memory(run, on_gpu=True, dead=1.0).peak < gpus.GPUS["H200"].memory


@pytest.mark.parametrize("gpu", gpus.SHOWN, ids=lambda gpu: gpu.name)
def test_a_remedy_is_one(gpu: gpus.Gpu):
    """Every way offered makes room, and one feature or target more would not."""
    large = (*FLAGSHIP, "batch_tokens=8192", "dict.n_features=8192")
    run = planned_run(*large)
    offered = remedies(run, gpu, 1)
    assert offered.count("|") >= 2
    for way in offered.split(" | "):
        changed = planned_run(*large, *way.split())
        assert costs.memory(changed, on_gpu=True).peak <= gpu.room
        *rest, last = way.split()
        key, _, value = last.partition("=")
        if key in ("dict.n_features", "dict.window"):
            more = [*rest, f"{key}={int(value) + 1}"]
            over = planned_run(*large, *more)
            assert costs.memory(over, on_gpu=True).peak > gpu.room


def test_together_devices_need_the_gradients_that_one_keeps_in_factors():
    run = planned_run(*FLAGSHIP)
    one, eight = (costs.memory(run, on_gpu=True, devices=n) for n in (1, 8))
    dense = 4 * costs.count(run.dictionary)
    assert eight.parts["gradients"] == eight.parts["reduction buckets"] == dense
    assert one.parts["gradients"] < dense / 1000
    alone, together = (predictions(run, n, gpus.SHOWN)[0] for n in (1, 8))
    assert 2 < together.tokens_per_second / alone.tokens_per_second < 8


def test_the_optimiser_limits_small_batches_and_large_ones_spread_it():
    small, large = (planned_run(*FLAGSHIP, f"batch_tokens={n}") for n in (256, 2048))
    assert predictions(small, 1, gpus.SHOWN)[0].limit == "optimiser"
    ratio = costs.work(small)["optimiser"].moved / costs.work(large)["optimiser"].moved
    assert ratio == pytest.approx(8)


@pytest.mark.parametrize("moments, width", [("float32", 4), ("bfloat16", 2), ("8bit", 1)])
def test_moments_take_what_they_are_stored_in(moments, width):
    run = planned_run(*FLAGSHIP, f"optim.moments={moments}")
    per_number = costs.memory(run, on_gpu=True).parts["optimiser"] / costs.count(run.dictionary)
    assert 2 * width <= per_number < 2.05 * width


def test_a_mixture_costs_a_token_its_own_experts():
    run = planned_run("model=gpt_oss_20b", "dict=transcoder", "dict.layer=23")
    active = costs.work(run)["language model"].flops / 2
    assert 2.5e9 < active < 3.6e9  # 3.6B active parameters, embeddings among them
    assert run.lm is not None and costs.count(run.lm.model) > 20e9

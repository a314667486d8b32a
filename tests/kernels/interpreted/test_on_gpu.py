"""Training on a GPU takes the steps of a CPU, and the host hardly waits; a pretended one will do."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from dictlearn_kernels import rounded, topk_encode
from dictlearn_kernels.topk_encode import groups
from lightning.fabric.utilities import move_data_to_device

from dictlearn.train import fused_adam
from dictlearn.train.fused_adam import FusedAdam, Moments
from dictlearn.train.module import DictionaryTraining
from dictlearn.types import Batch
from tests.dictionaries import SPARSITIES
from tests.kernels.interpreted.conftest import INTERPRETED
from tests.pretend_gpu import PretendGPU, pretend_gpu
from tests.train.test_fused_adam import SHAPES, batches, training

STEPS = 2
# How often the host may wait in one step. Top-k: for how many rows are flagged, for how many features
# are dead, for the gradient's norm; with several layers, for where their entries end.
WAITS = {"sae": 3, "free": 3, "plt": 3, "clt": 4, "concat": 3, "sum": 3}


def gpu() -> AbstractContextManager[PretendGPU | None]:
    """A pretended one, or None: the one that is there."""
    return pretend_gpu() if INTERPRETED else nullcontext()


@pytest.fixture(autouse=True)
def _small_sizes_are_served(monkeypatch):
    monkeypatch.setattr(fused_adam, "SMALLEST", 0)
    monkeypatch.setattr(topk_encode, "taken", lambda k, dtype: k + 2)
    monkeypatch.setattr(groups, "LOST", 1.0)


def moved(batch: Batch, device: str) -> Batch:
    return move_data_to_device(batch.rows(0, 16), torch.device(device))


def take_steps(
    run: DictionaryTraining, given: list[Batch], gpu: PretendGPU | None = None
) -> tuple[list[float], list[str]]:
    """(losses, where the host waited in the last step): a trainer's calls, without one."""
    trainer = SimpleNamespace(
        global_step=0,
        log_every_n_steps=0,
        world_size=1,
        precision="32-true",
        accumulate_grad_batches=1,
    )
    run._trainer = trainer  # type: ignore[assignment]
    optimiser = run.configure_optimizers()["optimizer"]
    losses = []

    def closure() -> torch.Tensor:
        loss = run.training_step(given[len(losses)], len(losses))
        loss.backward()
        run.on_before_optimizer_step(optimiser)
        losses.append(loss.detach())
        return loss

    for i in range(len(given)):
        if gpu is not None:
            gpu.forget()
        run.optimizer_step(0, i, optimiser, closure)
        trainer.global_step += 1
    waits = [] if gpu is None else list(gpu.waits)
    return [float(loss.cpu()) for loss in losses], waits


def both(kind: str, sparsity: str, moments: Moments = "float32"):
    """((losses, what was trained and saved) on a CPU, the same on a GPU, waits of a step)."""
    shape, optimiser = SHAPES[kind], partial(FusedAdam, lr=1e-2, moments=moments)
    given = batches(shape, STEPS)
    results = []
    for device in ("cpu", "cuda"):
        with nullcontext() if device == "cpu" else gpu() as pretended:
            run = training(shape, optimiser, sparsity, clip_norm=0.5).to(device)
            losses, waits = take_steps(run, [moved(batch, device) for batch in given], pretended)
            trained = run.trainee()
            frozen = trained.inference_form(lambda: [moved(given[0], device)])  # noqa: B023
            state = {f"trained {name}": t for name, t in trained.state_dict().items()}
            state |= {f"frozen {name}": t for name, t in frozen.state_dict().items()}
            assert {t.device.type for t in state.values()} == {device}
            results.append((losses, {name: t.cpu() for name, t in state.items()}))
    return *results, waits


@pytest.mark.parametrize(
    "kind, sparsity",
    [*((kind, "topk") for kind in SHAPES), *(("sae", sparsity) for sparsity in SPARSITIES)],
)
def test_a_gpu_takes_the_steps_of_a_cpu(kind, sparsity):
    (losses, state), (ours, other), waits = both(kind, sparsity)
    assert ours == pytest.approx(losses, rel=1e-4)
    for name, expected in state.items():
        torch.testing.assert_close(other[name], expected, rtol=1e-3, atol=1e-4, msg=name)
    if sparsity == "topk" and kind in WAITS:
        assert len(waits) <= WAITS[kind], waits


@pytest.mark.parametrize("moments", ["bfloat16", "8bit"])
def test_small_moments_stay_on_the_gpu(moments):
    """They are rounded by chance, so two devices agree roughly."""
    (losses, _), (ours, _), _ = both("sae", "topk", moments)
    assert ours == pytest.approx(losses, rel=1e-2)


@pytest.mark.parametrize("kind, matrices", [("sae", 2), ("plt", 2), ("sum", 2), ("clt", 1 + 3)])
def test_the_optimiser_launches_a_kernel_for_each_source_not_for_each_pair(kind, matrices):
    """The CLT's 3 sources have 6 pairs; encoder and other decoders are one matrix or read together."""
    if not INTERPRETED:
        pytest.skip("about the pretended one")
    with pretend_gpu() as gpu:
        run = training(SHAPES[kind], partial(FusedAdam, lr=1e-2), clip_norm=0.5).to("cuda")
        take_steps(run, [moved(batch, "cuda") for batch in batches(SHAPES[kind], 1)], gpu)
        for kernel in ("measure_kernel", "update_kernel"):
            assert gpu.launches.count(kernel) == matrices


@pytest.mark.parametrize("kind, sources", [("sae", 1), ("clt", 3)])
@pytest.mark.parametrize("sparsity", ["topk", "jumprelu"])
def test_the_optimiser_rounds_the_encoder_for_the_next_selection(kind, sources, sparsity):
    if not INTERPRETED:
        pytest.skip("about the pretended one")
    with pretend_gpu() as gpu:
        run = training(SHAPES[kind], partial(FusedAdam, lr=1e-2), sparsity, clip_norm=0.5).to(
            "cuda"
        )
        given = [moved(batch, "cuda") for batch in batches(SHAPES[kind], 2)]
        for n_steps, n_rounded in ((1, 2), (2, 1)):  # the first finds no copy; W_enc and x, then x
            take_steps(run, given[:n_steps], gpu)
            assert gpu.launches.count("rounded_kernel") == n_rounded * sources
        W_enc = run.trainee().dictionary.encoder.W_enc
        copy = rounded.rounded(W_enc.detach().flatten(0, 1), torch.float16)
        with torch.no_grad():
            kept = rounded.rounded(W_enc.flatten(0, 1), torch.float16)
            assert all(torch.allclose(a.cpu(), b.cpu()) for a, b in zip(kept, copy, strict=True))
            assert gpu.launches.count("rounded_kernel") == n_rounded * sources + 1
            W_enc.mul_(2)
            rounded.rounded(W_enc[0], torch.float16)  # it has been written to: rounded anew
            assert gpu.launches.count("rounded_kernel") == n_rounded * sources + 2


def test_what_a_gpu_would_refuse_is_refused():
    if not INTERPRETED:
        pytest.skip("about the pretended one")
    with pretend_gpu() as gpu:
        x = torch.randn(4, 3, device="cuda")
        assert x.is_cuda and (x @ x.T).device.type == "cuda" and x.cpu().device.type == "cpu"
        with pytest.raises(RuntimeError, match="add: expected all tensors to be on the same"):
            _ = x + torch.ones(3)
        x += torch.tensor(1.0)  # a number may come from anywhere
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        gpu.forget()
        assert float(x[x > 0].sum()) > 0
        assert [wait.split()[0] for wait in gpu.waits] == ["index", "_local_scalar_dense"]
        x.nonzero()
        assert gpu.waits[-1].startswith("nonzero at tests/kernels/interpreted/test_on_gpu.py:")
        weights = torch.nn.Linear(3, 2).to("cuda")
        weights(x).square().sum().backward()
        assert weights.weight.grad is not None and weights.weight.grad.is_cuda

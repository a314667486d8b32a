"""Races of single operations: ours as a training step calls them, beside plain torch.

Forward and backward pass together where an operation has one. Both sides of an operation hold the same
tensors and take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from dictlearn_kernels import dispatch
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.sparse_decode import sparse_decode
from dictlearn_kernels.transforms import transform
from peers.speed import Lap, Race, synchronise
from torch import Tensor

from benches import machine
from benches.cases import OURS, OURS_FLOAT32, PER_N, Case
from benches.contestants import configuration, random_batch
from benches.dense import DenseMOLT, active
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.train.fused_adam import FusedAdam
from dictlearn.types import ModelInfo
from dictlearn.verbs import build

TORCH = "torch"
SAMPLE_SECONDS = 0.3

SIZES = {
    "cpu": Case("op", "cpu", "sae", 2048, 512, 8192, 32),
    "cuda": Case("op", "cuda", "sae", 4096, 2304, 65536, 64),
}
SMALL = {"B": 64, "D": 32, "F": 256, "k": 4}
MOLTS = {
    "cpu": Case("op", "cpu", "molt", 2048, 768, 8 * PER_N, 16),
    "cuda": Case("op", "cuda", "molt", 8192, 2304, 10 * PER_N, 16),
}

Run = Callable[[], object]
Sides = dict[str, Run]


@dataclass(frozen=True)
class Code:
    """A random code at the size of a case, and what it multiplies."""

    pattern: Pattern
    values: Tensor
    W_CD: Tensor
    x_RD: Tensor
    g_RD: Tensor

    def dense(self) -> Tensor:
        return self.pattern.dense(self.values.detach())


def random_code(case: Case) -> Code:
    """k features of every token, drawn without regard to how often each fires."""
    N, F, D = case.tokens, case.features, case.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        columns = torch.rand(N, F).topk(case.k, dim=1).indices.sort(dim=1).values.flatten()
        values, W_CD = torch.rand(N * case.k), torch.randn(F, D) / D**0.5
        x_RD, g_RD = torch.randn(2, N, D)
    starts = torch.arange(0, N * case.k + 1, case.k)
    on = [t.to(case.device) for t in (starts, columns, values, W_CD, x_RD, g_RD)]
    return Code(Pattern(on[0], on[1], F), on[2].requires_grad_(), on[3].requires_grad_(), *on[4:])


def built(case: Case, who: str, *overrides: str) -> Dictionary:
    cfg = configuration(case, who, 1, *overrides)
    dictionary = build.build_dictionary(
        cfg, ModelInfo("random", None, "random", 1, case.width, 0, 0)
    )
    dictionary.encoder.matmul_dtype = torch.float32 if who == OURS_FLOAT32 else None
    return dictionary.to(case.device)


def topk_encode(case: Case, who: str = OURS) -> Sides:
    """Selection of k features of every token, from activations to a sparse code.

    Ours by the matmul that a training run takes (float16 on a GPU, 16-bit fixed point on most CPUs) and
    exactly; torch's in float32.
    """
    dictionary, x_NSD = built(case, who), random_batch(case).x_NSD
    W_FD, b_F = dictionary.encoder.W_enc[0], dictionary.encoder.b_enc[0]

    @torch.no_grad()
    def plain() -> Tensor:
        return active(torch.addmm(b_F, x_NSD[:, 0], W_FD.T), case.k)

    return {OURS: lambda: dictionary.encode_training(x_NSD), TORCH: plain}


def topk_encode_float32(case: Case) -> Sides:
    """The same by a matmul in float32."""
    return topk_encode(case, OURS_FLOAT32)


def threshold_encode(case: Case) -> Sides:
    """Selection of what exceeds a threshold, at which k features of a token do so on average."""
    x_NSD = random_batch(case).x_NSD
    calibrated = built(case, OURS, "sparsity=batchtopk").inference_form(lambda: [x_NSD])
    assert isinstance(calibrated.sparsity, JumpReLU)
    threshold_F = calibrated.sparsity.threshold_SF[0]
    W_FD, b_F = calibrated.encoder.W_enc[0], calibrated.encoder.b_enc[0]

    @torch.no_grad()
    def ours() -> object:
        return calibrated.encode(x_NSD)

    @torch.no_grad()
    def plain() -> Tensor:
        pre_NF = torch.addmm(b_F, x_NSD[:, 0], W_FD.T)
        return torch.where(pre_NF > threshold_F, pre_NF, 0)

    return {OURS: ours, TORCH: plain}


def decode(case: Case) -> Sides:
    """A reconstruction, its squared error, and their gradients in values and decoder."""
    code = random_code(case)

    def gradients(y_RD: Tensor, values: Tensor) -> object:
        return torch.autograd.grad((y_RD - code.x_RD).square().sum(), [values, code.W_CD])

    def ours() -> object:
        return gradients(sparse_decode(code.pattern, code.values, code.W_CD), code.values)

    def plain() -> object:
        dense = code.dense().requires_grad_()
        return gradients(dense @ code.W_CD, dense)

    return {OURS: ours, TORCH: plain}


def weight_gradients(case: Case) -> Sides:
    """The gradients of decoder and encoder, for the first time in a step: the sort is in it."""
    code = random_code(case)
    values = code.values.detach()

    def ours() -> object:
        pattern = Pattern(code.pattern.row_starts, code.pattern.columns, case.features)
        products = (code.g_RD, code.x_RD)
        return [pattern.transposed_matmul(values, right_RD) for right_RD in products]

    def plain() -> object:
        dense = code.dense()
        return dense.T @ code.g_RD, dense.T @ code.x_RD

    return {OURS: ours, TORCH: plain}


def adam(case: Case) -> Sides:
    """A step of Adam on matrices of a dictionary's size whose gradients are there."""
    matrices = [torch.randn(1, case.features, case.width, device=case.device) for _ in range(2)]
    parameters = [torch.nn.Parameter(matrix) for matrix in matrices]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    own, plain = FusedAdam(parameters), torch.optim.Adam(parameters)
    return {OURS: own.step, TORCH: plain.step}


def transforms(case: Case) -> Sides:
    """A MOLT's active transforms, forward and backward, beside the product over all of them."""
    case = MOLTS[case.device].resized(SMALL if case.tokens == SMALL["B"] else {})
    model = DenseMOLT(case).to(case.device)
    x_NSD = random_batch(case).x_NSD
    U, V = list(model.U), list(model.V)
    with torch.no_grad():
        gates_NC = active(x_NSD[:, 0] @ model.W_gate.T + model.b_gate, case.k)
    starts = torch.nn.functional.pad((gates_NC > 0).sum(1).cumsum(0), (1, 0))
    columns = (gates_NC > 0).nonzero()[:, 1]
    values = gates_NC[gates_NC > 0].requires_grad_()

    def ours() -> object:
        pattern = Pattern(starts, columns, case.features)
        y_ND = transform(pattern, values, x_NSD[:, 0], U, V)
        return torch.autograd.grad(y_ND.sum(), [values, *U, *V])

    def plain() -> object:
        return torch.autograd.grad(model(x_NSD).sum(), [*U, *V])

    return {OURS: ours, TORCH: plain}


OPS: dict[str, Callable[[Case], Sides]] = {
    op.__name__: op
    for op in (
        topk_encode,
        topk_encode_float32,
        threshold_encode,
        decode,
        weight_gradients,
        adam,
        transforms,
    )
}


def race_ops(
    device: str, names: list[str] | None, rounds: int, quick: bool
) -> Iterator[dict[str, Any]]:
    """One record an operation."""
    for name in names or OPS:
        if name not in OPS:
            raise ValueError(f"--cases {name}: of operations want some of {', '.join(OPS)}")
        case = SIZES[device].resized(SMALL) if quick else SIZES[device]
        dispatch.forget()
        watch, race = machine.Watch(), Race({}, 0, 0)
        sides = OPS[name](case)
        calls = {who: 1 if quick else sample_calls(run) for who, run in sides.items()}
        for _ in range(rounds):
            for who, run in sides.items():
                with Lap(race, who, calls[who]):
                    for _ in range(calls[who]):
                        run()
        summary = race.summary()
        yield {
            "part": "op",
            "op": name,
            "device": device,
            "size": case.size,
            "others": round(watch.share(), 4),
            "a_call": summary,
            "times_ours": summary[TORCH]["median_ms"] / summary[OURS]["median_ms"],
            "ran": dispatch.summary(),
        }


def sample_calls(run: Run) -> int:
    """How many calls make a sample; the first of two warms up."""
    run()
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return min(200, max(1, round(SAMPLE_SECONDS / (time.perf_counter() - start))))


def line(record: dict[str, Any]) -> str:
    ours, plain = (record["a_call"][who]["median_ms"] for who in (OURS, TORCH))
    return (
        f"{record['op']:20s} {ours:10.3f} ms, torch {plain:10.3f} ms, "
        f"{record['times_ours']:.2f} times ours"
    )

"""A whole CLT training step, ours beside dense autograd, on random activations.

    python scripts/bench_clt.py                    # L=4 and L=12; needs 14 GB of memory
    python scripts/bench_clt.py --sizes 4x256x2048

Sizes are layers x width x features a layer. Both take the same batch, have the same parameters, k
features a token and layer by top-k, the summed squared error of all targets, gradients clipped at
norm 1 and torch's fused Adam. The dense one is what one writes without sparse kernels: a matmul for
every source and target over codes that are mostly zero, and autograd. The two take turns, each
alone in memory; times are wall clock, the table says how many rounds. No feature counts as dead.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dictlearn.config import compose
from dictlearn.train.module import parameter_groups
from dictlearn.types import Batch, ModelInfo
from dictlearn.verbs import build

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results


class DenseCLT(nn.Module):
    """The equation of a cross-layer transcoder in dense tensors."""

    def __init__(self, n_layers: int, width: int, n_features: int, k: int):
        super().__init__()
        self.k = k
        self.W_enc = nn.Parameter(torch.randn(n_layers, n_features, width) / width**0.5)
        self.b_enc = nn.Parameter(torch.zeros(n_layers, n_features))
        self.W_dec = nn.ParameterList(
            torch.randn(target + 1, n_features, width) / width**0.5 for target in range(n_layers)
        )
        self.b_dec = nn.Parameter(torch.zeros(n_layers, width))

    def forward(self, x_NSD: Tensor) -> Tensor:
        pre = [x @ W.T + b for x, W, b in zip(x_NSD.unbind(1), self.W_enc, self.b_enc, strict=True)]
        codes = []
        for pre_NF in pre:
            values, features = pre_NF.relu().topk(self.k, dim=1)
            codes.append(torch.zeros_like(pre_NF).scatter(1, features, values))
        targets = [
            sum(code @ W for code, W in zip(codes, W_SFD, strict=False)) + b
            for W_SFD, b in zip(self.W_dec, self.b_dec, strict=True)
        ]
        return torch.stack(targets, dim=1)


Step = Callable[[], None]


def dense(layers: int, width: int, features: int, k: int, batch: Batch) -> Step:
    model = DenseCLT(layers, width, features, k)
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        adam.zero_grad()
        error = (model(batch.x_NSD) - batch.y_NTD).square().sum() / len(batch.x_NSD)
        error.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()

    return step


def ours(layers: int, width: int, features: int, k: int, batch: Batch) -> Step:
    options = [f"dict.n_features={features}", f"dict.k={k}", "beside=false", "optim.lr=1e-4"]
    cfg = compose("train", ["dict=clt", "trainer=cpu", "name=bench", *options])
    info = ModelInfo("random", None, "random", layers, width, 0, 0)
    dictionary = build.build_dictionary(cfg, info)
    training = build.build_training(cfg, dictionary)
    trainee = training.trainee()
    trainee.begin(batch)
    adam = training.optimiser(parameter_groups(training))

    def step() -> None:
        adam.zero_grad()
        trainee(batch, 0.5).loss.backward()
        dictionary.project_gradients()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        adam.step()
        trainee.after_step(True)
        trainee.tokens_since_fired_SF.zero_()

    return step


def seconds(make: Callable[..., Step], size: tuple[int, ...], batch: Batch, steps: int) -> float:
    step = make(*size, batch)
    step()  # moments are made, pages are touched
    start = time.perf_counter()
    for _ in range(steps):
        step()
    taken = (time.perf_counter() - start) / steps
    del step
    gc.collect()
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["4x256x2048", "12x768x8192"])
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for text in options.sizes:
        layers, width, features = (int(word) for word in text.split("x"))
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, options.tokens, layers, width, generator=generator)
        nothing = torch.zeros(options.tokens, dtype=torch.int64)
        batch = Batch(x, y, nothing, nothing)
        size = (layers, width, features, options.k)
        taken: dict[str, list[float]] = {"ours": [], "dense": []}
        steps = 1 if layers * features > 20_000 else 5
        for _ in range(options.rounds):
            taken["ours"].append(seconds(ours, size, batch, 3 * steps))
            taken["dense"].append(seconds(dense, size, batch, steps))
        median = {name: statistics.median(times) for name, times in taken.items()}
        ratio = median["dense"] / median["ours"]
        rows.append({"L": layers, "D": width, "F": features, "seconds": taken, "ratio": ratio})
        sys.stdout.write(
            f"L={layers} D={width} F={features} k={options.k} B={options.tokens}: ours "
            f"{median['ours']:.3f} s, dense {median['dense']:.3f} s, {ratio:.1f} times\n"
        )
        sys.stdout.flush()
    record = {
        "versions": results.versions(("torch", "dictlearn-lm")),
        "k": options.k,
        "tokens": options.tokens,
        "rounds": options.rounds,
        "bar": 5.0,
        "sizes": rows,
    }
    sys.stdout.write(f"appended to {results.append('clt_step', record, options.results)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One of several processes that select together: `ranks_worker.py <folder> <rank> <ranks>`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.objectives.l0_target import L0Target
from dictlearn.objectives.protocol import Forward
from dictlearn.sparsity.batchtopk import BatchTopK
from dictlearn.sparsity.jumprelu import JumpReLU

TOKENS, WIDTH, FEATURES = 48, 16, 40
CASES = {
    "one source": (BatchTopK, 1, {"k": 3}),
    "sources apart": (BatchTopK, 2, {"k": 2.5}),
    "sources together": (BatchTopK, 2, {"k": 2.5, "across_layers": True}),
    "fewer than the budget": (BatchTopK, 1, {"k": 39}),
    "tied": (BatchTopK, 1, {"k": 3}),
    "l0 target": (JumpReLU, 1, {"init_threshold": 1.0, "bandwidth": 2.0}),
}


def batch(name: str, sources: int) -> Tensor:
    """Tokens that are harder from one to the next: an equal share for each process is wrong."""
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(TOKENS, sources, WIDTH, generator=draws)
    if name == "tied":
        return x[:2].repeat(TOKENS // 2, 1, 1)
    return x * torch.linspace(0.2, 6, TOKENS)[:, None, None]


def gradients(name: str, rank: int, ranks: int) -> dict[str, Tensor]:
    """The code of this process's tokens, and its gradients, which processes average."""
    kind, sources, options = CASES[name]
    sites = tuple(f"resid_post.{i}" for i in range(sources))
    torch.manual_seed(1)
    shape = Shape("sae", sites, sites, width=WIDTH, n_features=FEATURES, k=3, centre=True)
    dictionary = Dictionary(shape, partial(kind, **options))
    dictionary.train()
    # Shares of unequal size: what counts is the whole.
    ends = [0, TOKENS] if ranks == 1 else [0, 20, TOKENS]
    x = batch(name, sources)[ends[rank] : ends[rank + 1]]
    encoding = dictionary.encode_training(x)
    if kind is JumpReLU:
        none = torch.zeros(sources, FEATURES, dtype=torch.bool)
        forward = Forward(dictionary, x, x, encoding, none, 1.0, 1.0)
        loss = L0Target(k=3)(forward)
    else:
        loss = ranks * dictionary.decode(encoding.code, x).square().sum()
    loss.backward()
    made = {n: p.grad for n, p in dictionary.named_parameters() if p.grad is not None}
    return {**made, "code": encoding.code.dense(), "loss": loss.detach()}


def main(folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks
    )
    found = {name: gradients(name, rank, ranks) for name in CASES}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

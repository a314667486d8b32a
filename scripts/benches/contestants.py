"""Everybody's whole training step, as `run(case, who, ...)`: build, warm up, time some steps, forget.

Each is alone in memory. dictlearn runs inside Lightning's Trainer with the composed configuration, as
`python train.py` does, with its loggers and callbacks but for the checkpoints and the progress bar;
what is timed is from one request for a batch to the next. The others' steps are the bodies of their
own training loops (scripts/peers/). Nobody's features count as dead.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from dictlearn_kernels import fixed_point
from omegaconf import DictConfig
from peers.ours import RUN_DIR, Recorded, batch_of
from peers.recipe import Recipe
from peers.speed import Lap, Race

from benches import dense
from benches.cases import DENSE, OURS, OURS_FLOAT32, PER_N, SAELENS, SPARSIFY, Case
from dictlearn.config import compose
from dictlearn.types import Batch, ModelInfo
from dictlearn.verbs import build
from dictlearn.verbs.train import fit

MODULES = {SAELENS: "sae_lens", SPARSIFY: "sparsify"}
NEVER = 10**9  # tokens: no feature is dead before


def absent(who: str) -> bool:
    """Whether a contestant's package isn't installed here."""
    return who in MODULES and find_spec(MODULES[who]) is None


def dtype_of(who: str, device: str) -> str:
    """Of the matmul that selects: what the floor is computed with."""
    if device == "cuda":
        return "bfloat16"
    return "int16" if who == OURS and fixed_point.available() else "float32"


def random_batch(case: Case) -> Batch:
    """Activations of mean norm sqrt(D), the same for everybody; an SAE's are their own target."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.tokens, case.layers, case.width)
    x_NSD = torch.randn(shape, generator=generator).to(case.device)
    if case.kind == "sae":
        return batch_of(x_NSD[:, 0])
    y_NSD = torch.randn(shape, generator=generator).to(case.device)
    nothing_N = torch.zeros(case.tokens, dtype=torch.int64, device=case.device)
    return Batch(x_NSD, y_NSD, nothing_N, nothing_N)


def run(case: Case, who: str, batch: Batch, steps: int, race: Race, warm: int = 1) -> None:
    """Times `steps` steps after `warm` others, into `race`."""
    torch.manual_seed(0)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if who in (OURS, OURS_FLOAT32):
        _run_ours(case, who, batch, steps, race, warm)
    else:
        step = _stepper(case, who, batch)
        for _ in range(warm):
            step()
        with Lap(race, who, steps):
            for _ in range(steps):
                step()
        del step
    gc.collect()
    if case.device == "cuda":
        torch.cuda.empty_cache()


def _stepper(case: Case, who: str, batch: Batch) -> Callable[[], None]:
    if who == DENSE:
        return dense.stepper(case, batch)
    assert case.kind == "sae", f"{who} trains no {case.kind}"
    recipe = Recipe(
        width=case.width,
        n_features=case.features,
        k=case.k,
        steps=100_000,
        batch_tokens=case.tokens,
        lr=1e-4,
        warmup=10,
        decay=0,
        dead_after_tokens=NEVER,
        prefixes=(case.features,),
        device=case.device,
    )
    x_ND = batch.x_NSD[:, 0]
    if who == SAELENS:
        from peers.saelens import SAELens

        saelens = SAELens("topk", recipe, 0)
        return lambda: saelens.step(x_ND)
    assert who == SPARSIFY, who
    from peers.sparsify import Sparsify

    sparsify = Sparsify(recipe, 0)
    return lambda: sparsify.step(x_ND)


def configuration(case: Case, who: str, steps: int, *overrides: str) -> DictConfig:
    """What `python train.py` would run with."""
    size = [f"dict.k={case.k}"]
    if case.kind == "molt":
        size.append(f"dict.n={case.features // PER_N}")
    else:
        size.append(f"dict.n_features={case.features}")
    words = [
        f"dict={case.kind}",
        f"trainer={'gpu' if case.device == 'cuda' else 'cpu'}",
        f"steps={steps}",
        f"batch_tokens={case.tokens}",
        f"dead_after={NEVER}",
        "optim.lr=1e-4",
        "schedule.warmup=10",
        "schedule.decay=0",
        "beside=false",
        "callbacks.checkpoint=null",
        "callbacks.bar=null",
        f"run_dir={RUN_DIR.name}",
    ]
    if who == OURS_FLOAT32:
        words.append("selection=float32")
    return compose("train", [*words, *size, *overrides])


class Finished(Exception):
    """Ends a fit where its last timed step has ended: in the request for the next batch."""


def _run_ours(case: Case, who: str, batch: Batch, steps: int, race: Race, warm: int) -> None:
    cfg = configuration(case, who, warm + steps + 1)
    info = ModelInfo("random", None, "random", case.layers, case.width, 0, 0)
    dictionary = build.build_dictionary(cfg, info)
    training = build.build_training(cfg, dictionary)
    training.trainee().to(case.device).begin(batch)

    def batches() -> Iterator[Batch]:
        for _ in range(warm):
            yield batch
        with Lap(race, who, steps):
            for _ in range(steps):
                yield batch
        raise Finished

    with contextlib.suppress(Finished):
        fit(cfg, training, Recorded(batches(), dictionary, case.tokens), None)

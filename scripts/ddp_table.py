"""Whether processes that share a batch have the gradients of one process with all of it.

    python scripts/ddp_table.py                    # every kind, sparsity and objective, on pico
    python scripts/ddp_table.py --only sae --ranks 3

For each configuration one process takes the gradient of a batch of pico's activations. Then W
processes, forked from it, take theirs of unequal shares of the same batch of windows, or equal ones
of shuffled tokens, and average them as DDP does. The table has the largest relative difference over the
gradients of all parameters, and over the metrics; the counters of silent features must be equal.
Writes benchmarks/results/ddp_table.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictlearn import config
from dictlearn.evals.record import versions
from dictlearn.lm.language_model import LanguageModel
from dictlearn.train.trainee import Trainee
from dictlearn.types import Batch
from dictlearn.verbs import build

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks/results/ddp_table.json"
TOKENS = 256
MOST = 2e-5  # relative, by which sums of float32 in another order may differ
COMMON = (
    "name=ddp_table",
    "trainer=cpu",
    "selection=float32",
    f"batch_tokens={TOKENS}",
    "data.max_tokens=20000",
    "data.context=32",
    "beside=false",
    "dead_after=64",
)
SMALL = ("dict.n_features=256",)
KINDS = {
    "sae": ("dict=sae", *SMALL),
    "matryoshka": ("dict=matryoshka", *SMALL),
    "transcoder": ("dict=transcoder", *SMALL),
    "skip_transcoder": ("dict=skip_transcoder", *SMALL),
    "plt": ("dict=plt", *SMALL),
    "clt": ("dict=clt", *SMALL),
    "clt, tied, window 2": ("dict=clt", "dict.tied=true", "dict.window=2", *SMALL),
    "crosscoder": ("dict=crosscoder", *SMALL),
    "molt": ("dict=molt", "dict.n=1"),
}
SPARSITIES = (
    "topk",
    "batchtopk",
    "jumprelu",
    "jumprelu_tanh",
    "relu",
    "gated",
    "multi_topk",
    "abstopk",
)
WINDOWS = ("source=windows",)
OBJECTIVES = {
    "mse": (),
    "mse on windows": WINDOWS,
    "mse, fvu": ("objective.reduction=fvu",),
    "kl": ("objective=kl", *WINDOWS),
    "kl, free running": ("objective=kl", "objective.terms.kl.mode=free_running", *WINDOWS),
    "ce": ("objective=ce", *WINDOWS),
    "e2e": ("objective=e2e", *WINDOWS),
    "mse_then_kl": ("objective=mse_then_kl", "source.last=0.99"),
}


class Case(NamedTuple):
    kind: str
    sparsity: str
    objective: str

    @property
    def overrides(self) -> list[str]:
        sparsity = (f"sparsity={self.sparsity}",)
        return [*COMMON, *KINDS[self.kind], *sparsity, *OBJECTIVES[self.objective]]


class Result(NamedTuple):
    gradients: dict[str, Tensor]
    metrics: dict[str, float]
    counters: Tensor


class Difference(NamedTuple):
    """The largest relative ones."""

    gradients: float
    metrics: float


def cases(only: Sequence[str] | None = None) -> list[Case]:
    """Every kind with every sparsity, and every objective with an SAE and a CLT."""
    made = [Case(kind, sparsity, "mse") for kind in KINDS for sparsity in SPARSITIES]
    made += [Case(kind, "topk", name) for kind in ("sae", "clt") for name in OBJECTIVES]
    made += [Case("sae", s, "kl") for s in ("batchtopk", "jumprelu")]
    return [c for c in dict.fromkeys(made) if only is None or any(o in " / ".join(c) for o in only)]


class Prepared(NamedTuple):
    """A dictionary in training that has begun, and the batch."""

    trainee: Trainee
    batch: Batch


@cache
def read() -> tuple[LanguageModel, Any]:
    """pico and its text, which are the same in all configurations."""
    cfg = config.compose("train", COMMON)
    lm = build.build_model(cfg)
    assert lm is not None
    return lm, build.build_windows(cfg, lm, "train")


def prepare(case: Case) -> Prepared:
    """Raises ValueError where the configuration is one that dictlearn refuses."""
    cfg = config.compose("train", case.overrides)
    torch.manual_seed(0)
    lm, windows = read()
    dictionary = build.build_dictionary(cfg, lm.info)
    training = build.build_training(cfg, dictionary)
    source = build.build_source(cfg, lm, dictionary, "train", windows)
    build.connect(cfg, training, lm)
    trainee = training.trainee()
    trainee.begin(source.sample(1024))
    trainee.tokens_since_fired_SF[:, ::3] = 64  # so that there are dead features
    while True:
        batch = source.next_batch()
        if case.objective != "mse_then_kl" or batch.beside is not None:
            return Prepared(trainee, batch)


def part(batch: Batch, rank: int, ranks: int) -> Batch:
    """Equal shares of shuffled tokens; of windows the first process has one, the others the rest."""
    if batch.tokens_BP is None:
        n = len(batch.x_NSD) // ranks
        rows = batch.rows(rank * n, (rank + 1) * n)
        beside = None if batch.beside is None else part(batch.beside, rank, ranks)
        return rows._replace(beside=beside)
    ends = [0, *range(1, ranks), len(batch.tokens_BP)]
    windows = slice(ends[rank], ends[rank + 1])
    assert batch.valid_BP is not None
    counts = batch.valid_BP.sum(1).cumsum(0).tolist()
    low, high = ([0, *counts][end] for end in (windows.start, windows.stop))
    return batch.rows(low, high)._replace(
        tokens_BP=batch.tokens_BP[windows], valid_BP=batch.valid_BP[windows]
    )


def result(trainee: Trainee, batch: Batch, progress: float = 0.5) -> Result:
    trainee.train()
    outcome = trainee(batch, progress)
    metrics = trainee.metrics(outcome)
    outcome.loss.backward()
    trainee.after_step(accepted=True)
    made = {n: p.grad for n, p in trainee.named_parameters() if p.grad is not None}
    return Result(made, metrics, trainee.tokens_since_fired_SF)


def averaged(own: Result) -> Result:
    """With the means of gradients over processes."""
    for gradient in own.gradients.values():
        torch.distributed.all_reduce(gradient)
        gradient /= torch.distributed.get_world_size()
    return own


def forked(ranks: int, work: Callable[[int], Any]) -> None:
    """Calls work(rank) in `ranks` processes that can reduce over gloo. Raises if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(ranks):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    torch.distributed.init_process_group(
                        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks
                    )
                    work(rank)
                    torch.distributed.barrier()
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    os._exit(status)
            children.append(child)
        failed = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(failed):
        raise RuntimeError(f"processes ended with {failed}")


def difference(whole: Result, parts: Result) -> Difference:
    """In the norm of each parameter's gradient, and of each metric; inf where something is missing."""
    if (
        whole.gradients.keys() != parts.gradients.keys()
        or whole.metrics.keys() != parts.metrics.keys()
    ):
        return Difference(math.inf, math.inf)
    sizes = {n: float(g.double().norm()) for n, g in whole.gradients.items()}
    least = 1e-6 * max(sizes.values())  # what is smaller is the sum of larger numbers
    gradients = [
        float((g.double() - parts.gradients[n].double()).norm()) / max(sizes[n], least)
        for n, g in whole.gradients.items()
    ]
    metrics = [
        abs(value - parts.metrics[n]) / max(abs(value), 1e-6) for n, value in whole.metrics.items()
    ]
    if not torch.equal(whole.counters, parts.counters):
        metrics.append(math.inf)
    return Difference(max(gradients), max(metrics))


def compared(chosen: Sequence[Case], ranks: int) -> dict[Case, Difference | str]:
    """The difference for each case, or why dictlearn refuses the configuration."""
    found: dict[Case, Difference | str] = {}
    for case in chosen:
        try:
            prepared = prepare(case)
        except ValueError as error:
            found[case] = str(error)
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "difference.json")

            def work(rank: int, prepared: Prepared = prepared, file: Path = file) -> None:
                parts = averaged(result(prepared.trainee, part(prepared.batch, rank, ranks)))
                if rank == 0:
                    torch.save(parts._asdict(), file)

            forked(ranks, work)
            parts = Result(**torch.load(file, weights_only=True))
            found[case] = difference(result(*prepared), parts)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", help="parts of 'kind / sparsity / objective'")
    parser.add_argument("--ranks", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for case in cases(given.only):
        found |= compared([case], given.ranks)
        value = found[case]
        words = value if isinstance(value, str) else " ".join(f"{number:.1e}" for number in value)
        print(f"{' / '.join(case)}: {words}", flush=True)
    if given.only is None:
        rows = [
            case._asdict() | ({"refused": v} if isinstance(v, str) else v._asdict())
            for case, v in found.items()
        ]
        record = {
            "date": date.today().isoformat(),
            "machine": f"{os.cpu_count()} CPU cores, gloo",
            "versions": versions(),
            "ranks": given.ranks,
            "tokens": TOKENS,
            "rows": rows,
        }
        before = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        RESULTS.write_text(json.dumps([*before, record], indent=1) + "\n")
    apart = [case for case, v in found.items() if not isinstance(v, str) and max(v) > MOST]
    for case in apart:
        print(f"more than {MOST} apart: {' / '.join(case)}")
    return int(bool(apart))


if __name__ == "__main__":
    sys.exit(main())

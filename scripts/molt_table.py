"""MOLT against transcoders of equal parameters: NMSE, L0 and Jacobian cosine on pico.

    python scripts/molt_table.py                  # the table: under 10 minutes on one thread
    python scripts/molt_table.py --quick          # a rehearsal; its figures mean nothing

mlp_in.1 -> mlp_out.1, every dictionary on the same shuffled activations in the same order and with
the defaults of its kind, at several k. NMSE is pooled over held-out tokens; the Jacobian cosine is
exact (as many probes as the model is wide), a mean over held-out tokens. The table is that of the
published runs on GPT-2. Figures are appended to benchmarks/results/molt.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from dictlearn.config import compose
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.evals.jacobian import products
from dictlearn.lm.language_model import LanguageModel
from dictlearn.sources.live import LiveSource
from dictlearn.train.groups import parameter_groups
from dictlearn.train.trainee import Trainee
from dictlearn.types import Batch
from dictlearn.verbs import build

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

LAYER = 1
MOLT_K = (2, 4, 8)
TRANSCODER_K = (8, 16, 32)
HELD_OUT, JACOBIAN_TOKENS = 32_768, 256


@dataclass(frozen=True)
class Activations:
    """What the MLP reads and writes, [2, N, D] float16 in a file, and held-out ones in memory."""

    train: numpy.memmap
    held_out: Batch
    lm: LanguageModel

    def batch(self, step: int, n: int) -> Batch:
        """Batch `step` in the file's order; from the start again after its end."""
        start = step * n % (self.train.shape[1] - n + 1)
        return _batch(torch.from_numpy(self.train[:, start : start + n].astype("float32")))


def _batch(pair_2ND: Tensor) -> Batch:
    x_NSD, y_NTD = pair_2ND[:, :, None].unbind(0)
    nothing = torch.zeros(len(x_NSD), dtype=torch.int64)
    return Batch(x_NSD, y_NTD, nothing, nothing)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--molt-k", nargs="*", type=int, default=MOLT_K)
    parser.add_argument("--transcoder-k", nargs="*", type=int, default=TRANSCODER_K)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=200_000, help="cached, read in a circle")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every run")
    parser.add_argument("--quick", action="store_true", help="short: a rehearsal")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, help="folder for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = 20 if options.quick else options.steps
    tokens = 20_000 if options.quick else options.tokens
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        activations = made(Path(scratch) / "activations.npy", tokens)
        size = parameters(configured("molt", 1, options.set), activations.lm)
        width = activations.lm.info.width
        features = round((size - width) / (2 * width + 1))
        for k in options.molt_k:
            rows.append(row("molt", k, activations, steps, options.set))
        for k in options.transcoder_k:
            sized = [f"dict.n_features={features}", *options.set]
            rows.append(row("transcoder", k, activations, steps, sized))
    record = {
        "versions": results.versions(("torch", "dictlearn-lm")),
        "site": f"mlp_in.{LAYER} -> mlp_out.{LAYER}",
        "steps": steps,
        "tokens": tokens,
        "overrides": options.set,
        "rows": rows,
    }
    print(table(rows))
    folder = options.results or (Path(tempfile.mkdtemp()) if options.quick else results.RESULTS)
    print(f"appended to {results.append('molt', record, folder)}")
    return 0


def configured(kind: str, k: int, overrides: list[str]) -> DictConfig:
    asked = [f"dict={kind}", f"dict.layer={LAYER}", f"dict.k={k}", "run_dir=unused", *overrides]
    return compose("train", asked)


def parameters(cfg: DictConfig, lm: LanguageModel) -> int:
    dictionary = build.build_dictionary(cfg, lm.info)
    return sum(p.numel() for p in dictionary.parameters())


def made(path: Path, n_tokens: int) -> Activations:
    """Streams pico's activations to a file, shuffled as in any run."""
    cfg = compose("train", ["dict=transcoder", f"dict.layer={LAYER}", "batch_tokens=4096"])
    lm = build.build_model(cfg)
    assert lm is not None
    dictionary = build.build_dictionary(cfg, lm.info)
    train = numpy.lib.format.open_memmap(
        path, mode="w+", dtype="float16", shape=(2, n_tokens, lm.info.width)
    )
    source = build.build_source(cfg, lm, dictionary, "train")
    for start in range(0, n_tokens, 4096):
        pair = _pair(source.next_batch())[:, : n_tokens - start]
        train[:, start : start + pair.shape[1]] = pair.numpy()
    held_out = build.build_source(cfg, lm, dictionary, "eval")
    assert isinstance(held_out, LiveSource)
    parts = [_pair(held_out.next_batch()) for _ in range(HELD_OUT // 4096)]
    return Activations(train, _batch(torch.cat(parts, 1)), lm)


def _pair(batch: Batch) -> Tensor:
    return torch.stack([batch.x_NSD[:, 0], batch.y_NTD[:, 0]])


def row(
    kind: str, k: int, activations: Activations, steps: int, overrides: list[str]
) -> dict[str, Any]:
    start = time.perf_counter()
    cfg = configured(kind, k, overrides)
    trainee = trained(cfg, activations, steps)
    seconds = time.perf_counter() - start
    dictionary = trainee.inference_form(lambda: [activations.batch(0, 8192)])
    figures = {
        "kind": kind,
        "k": k,
        "features": dictionary.n_features,
        "parameters": sum(p.numel() for p in dictionary.parameters()),
        **measured(dictionary, activations),
        "seconds": round(seconds, 1),
    }
    print(*(f"{name} {_short(value)}" for name, value in figures.items()), flush=True)
    return figures


def trained(cfg: DictConfig, activations: Activations, steps: int) -> Trainee:
    """The training module's step without Lightning around it."""
    lightning.seed_everything(cfg.seed, verbose=False)
    dictionary = build.build_dictionary(cfg, activations.lm.info)
    run_tokens = steps * cfg.batch_tokens
    trainee = Trainee(dictionary, build.build_objective(cfg), cfg.normalise, run_tokens // 20)
    trainee.begin(activations.batch(0, 16_384))
    optimiser = instantiate(cfg.optim)(parameter_groups(trainee))
    schedule = instantiate(cfg.schedule)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step, steps))
    for step in range(steps):
        outcome = trainee(activations.batch(step, cfg.batch_tokens), step / steps)
        outcome.loss.backward()
        dictionary.decoder.project_gradient()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), cfg.clip_norm)
        optimiser.step()
        rates.step()
        optimiser.zero_grad()
        trainee.dictionary.after_step()
        trainee.after_step(True)
    return trainee


def measured(dictionary: Dictionary, activations: Activations) -> dict[str, float]:
    """Figures of the dictionary in raw units, on held-out tokens."""
    x_NSD, y_NTD = activations.held_out.x_NSD, activations.held_out.y_NTD
    with torch.no_grad():
        code = dictionary.encode(x_NSD)
        error = (dictionary.decode(code, x_NSD) - y_NTD).double().square().sum()
    spread = (y_NTD.double() - y_NTD.double().mean(0)).square().sum()
    some = x_NSD[:: len(x_NSD) // JACOBIAN_TOKENS][:JACOBIAN_TOKENS]
    random = torch.Generator().manual_seed(0)
    of_both = products(activations.lm, dictionary, some, dictionary.width, random)
    fired = torch.bincount(code.features, minlength=dictionary.n_features) > 0
    norms = dictionary.decoder.norms()
    return {
        "nmse": float(error / spread),
        "l0": float(code.l0_NS.double().mean()),
        "jacobian_cosine": float(of_both.cosine_N(torch.ones(1, dtype=torch.float64)).mean()),
        "dead": float((~fired).double().mean()),
        "largest_norm_over_median": float(norms.max() / norms.median()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    columns = ("kind", "k", "features", "parameters", "l0", "nmse", "jacobian_cosine", "dead")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_short(r[name]) for name in columns) + " |" for r in rows]
    return "\n".join(lines)


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
